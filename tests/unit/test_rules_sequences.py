"""The sequences the design names, one by one, through the processing agent's own handler and the writer's decision."""

import itertools
from typing import Any

import pytest

from agents.rules import versions
from agents.rules.delivery import Delivered, apply
from agents.rules.versions import Version, wins
from agents.rules.writes import Json, WireWrite, decode_write, encode_write
from models.change_event import Place, next_epoch
from models.envelope import Reason
from models.write import Op, Write
from tests.support.flows import CONTACTS, flow, maps
from tests.support.memory import MemoryRecord
from tests.support.pipeline import TOPICS, Pipeline

ID = "003Qx00000Ke4RtIAJ"
WHOLE = {"Email": "a@x.org", "Name": {"FirstName": "Zoë", "LastName": "M"}, "Title": "CEO", "Phone": "1", "AccountId": "001"}
ROW = {"Email": "a@x.org", "FirstName": "Zoë", "LastName": "M", "Title": "CEO", "Phone": "1", "AccountId": "001"}
BY_MAIL = CONTACTS | {"key": "email"}
FILTERED = CONTACTS | {"where": "Title != null", "on_delete": "delete"}


def pipeline(**routes: dict[str, Any]) -> Pipeline:
    routes = routes or {"contacts": CONTACTS}
    return Pipeline(flow(**routes), maps(**routes))


def create(p: Pipeline, position: int = 10, second: int = 1000, **body: Any) -> MemoryRecord:
    return p.change("Contact", ID, "CREATE", position, second, WHOLE | body)


def update(p: Pipeline, position: int, second: int, **body: Any) -> MemoryRecord:
    return p.change("Contact", ID, "UPDATE", position, second, body)


async def test_a_snapshot_row_between_two_updates_undoes_neither() -> None:
    p = pipeline()
    await p.feed(create(p))
    await p.feed(update(p, 20, 1010, Title="first"))
    snapshot = p.row("Contact", ID, 15, 1010, ROW | {"Title": "first", "Phone": "2"}, bulk=True, reason=Reason.SNAPSHOT, run="s")
    await p.feed(update(p, 30, 1011, Title="second"))
    [write] = await p.feed(snapshot)
    assert (write.body or {})["title"] == "second"
    assert (write.body or {})["phone"] == "2"
    assert p.writes[-1][0] == TOPICS.writes("warehouse", bulk=True)


async def test_a_repair_row_is_not_undone_by_an_older_snapshot_row_that_comes_later() -> None:
    p = pipeline()
    [repaired] = await p.feed(p.row("Contact", ID, 50, 2000, ROW | {"Title": "repaired"}, reason=Reason.REPAIR, run="r"))
    [snapshot] = await p.feed(p.row("Contact", ID, 40, 1900, ROW | {"Title": "old"}, bulk=True, reason=Reason.SNAPSHOT, run="s"))
    assert (repaired.body or {})["title"] == (snapshot.body or {})["title"] == "repaired"
    assert snapshot.revision > repaired.revision


async def test_a_late_update_after_a_delete_does_not_bring_it_back_and_is_read_again_when_newer() -> None:
    p = pipeline()
    await p.feed(create(p))
    [release] = await p.feed(p.change("Contact", ID, "DELETE", 30, 1030))
    assert (release.op, release.successor) == (Op.RELEASE, None)
    assert not [w for w in await p.feed(update(p, 20, 1020, Title="late")) if w.op is Op.WRITE]
    assert p.fetches == []
    assert not [w for w in await p.feed(update(p, 40, 1040, Title="newer")) if w.op is Op.WRITE]
    assert [body for body, _ in p.fetches] == [{"sobject": "Contact", "id": ID}]
    [write] = await p.feed(p.row("Contact", ID, 40, 1040, ROW | {"Title": "newer"}))
    assert (write.op, (write.body or {})["title"]) == (Op.WRITE, "newer")


