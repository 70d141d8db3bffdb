"""Duplicates by mail address: one of them stands whatever the interleaving, the others are held, and come back when it goes."""

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import process
from agents.duplicates import duplicates_stage, group_key
from agents.rules import delivery
from agents.rules.delivery import Delivered, apply
from agents.rules.duplicates import MOST_MEMBERS, Group, Member, grouping
from agents.rules.identity import move
from agents.rules.writes import decode_write, encode_write
from models.dead_letter import DeadLetter
from models.errors import FatalError
from models.write import Op, Write
from streams.engine.stage import Chunk, Result
from streams.quality import batches_of
from tests.support.flows import CONTACTS, PEOPLE, maps
from tests.support.memory import MemoryPartition, MemoryRecord
from tests.support.pipeline import SETTINGS, TOPICS
from tests.support.rules_world import scenario

KEY = group_key("warehouse", "people", "a@x.org")
MANY = 600


def wrong(seeds: range) -> list[str]:
    return [told for seed in seeds if (told := scenario(seed, groups=True))]


def test_one_record_of_each_address_stands_whatever_the_interleaving() -> None:
    assert wrong(range(MANY)) == []


def test_a_group_that_is_never_left_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stays(keys: Any, key: str | None, *args: Any) -> list[str]:
        left = move(keys, key, *args)
        return [] if key is None or "@" in key else left

    monkeypatch.setattr(process, "move", stays)
    assert wrong(range(100))


def write(id: str, revision: int, committed: int = 1, op: Op = Op.WRITE, **more: Any) -> Write:
    body = {"email": "a@x.org", "n": revision} if op is Op.WRITE else None
    known: dict[str, Any] = {"on_delete": "tombstone", "key": f"acme/{id}", **more}
    return Write(
        op=op,
        route="people",
        object="person",
        source=f"acme/Contact/{id}",
        order=0,
        revision=revision,
        body=body,
        committed=committed,
        **known,
    )


class Desk:
    """The stage with its table; what it says is applied to target keys as the writer does, when it is asked to."""

    def __init__(self) -> None:
        self.partition, self.next = MemoryPartition(), {"live": 0, "bulk": 0}
        self.stage = duplicates_stage(SETTINGS)
        self.results: list[MemoryRecord] = []
        self.dead: list[DeadLetter] = []

    async def tell(self, *writes: Write, lane: str = "live", key: bytes = KEY) -> list[tuple[str, str]]:
        """(op, id) of what it says."""
        return [(w.op, w.key.removeprefix("acme/")) for w in await self.said(*writes, lane=lane, key=key)]

    async def said(self, *writes: Write, lane: str = "live", key: bytes = KEY) -> list[Any]:
        topic = TOPICS.duplicates(bulk=lane == "bulk")
        records = [MemoryRecord(topic, self.next[lane] + n, key, encode_write(one)) for n, one in enumerate(writes)]
        self.next[lane] += len(writes)
        return await self.feed(records)

    async def feed(self, records: list[MemoryRecord]) -> list[Any]:
        result: Result = await self.stage.handler(Chunk(records[0].topic, 0, records), self.partition)
        for table, changes in result.state.items():
            self.partition.keep(table, changes)
        self.results += [MemoryRecord(out.topic, 0, out.key, out.value) for out in result.outputs if out.topic == TOPICS.quality]
        self.dead += [DeadLetter.model_validate_json(out.value or b"") for out in result.outputs if out.topic == TOPICS.dead_letters]
        return [decode_write(out.value) for out in result.outputs if ".writes.warehouse" in out.topic]


async def test_the_newest_stands_then_the_lowest_id_and_the_others_are_released() -> None:
    desk = Desk()
    assert await desk.tell(write("B", 1, committed=5)) == [("write", "B")]
    assert await desk.tell(write("A", 1, committed=5)) == [("release", "B"), ("write", "A")], "as new, lower id"
    assert await desk.tell(write("C", 1, committed=4)) == [("release", "C")], "older"
    assert await desk.tell(write("B", 2, committed=6)) == [("release", "A"), ("write", "B")], "newer"


async def test_the_next_one_comes_back_whole_when_the_winner_leaves_and_nothing_is_said_of_who_left() -> None:
    desk = Desk()
    await desk.tell(write("A", 1, committed=1), write("B", 1, committed=2))
    [back] = await desk.said(write("B", 2, op=Op.RELEASE))
    assert (back.op, back.key, orjson.loads(bytes(back.body)), back.always) == ("write", "acme/A", {"email": "a@x.org", "n": 1}, True)
    assert await desk.tell(write("A", 2, op=Op.RELEASE)) == []


async def test_what_is_late_by_the_other_lane_changes_nothing() -> None:
    desk = Desk()
    await desk.tell(write("A", 5, committed=5))
    await desk.tell(write("A", 7, op=Op.RELEASE))
    assert await desk.tell(write("A", 6, committed=6), lane="bulk") == []
    await desk.tell(write("A", 9, committed=7))
    assert await desk.tell(write("A", 8, op=Op.RELEASE), lane="bulk") == []


async def test_of_two_elections_of_one_revision_the_later_speaks_though_the_lanes_overtake_each_other() -> None:
    desk, target = Desk(), Delivered.decode(None)
    first = await desk.said(write("A", 3, committed=1))
    lost = await desk.said(write("B", 1, committed=2), lane="bulk")
    back = await desk.said(write("B", 2, op=Op.RELEASE))
    of_a = [w for w in (*first, *back, *lost) if w.key == "acme/A"]  # the bulk lane is the slow one
    assert [w.op for w in of_a] == ["write", "write", "release"]
    for offset, one in enumerate(of_a):
        apply(target, one, "bulk" if one.op == "release" else "live", offset)
    assert target.winner() is not None


