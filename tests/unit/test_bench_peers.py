"""Peers of the bench: who cannot be fetched is named with the reason, and the others run."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.bench import peers
from deploy.bench.cases import Ground
from deploy.bench.work import COLUMNS


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("no route\nto the jars"), "to the jars"), (RuntimeError(), "RuntimeError"), (ValueError("x" * 999), "x" * 300)],
)
def test_a_peer_that_cannot_be_fetched_is_named_and_the_other_one_competes(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_: Ground) -> Any:
        raise error

    made: Any = object()
    monkeypatch.setattr(peers, "_connect", fails)
    monkeypatch.setattr(peers, "_quix", lambda _: made)
    place: Any = None
    told: list[str] = []
    assert peers.entries(Ground(place, tmp_path, 1.0), told.append) == ([made], {peers.CONNECT: {"failed": said}})
    assert f"{peers.CONNECT}: {said}" in told


def test_what_each_peer_gets_is_the_whole_row_in_its_own_form() -> None:
    row = dict.fromkeys(COLUMNS, None) | {"externalId": "003"}
    connect = json.loads(peers.SCHEMA % json.dumps(row).encode())
    assert connect["payload"] == row
    assert [field["field"] for field in connect["schema"]["fields"] if not field["optional"]] == ["externalId"]
    assert json.loads(peers._without_nulls(row)) == dict.fromkeys(COLUMNS, "") | {"externalId": "003"}