async def test_an_undelete_brings_the_record_back_whole() -> None:
    p = pipeline()
    await p.feed(create(p))
    await p.feed(p.change("Contact", ID, "DELETE", 30, 1030))
    body = {name: value for name, value in WHOLE.items() if name != "Title"}
    [write] = await p.feed(p.change("Contact", ID, "UNDELETE", 40, 1040, body))
    assert write.op is Op.WRITE
    assert (write.body or {})["title"] is None, "a field that is absent in an UNDELETE is empty"


async def test_a_changed_key_releases_the_old_one_again_after_a_crash_until_it_is_through() -> None:
    p = pipeline(contacts=BY_MAIL)
    await p.feed(create(p))
    moved = update(p, 20, 1010, Email="b@x.org")
    first = await p.feed(moved, commit=False)  # the state is on disk, the outputs and the offset are not
    again = await p.feed(moved)
    assert [(w.op, w.key) for w in first] == [(w.op, w.key) for w in again] == [(Op.RELEASE, "a@x.org"), (Op.WRITE, "b@x.org")]
    assert first[0].successor == "b@x.org"
    [write] = await p.feed(update(p, 30, 1020, Title="x"))
    assert write.op is Op.WRITE, "once committed, the old key is let go"


async def test_in_a_target_that_renames_the_write_travels_with_the_release() -> None:
    people = {"from": ["acme/Contact"], "to": "marketing", "map": "person"}
    p = pipeline(people=people)
    await p.feed(create(p))
    [release] = await p.feed(update(p, 20, 1010, Email="B@x.org"), commit=False)
    assert (release.op, release.key, release.successor) == (Op.RELEASE, "a@x.org", "b@x.org")
    assert release.then is not None
    assert (release.then.op, release.then.key, release.then.renamed_from) == (Op.WRITE, "b@x.org", "a@x.org")
    plain, carrying = await p.feed(update(p, 30, 1020, Email="c@x.org"), commit=False)
    assert (plain.key, plain.then) == ("a@x.org", None)
    assert carrying.key == "b@x.org"
    assert carrying.then is not None
    assert carrying.then.key == "c@x.org"


async def test_leaving_the_filter_is_a_delete_again_after_a_crash() -> None:
    p = pipeline(contacts=FILTERED)
    await p.feed(create(p))
    left = update(p, 20, 1010, Title=None)
    for commit in (False, True):
        [release] = await p.feed(left, commit=commit)
        assert (release.op, release.key, release.successor, release.on_delete) == (Op.RELEASE, f"acme/{ID}", None, "delete")
    assert await p.feed(update(p, 30, 1020, Phone="2")) == []
    [write] = await p.feed(update(p, 40, 1030, Title="back"))
    assert write.op is Op.WRITE


def _write(source: str, order: int, revision: int, body: dict[str, Any] | None) -> WireWrite:
    op = Op.RELEASE if body is None else Op.WRITE
    write = Write(op=op, route="r", object="o", key="k", source=source, order=order, revision=revision, body=body, on_delete="delete")
    return decode_write(encode_write(write))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_two_sources_of_one_key_the_first_of_the_route_wins_in_any_order(order: tuple[int, ...]) -> None:
    writes = [
        _write("acme/Contact/1", 1, 9, {"n": "contact"}),
        _write("acme/Lead/2", 0, 3, {"n": "lead 2"}),
        _write("acme/Lead/1", 0, 2, {"n": "lead 1"}),
    ]
    state = Delivered.decode(None)
    for offset, which in enumerate(order):
        state = Delivered.decode(state.encode())
        decision = apply(state, writes[which], "live", offset)
    assert decision.body == Json(b'{"n":"lead 1"}'), "the order in the route, then the lowest id"
    released = apply(state, _write("acme/Lead/1", 0, 5, None), "live", 3)
    assert released.body == Json(b'{"n":"lead 2"}')
    late = apply(state, _write("acme/Lead/1", 0, 4, {"n": "late"}), "bulk", 0)
    assert (late.stale, late.call, late.body) == (True, True, Json(b'{"n":"lead 2"}'))
    assert late.turn > released.turn > decision.turn