async def test_a_write_that_nobody_had_to_decide_speaks_after_the_duplicates_are_no_longer_looked_for() -> None:
    desk, target = Desk(), Delivered.decode(None)
    for offset, one in enumerate([*await desk.said(write("A", 3, committed=2)), *await desk.said(write("B", 1, committed=9))]):
        if one.key == "acme/A":
            apply(target, one, "live", offset)
    assert target.winner() is None
    apply(target, decode_write(encode_write(write("A", 3))), "live", 9)
    assert target.winner() is not None


async def test_without_elections_it_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_older", lambda write, held: write.revision < held.revision)
    with pytest.raises(AssertionError):
        await test_of_two_elections_of_one_revision_the_later_speaks_though_the_lanes_overtake_each_other()


async def test_a_chunk_that_comes_again_after_its_state_was_kept_says_everything_again() -> None:
    desk = Desk()
    record = [MemoryRecord(TOPICS.duplicates(), n, KEY, encode_write(write(id, 1, committed=n))) for n, id in enumerate("AB")]
    assert [(w.op, w.key) for w in await desk.feed(record)] == [("write", "acme/A"), ("release", "acme/A"), ("write", "acme/B")]
    assert {(w.op, w.key) for w in await desk.feed(record)} == {("release", "acme/A"), ("write", "acme/B")}


async def test_a_loser_is_released_also_where_deletes_are_ignored() -> None:
    desk, target = Desk(), Delivered.decode(None)
    [first] = await desk.said(write("A", 1, on_delete="ignore"))
    [lost] = [w for w in await desk.said(write("B", 1, committed=9, on_delete="ignore")) if w.key == "acme/A"]
    apply(target, first, "live", 0)
    assert apply(target, lost, "live", 1).call
    assert lost.successor == "acme/B"


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.integers(1, 3)), min_size=1, max_size=6, unique_by=lambda pair: pair[0]))
def test_who_stands_does_not_depend_on_the_order(members: list[tuple[str, int]]) -> None:
    found = set()
    for some in itertools.permutations(members):
        group = Group(members={source: Member(1, committed, True) for source, committed in some})
        found.add(group.winner())
    assert len(found) == 1


async def test_results_count_every_join_once_and_name_who_stands() -> None:
    desk = Desk()
    await desk.tell(write("A", 1, committed=1), write("B", 1, committed=2), write("C", 1, committed=1), write("B", 2, op=Op.RELEASE))
    [batch] = batches_of(desk.results)
    total, chunk = batch.routes["people"], batch.chunk["people"]
    assert (total.came, total.passed, total.failed, total.removed) == (3, 1, 0, 2)
    assert chunk.held == [("acme/Contact/A", "acme/Contact/B"), ("acme/Contact/C", "acme/Contact/B")]
    await desk.tell(write("C", 2, committed=9), write("C", 3, committed=10))
    assert [b.chunk["people"].held for b in batches_of(desk.results)] == [[("acme/Contact/A", "acme/Contact/C")]]


@pytest.mark.parametrize(
    ("key", "value"),
    [(None, b"{}"), (b"\xff|", b"{}"), (b"nobar", None), (KEY, b"[" * 9), (KEY, None), (b"nobar", encode_write(write("A", 1)))],
)
async def test_what_is_no_write_is_a_dead_letter_and_the_others_go_on(key: bytes | None, value: bytes | None) -> None:
    desk = Desk()
    good = MemoryRecord(TOPICS.duplicates(), 1, KEY, encode_write(write("A", 1)))
    assert [w.key for w in await desk.feed([MemoryRecord(TOPICS.duplicates(), 0, key, value), good])] == ["acme/A"]
    assert len(desk.dead) == 1


async def test_an_address_that_thousands_share_is_refused_by_name() -> None:
    desk = Desk()
    full = Group(members={f"acme/Contact/{n}": Member(1, 1, False) for n in range(MOST_MEMBERS)})
    desk.partition.keep("groups", [(KEY, full.encode())])
    assert await desk.tell(write("new", 1)) == []
    [dead] = desk.dead
    assert "have the same email" in dead.reason
    assert "a@x.org" not in dead.reason
    assert await desk.tell(write("7", 2)) == [("write", "7")]


@pytest.mark.parametrize("raw", [b"", b"{", b"[9,{},0,0]", b'[1,{"a":1},0,0]'])
def test_a_group_that_cannot_be_read_is_fatal(raw: bytes) -> None:
    with pytest.raises(FatalError, match="table groups"):
        Group.decode(raw)


def test_addresses_are_compared_where_the_target_does_not_name_records_by_them() -> None:
    strict = {"quality": ["required", "duplicates"]}
    [way] = maps(c=CONTACTS | strict).ways("acme/Contact")
    assert way.unique == grouping("email", mail=True)
    for route in (
        CONTACTS,
        CONTACTS | strict | {"key": "email"},
        PEOPLE | strict,
        CONTACTS | strict | {"from": ["acme/Account"], "map": "account"},
    ):
        assert [way.unique for source in route["from"] for way in maps(c=route).ways(source)] == [None] * len(route["from"])
