"""When a route is verified by itself, and what can be claimed of it: never more than was, and never anew because a process began."""

from dataclasses import replace

import orjson
import pytest

from agents.verify_schedule import AGAIN_SECONDS, due, next_at
from models.errors import FatalError
from models.flow import Route
from streams.topics import Topics
from streams.verified import State, Verified, parse_verified, through

DAY, NOW = 86_400.0, 1_780_000_000.0
LAST = Verified("people", "acme/Contact", "marketing", "verified", int(NOW * 1000), through=1_779_999_000)
PEOPLE = Route.model_validate({"from": ["acme/Contact", "acme/Lead"], "to": "marketing", "map": "person", "verify": "24h"})
QUIET = Route.model_validate({"from": ["acme/Contact"], "to": "warehouse", "map": "person"})


def test_a_route_is_due_at_once_when_it_never_was_then_after_its_interval_whoever_verified_it() -> None:
    routes = {"people": PEOPLE, "quiet": QUIET}
    assert due(routes, "acme/Contact", {}, NOW) == ["people"]
    found = {("people", "acme/Contact"): LAST}
    assert due(routes, "acme/Contact", found, NOW + DAY - 1) == []
    assert due(routes, "acme/Contact", found, NOW + DAY) == ["people"]
    assert due(routes, "acme/Lead", found, NOW) == ["people"]
    assert due(routes, "acme/Account", {}, NOW) == []


@pytest.mark.parametrize("state", ["running", "failed"])
def test_one_that_came_to_no_end_is_tried_again_after_a_while_not_at_every_start(state: State) -> None:
    last = replace(LAST, state=state)
    assert next_at(DAY, last) == NOW + AGAIN_SECONDS
    assert next_at(60, last) == NOW + 60


def test_a_route_is_verified_through_what_its_least_verified_source_is() -> None:
    both = {("people", "acme/Contact"): LAST, ("people", "acme/Lead"): replace(LAST, source="acme/Lead", through=7)}
    assert through(both, "people", PEOPLE.sources) == 7
    assert through({("people", "acme/Contact"): LAST}, "people", PEOPLE.sources) == 0
    assert through({}, "people", PEOPLE.sources) == 0


def test_what_is_kept_is_read_back_and_runs_of_another_kind_are_not_taken_for_it() -> None:
    output = LAST.output(Topics("t"))
    assert parse_verified(output.key, output.value) == LAST
    assert parse_verified(output.key, orjson.dumps({**orjson.loads(output.value or b""), "later": 1})) == LAST
    assert parse_verified(b"x", None) is None
    assert parse_verified(b"x", b'{"kind": "snapshot", "run": "x"}') is None


@pytest.mark.parametrize("value", [b"", b"[]", b"\xff", b'{"kind": "verify"}', b"[" * 5000])
def test_a_damaged_record_is_named(value: bytes) -> None:
    with pytest.raises(FatalError, match="damaged"):
        parse_verified(b"verify|people|acme/Contact", value)