E, R = versions.EVENT, versions.ROW


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ((E, 1, 10, 5), (E, 1, 9, 9), True),  # positions, not seconds
        ((E, 1, 10, 5), (E, 1, 10, 5), True),
        ((E, 2, 1, 5), (E, 1, 9, 9), True),
        ((R, 1, 5, 100), (R, 1, 9, 99), True),  # stamps before began
        ((R, 1, 5, 100), (R, 1, 6, 100), False),
        ((R, 2, 5, 1), (R, 1, 9, 99), True),
        ((E, 1, 10, 999), (R, 1, 10, 1), False),  # at or below began: the row knew it
        ((E, 1, 11, 98), (R, 1, 10, 100), True),  # within the tolerance
        ((E, 1, 11, 97), (R, 1, 10, 100), False),
        ((E, 2, 1, 1), (R, 1, 10, 100), True),  # a later epoch
        ((E, 1, 11, 100), (R, 2, 1, 1), False),
        ((E, 1, 1, 100), (R, 1, -1, 100), True),  # read before any position existed
    ],
)
def test_the_newer_version_wins_whichever_comes_first(new: Version, old: Version, expected: bool) -> None:
    assert wins(new, old) is expected
    assert new == old or wins(old, new) is not expected


async def test_a_new_epoch_outranks_higher_positions_of_the_old_one() -> None:
    p = pipeline()
    await p.feed(create(p, position=5_000_000))
    [write] = await p.feed(p.change("Contact", ID, "UPDATE", 7, 1010, {"Title": "after the move"}, epoch=2))
    assert (write.body or {})["title"] == "after the move"
    assert await p.feed(update(p, 5_000_001, 1020, Title="of the old org")) == []


async def test_a_repeat_of_an_old_position_emits_nothing_and_changes_nothing() -> None:
    p = pipeline()
    first, second = create(p), update(p, 20, 1010, Title="new")
    await p.feed(first, second)
    before = dict(p.partition.store("records").values)
    assert await p.feed(p.change("Contact", ID, "CREATE", 10, 1000, WHOLE)) == []
    assert await p.feed(update(p, 20, 1010, Title="new")) == []
    after = p.partition.store("records").values
    assert before.keys() == after.keys()
    [write] = await p.feed(update(p, 30, 1011, Phone="9"))
    assert (write.body or {})["title"] == "new"


async def test_everything_at_or_below_the_recorded_offset_is_emitted_again_not_only_the_last() -> None:
    p = pipeline()
    records = [create(p), update(p, 20, 1010, Title="b"), update(p, 30, 1020, Title="c")]
    await p.feed(*records, commit=False)
    for record in records:
        [write] = await p.feed(record, commit=False)
        assert (write.body or {})["title"] == "c", "as it is now"


@pytest.mark.parametrize(
    ("place", "event", "expected"),
    [
        (None, (5, 100), (1, False)),
        (Place(3, 10, 100, "o", "i"), (11, 100), (3, False)),
        (Place(3, 10, 100, "o", "i"), (10, 100), (3, True)),
        (Place(3, 10, 100, "o", "i"), (9, 99), (3, True)),
        (Place(3, 10, 100, "o", "i"), (9, 101), (4, False)),
        (Place(3, None, None, "o", "i"), (9, 101), (3, False)),
        (Place(3, 10, 100, "other", "i"), (11, 100), (4, False)),
        (Place(3, 10, 100, "o", "other"), (9, 99), (4, False)),
    ],
)
def test_the_epoch_rises_only_when_positions_start_anew(place: Place | None, event: tuple[int, int], expected: tuple[int, bool]) -> None:
    assert next_epoch(place, org="o", instance="i", position=event[0], second=event[1]) == expected
