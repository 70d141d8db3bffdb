"""How an engine lets go and takes over, without Kafka: the drain's deadline, who counts as ready, generations, the time it stood still."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from models.settings import Settings
from streams.engine import engine as module
from streams.engine.engine import Engine
from streams.engine.stage import Chunk, Output, Partition, Result, Stage
from streams.engine.store import Memory
from streams.engine.transport import Consumer
from streams.metrics import REBALANCE_SECONDS
from streams.publish import Batches, Ends, TransactionalPublisher
from tests.support.memory import MemoryRecord

NEVER = asyncio.Event


class Publisher(TransactionalPublisher):
    """Keeps what was committed."""

    def __init__(self) -> None:
        super().__init__(Settings(installation="t"), "t")
        self.ends: list[int] = []
        self.stopped = False

    async def send_batched(
        self, batches: Batches, *, offsets: Mapping[TopicPartition, int] | None = None, group: str | None = None
    ) -> Ends:
        self.ends += (offsets or {}).values()
        return {}

    async def stop(self) -> None:
        self.stopped = True


async def echo(chunk: Chunk, partition: Partition) -> Result:
    """Hangs at a record that says so."""
    if any(record.value == b"hang" for record in chunk.records):
        await NEVER().wait()
    return Result([Output("out", b"k", b"v")])


def chunk(number: int, offset: int, value: bytes = b"v") -> Chunk:
    return Chunk("in", number, [MemoryRecord("in", offset, b"k", value, partition=number)])


@pytest.fixture
async def engine(tmp_path: Path) -> Engine:
    settings = Settings(installation="t", state=tmp_path, partitions=4, drain_seconds=0.05)
    made = Engine(settings, [Stage("s", ("in",), (), echo)], lambda _table, _number: Memory())
    for number in (0, 1):
        holding = made._new_holding(number)
        holding.grounds["s"].publisher = Publisher()
        made._holdings[number] = holding
    await made._open({}, 5)
    return made


def publisher(engine: Engine, number: int) -> Any:
    return engine._holdings[number].grounds["s"].publisher


async def until(engine: Engine, number: int, offset: int) -> None:
    while offset not in publisher(engine, number).ends:  # noqa: ASYNC110 - it takes turns of the loop, no time
        await asyncio.sleep(0)


async def test_what_hangs_is_abandoned_at_the_deadline_and_the_rest_is_committed(engine: Engine) -> None:
    engine.accept(chunk(0, 7, b"hang"), 5)
    engine.accept(chunk(1, 3), 5)
    hanging, working = (engine._holdings[number].works["s"] for number in (0, 1))
    await engine.drain()
    assert (hanging.clean, working.clean) == (False, True)
    assert not hanging.mine()
    assert (publisher(engine, 0).ends, publisher(engine, 1).ends) == ([], [4])


async def test_nothing_new_is_begun_once_a_drain_began(engine: Engine) -> None:
    drain = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    engine.accept(chunk(1, 3), 5)
    await drain
    assert publisher(engine, 1).ends == []


async def test_a_partition_that_becomes_free_wakes_the_fetch_at_once(engine: Engine) -> None:
    nothing = asyncio.get_running_loop().create_future()
    fetcher = SimpleNamespace(_create_fetch_waiter=lambda: nothing)
    consumer: Any = SimpleNamespace(engine=engine, kafka=SimpleNamespace(_fetcher=fetcher))
    waiting = asyncio.create_task(Consumer._wait(consumer))
    await turns(20)
    assert not waiting.done()
    engine.buffers.add("in", 0, [MemoryRecord("in", 7, b"k", b"v", partition=0)])
    (found,) = engine.buffers.next()
    engine.accept(found, 5)
    await turns(20)
    assert waiting.done(), "it waits for its time-out"


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_chunk_of_another_generation_or_of_a_foreign_number_is_dropped(engine: Engine) -> None:
    engine.accept(chunk(0, 1), 4)
    engine.accept(chunk(3, 1), 5)
    engine.accept(chunk(0, 9), 5)
    await until(engine, 0, 10)
    assert publisher(engine, 0).ends == [10]
    await engine.drain()


async def test_an_engine_is_ready_only_while_it_hands_out(engine: Engine) -> None:
    assert engine.opened.is_set()
    await engine.drain()
    assert not engine.opened.is_set()
    await engine._open({}, 6)
    assert engine.opened.is_set()
    await engine.drain()


async def test_the_time_in_which_nothing_was_handed_out_is_measured(engine: Engine) -> None:
    before = measured()
    engine.revoked()
    await engine.drain()
    assert engine._stopped_at is not None
    engine._stopped_at -= 3.5
    stopped = await engine._open({}, 6)
    assert stopped >= 3.5
    count, total = measured()
    assert count == before[0] + 1
    assert total == pytest.approx(before[1] + stopped)
    await engine.drain()


def measured() -> tuple[float, float]:
    """How many rebalances, and their seconds."""
    found = {sample.name: sample.value for metric in REBALANCE_SECONDS.collect() for sample in metric.samples if not sample.labels}
    return found["headrace_rebalance_seconds_count"], found["headrace_rebalance_seconds_sum"]


async def test_a_number_that_was_abandoned_or_skipped_a_generation_gives_its_producers_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.accept(chunk(0, 7, b"hang"), 5)
    await engine.drain()
    gone, kept = publisher(engine, 0), publisher(engine, 1)
    await take_over(engine, monkeypatch, {0, 1}, 6)
    assert (gone.stopped, kept.stopped) == (True, False)
    assert publisher(engine, 1) is kept
    await engine.drain()
    await take_over(engine, monkeypatch, {0, 1}, 8)
    assert kept.stopped
    await engine.drain()


async def take_over(engine: Engine, monkeypatch: pytest.MonkeyPatch, numbers: set[int], generation: int) -> None:
    async def nothing(*_: Any) -> Any:
        return {}

    for name in ("_fence", "_offsets"):
        monkeypatch.setattr(engine, name, nothing)
    monkeypatch.setattr(module, "recover", nothing)
    await engine._take_over({TopicPartition("in", number) for number in numbers}, generation)


async def test_a_takeover_that_does_not_let_go_ends_the_process(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stubborn() -> None:
        for _ in range(50):
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    ended: list[str] = []
    monkeypatch.setattr(module, "end", lambda event, **_: ended.append(event))
    engine._takeover = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await engine.drain()
    assert ended == ["takeover does not let go"]
    await engine._takeover


async def test_a_share_is_that_of_the_numbers_held(engine: Engine) -> None:
    assert engine.share() == 0.5
    engine._holdings.pop(1)
    assert engine.share() == 0.25
    engine._holdings.clear()
    assert engine.share() == 0.25  # never nothing: a rate of zero has no call


class Broker:
    """Answers about offsets as a broker does that has not yet written the marker of our last commit."""

    def __init__(self, committed: int | None) -> None:
        self._coordinator, self._committed = self, committed

    async def fetch_committed_offsets(self, parts: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {} if self._committed is None else {tp: OffsetAndMetadata(self._committed, "") for tp in parts}

    async def beginning_offsets(self, parts: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(parts, 0)

    async def end_offsets(self, parts: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(parts, 9)


@pytest.mark.parametrize("committed", [None, 3, 7])
async def test_what_was_kept_goes_on_where_we_committed_whatever_the_broker_knows_yet(engine: Engine, committed: int | None) -> None:
    """A late marker made a takeover tell of a loss, and could have made it read a committed chunk again."""
    kept, other = TopicPartition("in", 0), TopicPartition("in", 1)
    engine._holdings[0].grounds["s"].committed["in"] = 7
    engine.consumer = Broker(committed)
    places = await engine._places([kept, other], engine._holdings)
    assert places == {kept: 7, other: committed or 0}
