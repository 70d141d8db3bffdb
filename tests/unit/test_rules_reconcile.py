"""Nothing that differs passes: whatever source and state are, ranges hold every id, and what agrees is equal."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.rules.merge import RecordState, merge
from agents.rules.message import from_row
from agents.rules.plan import make_plan
from agents.rules.reconcile import Known, changed_since, difference, differs, known, narrower, range_agrees, ranges, second_of, suspects
from models.envelope import Envelope, Kind, Reason
from models.errors import PermanentError

PLAN = make_plan("Contact", ["LastName", "Email", "Owner.Email"])
NOW = 1_700_000_000
ids = st.sampled_from([f"003{n:015d}" for n in range(40)])
seconds = st.integers(NOW, NOW + 30)
held = st.dictionaries(ids, st.builds(Known, seconds, st.booleans()))
stamps = st.dictionaries(ids, seconds)


@given(st.sets(ids), ids, st.integers(1, 7))
def test_every_id_there_can_be_lies_in_exactly_one_range(known_ids: set[str], id: str, size: int) -> None:
    parts = list(ranges(sorted(known_ids), size))
    assert [one for part in parts for one in part.ids] == sorted(known_ids)
    assert sum((p.begin is None or p.begin <= id) and (p.end is None or id < p.end) for p in parts) == 1
    for part in parts:
        assert all((part.begin is None or part.begin <= one) and (part.end is None or one < part.end) for one in part.ids)


@given(st.sets(ids), ids, st.integers(3, 9))
def test_what_a_wide_range_holds_lies_in_exactly_one_of_its_pages(known_ids: set[str], id: str, wide: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.rules.reconcile.RANGE", 2)
        parts = [part for one in ranges(sorted(known_ids), wide) for part in narrower(one)]
    assert [one for part in parts for one in part.ids] == sorted(known_ids)
    assert all(len(part.ids) <= 2 for part in parts)
    assert sum((p.begin is None or p.begin <= id) and (p.end is None or id < p.end) for p in parts) == 1


@given(held, stamps, st.integers(1, 7))
def test_what_raises_no_suspicion_is_there_on_both_sides_with_a_stamp_of_what_we_know(
    ours: dict[str, Known], theirs: dict[str, int], size: int
) -> None:
    doubtful: set[str] = set()
    for part in ranges(sorted(ours), size):
        inside = {i: s for i, s in theirs.items() if (part.begin is None or part.begin <= i) and (part.end is None or i < part.end)}
        doubtful |= suspects(part, ours, inside)
    live = {id for id, one in ours.items() if not one.deleted}
    assert live ^ theirs.keys() <= doubtful
    for id in live & theirs.keys():
        assert (id in doubtful) is differs(theirs[id], ours[id].second)
    assert doubtful <= live | theirs.keys(), "what both sides know as deleted costs nothing"


@given(held, seconds, st.integers(1, 5))
def test_a_range_agrees_with_itself_and_not_with_a_record_more_or_a_newer_one(ours: dict[str, Known], stamp: int, size: int) -> None:
    for part in ranges(sorted(ours), size):
        live = [ours[id].second for id in part.ids if not ours[id].deleted]
        newest = max(live, default=None)
        assert range_agrees(part, ours, len(live), newest)
        assert not range_agrees(part, ours, len(live) + 1, newest)
        if newest is not None:
            assert range_agrees(part, ours, len(live), stamp) is not differs(stamp, newest)


@given(
    st.dictionaries(ids, st.integers(NOW - 99, NOW)),
    st.lists(st.tuples(ids, st.integers(NOW + 5, NOW + 60), st.sampled_from(["change", "delete", "purge"]), st.booleans())),
    st.integers(1, 9),
)
def test_of_all_that_happened_since_everything_was_equal_nothing_that_was_lost_escapes(
    then: dict[str, int], happened: list[tuple[str, int, str, bool]], size: int
) -> None:
    """Changes, deletes and purges in order of time; each told, or lost. A record is in doubt unless its last one was told."""
    org, ours = {id: (stamp, False) for id, stamp in then.items()}, {id: Known(stamp, False) for id, stamp in then.items()}
    lost: set[str] = set()
    for id, stamp, what, told in sorted(happened, key=lambda one: one[1]):
        if what == "purge":
            if id in org and org[id][1]:
                del org[id]
            continue
        if what == "delete" and (id not in org or org[id][1]):
            continue
        org[id] = (stamp, what == "delete")
        if told:
            ours[id] = Known(stamp, what == "delete")
        (lost.discard if told else lost.add)(id)
    held = dict(ours)
    doubtful = changed_since(held, [(id, stamp, gone) for id, (stamp, gone) in org.items() if stamp > NOW])
    for part in ranges(sorted(held), size):
        there = {id: stamp for id, (stamp, gone) in org.items() if not gone and id in part.ids}
        if not range_agrees(part, held, len(there), max(there.values(), default=None)):
            doubtful |= suspects(part, held, there)
    differ = {id for id in lost if (id in org and not org[id][1]) != (id in ours and not ours[id].deleted)}
    differ |= {id for id in lost if id in org and id in ours and not org[id][1] and differs(org[id][0], ours[id].second)}
    assert differ <= doubtful


def test_a_stamp_may_be_two_seconds_older_than_its_commit_and_not_newer() -> None:
    assert [second for second in range(NOW - 5, NOW + 5) if not differs(second, NOW)] == [NOW - 2, NOW - 1, NOW]


def row(second: int = NOW, **values: Any) -> dict[str, Any]:
    stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
    return {"Id": "003A", "IsDeleted": False, "SystemModstamp": stamp, "OwnerId": "005A", "LastName": "A", "Email": None,
            "Owner": {"attributes": {}, "Email": "o@example.com"}} | values  # fmt: skip


def state_of(found: dict[str, Any], gone: int | None = None) -> RecordState:
    state = RecordState.decode(None, "003A")
    envelope = Envelope(kind=Kind.ROW, reason=Reason.SNAPSHOT, received=0, epoch=1, began=5, gone=gone)
    merge(state, from_row(found, envelope, PLAN), PLAN, "bulk", 0)
    return state


@given(st.fixed_dictionaries({}, optional={"LastName": st.text(), "Email": st.none() | st.text(), "Owner": st.none()}), st.integers(0, 9))
def test_a_record_equals_the_row_it_came_from_and_differs_exactly_in_what_differs(other: dict[str, Any], later: int) -> None:
    state, told = state_of(row()), row(NOW + later, **other)
    assert difference("003A", state, row(NOW + later), PLAN) is None
    wrong = {name for name in ("LastName", "Email") if told[name] != row()[name]} | ({"Owner.Email"} if told["Owner"] is None else set())
    found = difference("003A", state, told, PLAN)
    assert (set(found.fields) if found else set()) == wrong


def test_what_is_missing_extra_or_deleted_is_told_apart() -> None:
    here, gone = state_of(row()), state_of({"Id": "003A"}, gone=NOW)
    dead = row(IsDeleted=True)
    kinds = [
        [found and found.kind for found in (difference("003A", state, told, PLAN) for told in (row(), dead, None))]
        for state in (None, here, gone)
    ]
    assert kinds == [["missing", None, None], [None, "deleted", "extra"], ["missing", None, None]]


def test_a_value_that_is_not_known_yet_differs() -> None:
    state = state_of(row())
    del state.values["Email"]
    found = difference("003A", state, row(), PLAN)
    assert found is not None and (found.kind, found.fields) == ("changed", ("Email",))


def test_the_newest_of_a_record_is_that_of_its_values_its_deletion_and_its_last_event() -> None:
    state = state_of(row())
    assert known(state) == Known(NOW, False)
    state.exceptions["Email"] = (0, 1, 9, NOW + 3)
    assert known(state).second == NOW + 3
    state.committed = (NOW + 7) * 1000
    assert known(state).second == NOW + 7
    assert known(RecordState()) == Known(0, False)


@pytest.mark.parametrize("stamp", [None, "", "yesterday", 7, {}])
def test_a_stamp_that_cannot_be_read_raises_suspicion_and_a_row_with_it_is_refused(stamp: Any) -> None:
    assert differs(second_of(stamp), NOW)
    with pytest.raises(PermanentError, match="SystemModstamp"):
        difference("003A", state_of(row()), row() | {"SystemModstamp": stamp}, PLAN)
