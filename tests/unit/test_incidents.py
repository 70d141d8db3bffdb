"""An incident is kept as it was; one that is damaged is named, never passed over and never believed."""

from dataclasses import asdict, replace

import orjson
import pytest

from models.errors import FatalError
from streams.salesforce.incidents import Incident, parse_incident
from streams.topics import Topics

GAP = Incident("acme/1", "acme/Contact", "gap", "a gap event", ("003000000000001AAA",), since=5, opened=1, closed=2, state="closed")


def test_an_incident_is_read_back_as_it_was_also_one_that_a_later_version_wrote() -> None:
    output = GAP.output(Topics("t"))
    assert output.value is not None
    assert parse_incident(output.key, output.value) == GAP
    assert parse_incident(output.key, orjson.dumps(asdict(GAP) | {"later": [1]})) == GAP
    assert parse_incident(b"x", orjson.dumps({"id": "x", "source": "a/B", "cause": "gap", "detail": ""})).state == "open"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        orjson.dumps(asdict(replace(GAP, source="acme"))),
        orjson.dumps(asdict(GAP) | {"opened": "yesterday"}),
        orjson.dumps(asdict(GAP) | {"ids": [None]}),
        orjson.dumps(asdict(GAP) | {"ids": 7}),
        orjson.dumps(asdict(GAP) | {"rows": True}),
        orjson.dumps(asdict(GAP) | {"cause": {"drop": "table"}}),
    ],
)
def test_a_damaged_incident_is_named(value: bytes) -> None:
    with pytest.raises(FatalError, match="incident b'acme/1' is damaged"):
        parse_incident(b"acme/1", value)
