"""What a route says is unique: values that are the same are one group, others never are, whatever stands in them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.duplicates import group_key
from agents.process import process_stage
from agents.rules import delivery
from agents.rules.delivery import Delivered, apply
from agents.rules.duplicates import LONGEST, MOST_MEMBERS, Group, Member, field_of, grouping
from agents.rules.writes import decode_write
from models.envelope import Reason
from models.write import Write
from streams.engine.stage import Output
from streams.quality import batches_of
from tests.support.flows import CONTACTS, flow, maps
from tests.support.pipeline import SETTINGS, TOPICS, Pipeline
from tests.unit.test_duplicates import Desk, write
from tests.unit.test_process import ID, ROW

CODE, EMAIL = grouping("code"), grouping("email", mail=True)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.text(min_size=LONGEST),
    st.lists(st.text(), min_size=1),
    st.dictionaries(st.text(), st.integers(0, 9), min_size=1),
).filter(lambda value: value != "" and encodable(value))


def encodable(value: Any) -> bool:
    """What a body can hold: no half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def same(one: Any, other: Any) -> bool:
    """As the target compares: 1 and 1.0, never 1 and true, nor A and a."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(type(one) is type(other) and one == other) or (
        isinstance(one, (int, float)) and isinstance(other, (int, float)) and one == other
    )


@given(VALUES, VALUES)
@example("A", "a")
@example("a", " a")
@example("1", 1)
@example(1, 1.0)
@example(0, -0.0)
@example(True, 1)
@example("x" * 9999, "x" * 9998)
@example("a|b", "a")
@example("a\0b", "a")
def test_two_values_are_one_group_exactly_when_they_are_the_same(one: Any, other: Any) -> None:
    assert (CODE.group({"code": one}) == CODE.group({"code": other})) == same(one, other)


@given(VALUES)
def test_a_groups_name_is_bounded_tells_its_field_and_can_be_part_of_a_key(value: Any) -> None:
    name = CODE.group({"code": value})
    assert name is not None
    assert len(name) <= LONGEST + 1
    assert not any(ord(sign) < 32 for sign in name)
    assert field_of(name) == "code"
    assert group_key("warehouse", "people", name).decode().split("|", 2) == ["warehouse", "people", name]


@given(st.text().filter(encodable), VALUES)
@example(' ["code","x"]', "x")
@example('\ufeff ["code","x"]', "x")
@example("x" * 9999, "x")
@example("a\0acme/Contact/1", "x")
def test_no_address_is_named_as_the_group_of_another_field(address: str, value: Any) -> None:
    name = EMAIL.group({"email": address})
    assert name != CODE.group({"code": value})
    assert name is None or (field_of(name) == "email" and len(name) <= LONGEST + 1 and "\0" not in name)


def test_an_address_is_its_own_name_as_it_always_was() -> None:
    assert [EMAIL.group({"email": one}) for one in (" Ann@X.org ", "", " ", None, 7)] == ["ann@x.org", None, None, None, None]


@pytest.mark.parametrize("body", [{}, {"code": None}, {"code": ""}, {"code": []}, {"code": {}}, {"code": {"deeper": 1}}])
def test_what_is_empty_is_in_no_group(body: dict[str, Any]) -> None:
    assert (CODE if body != {"code": {"deeper": 1}} else grouping("code.other")).group(body) is None
    assert grouping("code.deeper").group({"code": {"deeper": 0}}) == ' ["code.deeper",0]'


KEY = group_key("warehouse", "people", ' ["code","X"]')


async def test_who_stands_is_told_by_which_field_it_was_elected_and_every_record_is_counted() -> None:
    desk = Desk()
    said = [*await desk.said(write("A", 1, committed=1), key=KEY), *await desk.said(write("B", 1, committed=2), key=KEY)]
    assert [(w.op, w.key, w.unique) for w in said] == [
        ("write", "acme/A", "code"),
        ("release", "acme/A", "code"),
        ("write", "acme/B", "code"),
    ]
    assert [(w.op, w.unique) for w in await desk.said(write("A", 2))] == [("write", "")], "by the address"
    total = batches_of(desk.results)[-1].routes["people"]
    assert (total.came, total.passed, total.failed, total.removed) == (3, 2, 0, 1)


async def test_a_full_group_names_its_field_and_not_the_value() -> None:
    desk = Desk()
    full = Group(members={f"acme/Contact/{n}": Member(1, 1, False) for n in range(MOST_MEMBERS)})
    desk.partition.keep("groups", [(KEY, full.encode())])
    assert await desk.tell(write("new", 1), key=KEY) == []
    [dead] = desk.dead
    assert "5,000 records have the same code" in dead.reason
    assert "X" not in dead.reason
    [batch] = batches_of(desk.results)
    [failure] = batch.chunk["people"].failures
    assert failure.faults == [("code", "too many share it", "-")]


async def test_elections_of_groups_of_two_fields_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stands() -> bool:
        desk, other, target = Desk(), Desk(), Delivered.decode(None)
        await desk.tell(*(write(id, 1, committed=n) for n, id in enumerate("BCDEF", 2)))
        [lost] = await desk.said(write("A", 1, committed=1))  # by its address, in a late election
        [won] = await other.said(write("A", 1, committed=1), key=KEY)  # no later revision: a refill, after the flow said `unique: code`
        assert lost.election > won.election
        for offset, one in enumerate((lost, won)):
            apply(target, one, "live", offset)
        return target.winner() is not None

    assert await stands()
    monkeypatch.setattr(delivery, "_older", lambda w, held: w.revision == held.revision and 0 < w.election < held.election)
    assert not await stands()


class Sent(Pipeline):
    """Keeps where everything went."""

    def take(self, outputs: Sequence[Output]) -> list[Write]:
        self.sent = [(out.topic, (out.key or b"").decode(), decode_write(out.value).op) for out in outputs if out.topic != TOPICS.quality]
        return super().take(outputs)


async def test_a_record_joins_by_what_the_flow_now_says_and_leaves_the_group_it_was_in() -> None:
    line = Sent(flow(c=CONTACTS), maps(c=CONTACTS))
    groups, rows = TOPICS.duplicates(bulk=True), TOPICS.writes("warehouse", bulk=True)
    row = f"person|acme/{ID}"
    judged = CONTACTS | {"quality": ["required", "duplicates"]}
    for route, sent in (
        (judged, [(groups, "warehouse|c|a@x.org", "write")]),
        (judged | {"unique": "title"}, [(groups, 'warehouse|c| ["title","CEO"]', "write"), (groups, "warehouse|c|a@x.org", "release")]),
        (
            judged | {"unique": "phone"},
            [(groups, 'warehouse|c| ["phone","1"]', "write"), (groups, 'warehouse|c| ["title","CEO"]', "release")],
        ),
        (CONTACTS, [(rows, row, "write"), (groups, 'warehouse|c| ["phone","1"]', "release")]),
        (CONTACTS, [(rows, row, "write")]),
    ):
        line.stage = process_stage(flow(c=route), SETTINGS, maps(c=route))  # as of a worker that begins anew
        await line.feed(line.row("Contact", ID, 10, 1000, ROW, reason=Reason.SNAPSHOT, run="s", bulk=True))
        assert line.sent == sent


def test_any_record_of_a_route_is_compared_by_what_it_says_is_unique() -> None:
    account = {"from": ["acme/Account"], "to": "warehouse", "map": "account", "quality": ["duplicates"], "unique": "name"}
    [way] = maps(c=account).ways("acme/Account")
    assert way.unique == grouping("name")
