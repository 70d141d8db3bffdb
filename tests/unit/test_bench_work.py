"""The bench's work and oracle are what they say, and the step by hand, which contenders use, agrees with the oracle in any order."""

import random

import orjson
import pytest

from deploy.bench import byhand
from deploy.bench.work import Event, Work, record_id, row

IDS = [record_id(number) for number in range(50)]


def through(events: list[Event]) -> dict[str, dict[str, object]]:
    states: dict[str, byhand.State] = {}
    bodies: dict[str, dict[str, object]] = {}
    for event in events:
        if (done := byhand.step(event.value, event.id, states.get(event.id))) is not None:
            states[event.id], bodies[event.id] = done
    return bodies


@pytest.mark.parametrize("seed", range(5))
def test_the_step_by_hand_ends_at_the_oracle_whatever_the_order(seed: int) -> None:
    work = Work(IDS, seed)
    created, updates = work.create(), work.updates(2000)
    assert through(created + updates) == work.truth()
    random.Random(seed).shuffle(updates)
    assert through(updates + created) == work.truth()


def test_work_has_late_and_repeated_events_and_loses_none() -> None:
    work = Work(IDS)
    work.create()
    events = work.updates(2000)
    positions = [event.position for event in events]
    last: dict[str, int] = {}
    late = 0
    for event in events:
        late += event.position < last.get(event.id, 0)
        last[event.id] = max(event.position, last.get(event.id, 0))
    assert len(events) == 2000
    assert len(events) - len(set(positions)) == 20
    assert late >= 50
    assert set(positions) == set(range(51, 51 + 1980))


def test_the_same_seed_makes_the_same_work() -> None:
    one, other = Work(IDS, 7), Work(IDS, 7)
    assert one.create() + one.updates(100) == other.create() + other.updates(100)


def test_a_writer_without_versions_leaves_stale_rows() -> None:
    work = Work(IDS, keep_rows=True)
    rows = {event.id: said for event, said in work.flat_rows(work.create() + work.updates(2000))}
    assert {id for id, said in work.truth().items() if rows[id] != said}


def test_events_are_change_events_of_the_size_of_real_ones() -> None:
    work = Work(IDS)
    work.create()
    for event in work.updates(50):
        header = orjson.loads(event.value)["data"]["payload"]["ChangeEventHeader"]
        assert header["recordIds"] == [event.id]
        assert 500 < len(event.value) < 1000


def test_a_row_is_trimmed_and_blank_text_is_null() -> None:
    found = row({"Id": "1", "Email": " A@B.ORG ", "Title": "  ", "Phone": None})
    assert (found["email"], found["title"], found["phone"], found["lastName"]) == ("a@b.org", None, None, None)


def test_no_records_make_no_work() -> None:
    assert Work([]).create() == []
    assert Work(IDS).updates(0) == []
