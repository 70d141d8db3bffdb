"""Which chunk is handed out next."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.engine.buffers import Buffers
from streams.engine.stage import Chunk, Partition, Result, Stage


@dataclass
class Fake:
    topic: str
    offset: int
    partition: int = 0
    timestamp: int = 0
    key: bytes | None = b"k"
    value: bytes | None = b"v"
    headers: Sequence[tuple[str, bytes]] = field(default_factory=list)


async def nothing(_chunk: Chunk, _partition: Partition) -> Result:
    return Result()


def buffers(**limits: Any) -> Buffers:
    return Buffers([Stage("s", ("a", "b"), ("a.bulk",), nothing, **limits)])


def records(topic: str, start: int, count: int, size: int = 1) -> list[Fake]:
    return [Fake(topic, n, value=b"v" * size) for n in range(start, start + count)]


def done(b: Buffers, topic: str = "a", partition: int = 0) -> None:
    b.done(Chunk(topic, partition, []))


def taken(b: Buffers) -> list[tuple[str, int, int]]:
    return [(c.topic, c.records[0].offset, len(c.records)) for c in b.next()]


def test_at_most_depth_chunks_of_a_partition_are_out_until_one_is_done() -> None:
    b = buffers(live_records=10, depth=2)
    b.add("a", 0, records("a", 0, 35))
    b.add("a", 1, records("a", 0, 5))
    assert taken(b) == [("a", 0, 10), ("a", 10, 10), ("a", 0, 5)]
    assert taken(b) == []
    done(b)
    assert taken(b) == [("a", 20, 10)]


def test_under_steady_live_load_each_third_chunk_is_a_bulk_one() -> None:
    b = buffers(live_records=1, bulk_records=5, depth=1)
    b.add("a", 0, records("a", 0, 20))
    b.add("a.bulk", 0, records("a.bulk", 0, 20))
    order = []
    for _ in range(11):
        order += [topic for topic, _, _ in taken(b)]
        done(b, order[-1])
    assert order == ["a", "a", "a.bulk"] * 3 + ["a", "a"]


def test_bulk_waits_while_a_live_record_of_that_partition_number_waits_and_only_there() -> None:
    b = buffers(live_records=10, bulk_records=5, depth=2, bulk_chunks=2)
    for number in (0, 1):
        b.add("a.bulk", number, records("a.bulk", 0, 20))
    b.add("a", 0, records("a", 0, 30))
    assert taken(b) == [("a", 0, 10), ("a", 10, 10), ("a.bulk", 0, 5)]
    done(b)
    assert taken(b) == [("a.bulk", 0, 5)]
    done(b)
    assert taken(b) == [("a", 20, 10)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_live_chunks_that_are_never_all_through_do_not_starve_bulk(depth: int) -> None:
    b = buffers(live_records=1, bulk_records=1, depth=depth)
    b.add("a", 0, records("a", 0, 60))
    b.add("a.bulk", 0, records("a.bulk", 0, 60))
    out, order = list(b.next()), []
    for _ in range(30):
        b.done(first := out.pop(0))
        order.append(first.topic)
        out += b.next()
        assert len(out) == depth
    assert 9 <= order.count("a.bulk") <= 11


def test_bulk_leaves_the_last_place_of_the_depth_to_live() -> None:
    b = buffers(bulk_records=5, depth=2)
    b.add("a.bulk", 0, records("a.bulk", 0, 20))
    assert taken(b) == [("a.bulk", 0, 5)]
    b.add("a", 0, records("a", 0, 1))
    assert taken(b) == [("a", 0, 1)]


def test_with_depth_one_bulk_still_goes_on() -> None:
    b = buffers(bulk_records=5, depth=1)
    b.add("a.bulk", 0, records("a.bulk", 0, 6))
    assert taken(b) == [("a.bulk", 0, 5)]
    done(b, "a.bulk")
    assert taken(b) == [("a.bulk", 5, 1)]


def test_of_all_partitions_only_a_few_bulk_chunks_are_out_in_turn_and_nobody_expects_more() -> None:
    b = buffers(bulk_records=5, depth=2, bulk_chunks=2)
    for number in range(3):
        b.add("a.bulk", number, records("a.bulk", 0, 10))
    first = list(b.next())
    assert [chunk.partition for chunk in first] == [0, 1]
    assert (b.busy("s", 2), b.due("s", 2)) == (True, False)
    b.add("a", 2, records("a", 0, 1))
    assert taken(b) == [("a", 0, 1)], "what is live does not wait for a turn"
    done(b, "a", 2)
    gone = []
    for chunk in first:
        b.done(chunk)
        gone += [(one.partition, one.records[0].offset) for one in b.next()]
    assert gone == [(2, 0), (0, 5)]
    b.clear()
    b.add("a.bulk", 1, records("a.bulk", 0, 5))
    assert len(taken(b)) == 1, "those of another generation count no more"


def test_live_topics_take_turns() -> None:
    b = buffers(live_records=1, depth=4)
    b.add("a", 0, records("a", 0, 9))
    b.add("b", 0, records("b", 0, 9))
    assert [topic for topic, _, _ in taken(b)] == ["a", "b", "a", "b"]


def test_a_chunk_is_bounded_in_bytes_but_a_record_larger_than_that_still_goes_alone() -> None:
    b = buffers(max_bytes=1000, depth=9)
    b.add("a", 0, [*records("a", 0, 3, 300), *records("a", 3, 1, 5000), *records("a", 4, 1, 1)])
    assert taken(b) == [("a", 0, 2), ("a", 2, 1), ("a", 3, 1), ("a", 4, 1)]


def test_more_is_wanted_until_a_chunk_waits_in_records_or_bytes() -> None:
    b = buffers(live_records=3, max_bytes=1000, depth=1)
    b.add("a", 0, records("a", 0, 1))
    assert taken(b) == [("a", 0, 1)]
    b.add("a", 0, records("a", 1, 2))
    assert b.wants("a", 0)
    b.add("a", 0, records("a", 3, 1))
    assert not b.wants("a", 0)
    b.add("b", 0, records("b", 0, 1, 1000))
    assert not b.wants("b", 0)
    assert b.wants("b", 1)
    done(b)
    assert taken(b) == [("b", 0, 1)]
    done(b, "b")
    assert taken(b) == [("a", 1, 3)]
    assert b.wants("a", 0)


def test_a_topic_read_by_two_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="read by two stages"):
        Buffers([Stage("s", ("a",), (), nothing), Stage("t", (), ("a",), nothing)])


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "a.bulk"]), st.integers(0, 2), st.integers(1, 30)), max_size=20),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_everything_added_goes_out_once_and_in_order(adds: list[tuple[str, int, int]], depth: int, bulk_chunks: int) -> None:
    b = buffers(live_records=7, bulk_records=3, depth=depth, bulk_chunks=bulk_chunks)
    added: dict[tuple[str, int], int] = {}
    seen: dict[tuple[str, int], list[int]] = {}
    out: list[Chunk] = []

    def hand_out() -> None:
        for chunk in list(b.next()):
            out.append(chunk)
            seen.setdefault((chunk.topic, chunk.partition), []).extend(r.offset for r in chunk.records)
        assert b.live_out == sum(one.topic != "a.bulk" for one in out)
        assert len(out) - b.live_out <= bulk_chunks

    for topic, number, count in adds:
        start = added.get((topic, number), 0)
        b.add(topic, number, records(topic, start, count))
        added[topic, number] = start + count
        hand_out()
    while out:
        b.done(out.pop())
        hand_out()
    assert seen == {key: list(range(count)) for key, count in added.items()}
    assert not any(b.busy("s", number) for number in range(3))


class Holding(set[str]):
    """Topics that people hold."""

    async def ready(self) -> None: ...

    def __call__(self, topic: str) -> bool:
        return topic in self


def test_nothing_of_a_held_topic_goes_out_the_others_go_on_and_nobody_is_expected_to_work_on_it() -> None:
    hold = Holding({"a", "a.bulk"})
    b = buffers(live_records=10, depth=2, hold=hold)
    b.add("a", 0, records("a", 0, 20))
    b.add("a.bulk", 0, records("a.bulk", 0, 5))
    assert taken(b) == []
    assert (b.busy("s", 0), b.due("s", 0), b.wants("a", 0), b.wants("b", 0)) == (True, False, False, True)
    b.add("b", 0, records("b", 0, 3))
    assert b.due("s", 0)
    assert taken(b) == [("b", 0, 3)]
    done(b, "b")
    hold.clear()
    assert taken(b)[:1] == [("a", 0, 10)]
    assert b.due("s", 0)
