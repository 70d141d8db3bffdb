"""One stage on one partition number, without Kafka: what is committed, in which parts, and what becomes of records that cannot pass."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition

from models.errors import CodeError, FatalError, PermanentError, TemporaryError
from models.settings import Settings
from streams.engine.stage import Abandoned, Chunk, Output, Partition, Result, Stage
from streams.engine.store import Memory, TableStore
from streams.engine.suspects import ENDS, Suspects
from streams.engine.turns import Turns
from streams.engine.work import Ground, Work
from streams.publish import MAX_RECORD, Batches, Ends, TransactionalPublisher
from tests.support.memory import MemoryRecord

LARGE = b"x" * MAX_RECORD
Handler = Callable[[Chunk, Partition], Any]


class Publisher(TransactionalPublisher):
    """Keeps what was committed: (next offset, [(topic, key, value)])."""

    def __init__(self) -> None:
        super().__init__(Settings(installation="t"), "t")
        self.commits: list[tuple[int, list[tuple[str, bytes | None, bytes | None]]]] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send_batched(
        self, batches: Batches, *, offsets: Mapping[TopicPartition, int] | None = None, group: str | None = None
    ) -> Ends:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        (end,) = (offsets or {}).values()
        self.commits.append((end, [(o.topic, o.key, o.value) for batch in batches.values() for o in batch]))
        return {}


class Bench:
    """A work with its publisher, store and suspects; `ended` are the errors that would have ended the process."""

    def __init__(self, handler: Handler, path: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.publisher, self.store, self.suspects = Publisher(), TableStore(Memory()), Suspects()
        self.suspects.open(path)
        self.done: list[Chunk] = []
        self.given_up: list[Work] = []
        self.ended: list[tuple[str, Any]] = []
        self.alive = True
        self.turns = Turns(lambda: False)
        monkeypatch.setattr("streams.engine.fatal.end", self._end)
        stage = Stage("s", ("t.in.x",), ("t.in.x.bulk",), handler, tables=("table",), **limits)
        ground = Ground(self.publisher, {"table": self.store}, {"table": "t.table-changelog"}, "t", 4, self.suspects)
        self.work = Work(stage, 3, ground, lambda: self.alive, lambda: 0.5, self.done.append, self.given_up.append, self.turns)

    def _end(self, event: str, error: BaseException, *, guilty: Any = None, **_: Any) -> None:
        if not self.ended:  # the real one does not return
            self.suspects.confess(guilty)
            self.ended.append((event, guilty))

    async def run(self, *chunks: Chunk) -> None:
        for chunk in chunks:
            self.work.put(chunk)
        while len(self.done) < len(chunks) and not self.ended:  # noqa: ASYNC110 - it takes turns of the loop, no time
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    @property
    def ends(self) -> list[int]:
        return [end for end, _ in self.publisher.commits]

    def sent(self, topic: str) -> list[Any]:
        return [orjson.loads(value or b"null") for _, out in self.publisher.commits for name, _, value in out if name == topic]


def chunk(*offsets: int, topic: str = "t.in.x") -> Chunk:
    return Chunk(topic, 3, [MemoryRecord(topic, offset, b"key", b"original", partition=3) for offset in offsets])


def echo(large: Sequence[int] = (), *, state: bool = False) -> Handler:
    """Sends each offset to `out` and counts it; of some offsets an output, or a state, that is too large."""

    async def handle(chunk: Chunk, partition: Partition) -> Result:
        count = int((await_none(partition.store("table").get_many([b"n"])[0])) or b"0")
        outputs = [Output("out", b"k", LARGE if r.offset in large and not state else b"%d" % r.offset) for r in chunk.records]
        grown = LARGE if state and any(r.offset in large for r in chunk.records) else b"%d" % (count + len(chunk.records))
        return Result(outputs, {"table": [(b"n", grown)]})

    return handle


def await_none(value: bytes | None) -> bytes | None:
    return value


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("large", [(4,), (0,), (9,), (2, 3, 7), tuple(range(10))])
async def test_only_the_source_of_what_is_too_large_becomes_a_dead_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: tuple[int, ...], state: bool
) -> None:
    b = Bench(echo(large, state=state), tmp_path / "s", monkeypatch)
    await b.run(chunk(*range(10)), chunk(10, 11))
    letters = b.sent("t.dead-letters")
    assert [letter["offset"] for letter in letters] == list(large)
    assert all("above Kafka's limit" in letter["reason"] and letter["redrive_to"] == "t.in.x" for letter in letters)
    assert b.sent("out") == [n for n in range(12) if n not in large]
    assert b.ends == sorted(b.ends)
    assert b.ends[-1] == 12
    assert b.store.get_many([b"n"]) == [b"%d" % (12 - len(large))]
    assert b.ended == []


async def test_a_part_of_a_chunk_sees_the_state_of_the_parts_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bench(echo([1]), tmp_path / "s", monkeypatch)
    b.publisher.gate.clear()
    running = asyncio.create_task(b.run(chunk(0, 1, 2, 3)))
    for _ in range(20):
        await asyncio.sleep(0)
    b.publisher.gate.set()
    await running
    assert b.store.get_many([b"n"]) == [b"3"]


async def test_what_is_drained_commits_the_part_in_hand_and_begins_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bench(echo([3]), tmp_path / "s", monkeypatch)
    b.publisher.gate.clear()
    b.work.put(chunk(0, 1, 2, 3))
    for _ in range(20):
        await asyncio.sleep(0)
    draining = asyncio.create_task(b.work.drain())
    await asyncio.sleep(0)
    b.publisher.gate.set()
    await draining
    assert b.ends[0] == 2
    assert b.work.clean
    assert b.sent("out") == list(range(b.ends[-1]))


async def test_a_chunk_that_ended_the_process_thrice_loses_its_guilty_record_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(chunk: Chunk, partition: Partition) -> Result:
        if any(r.offset == 5 for r in chunk.records):
            raise ValueError("a rule let an error out")
        return Result([Output("out", b"k", b"%d" % r.offset) for r in chunk.records])

    passed: list[int] = []
    lives, ended = 0, True
    while ended:
        lives += 1
        b = Bench(handle, tmp_path / "s", monkeypatch)
        start = (passed[-1] + 1) if passed else 0
        await b.run(chunk(*range(start, 8), topic="t.in.x.bulk"))
        passed += b.sent("out")
        ended = b.ended == [("stage failed", ("s", 3))]
    assert ENDS < lives <= ENDS + 4
    (letter,) = b.sent("t.dead-letters")
    assert (letter["offset"], letter["retryable"], letter["redrive_to"]) == (5, True, "t.in.x")
    assert "ended the process again and again" in letter["reason"]
    assert passed == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("error", [FatalError("Kafka is odd"), OSError("disk"), TemporaryError("down"), PermanentError("no")])
async def test_an_error_that_is_not_the_records_fault_never_takes_a_chunk_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def handle(chunk: Chunk, partition: Partition) -> Result:
        raise error

    for _ in range(ENDS + 2):
        b = Bench(handle, tmp_path / "s", monkeypatch)
        await b.run(chunk(5))
        assert b.ended
    assert not b.suspects.condemned(("s", 3), chunk(5))


async def test_a_store_that_cannot_be_read_is_not_the_records_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Memory):
        def get_many(self, keys: list[bytes]) -> list[bytes | None]:
            raise RuntimeError("IO error")

    for _ in range(ENDS + 2):
        b = Bench(echo(), tmp_path / "s", monkeypatch)
        b.work.ground.stores["table"]._backend = Broken()
        await b.run(chunk(5))
        assert b.ended
    assert not b.suspects.condemned(("s", 3), chunk(5))


async def test_a_fault_of_a_targets_code_is_the_records_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(chunk: Chunk, partition: Partition) -> Result:
        raise CodeError("target raised KeyError")

    for _ in range(ENDS):
        b = Bench(handle, tmp_path / "s", monkeypatch)
        await b.run(chunk(5))
    again = Suspects()
    again.open(tmp_path / "s")
    assert again.condemned(("s", 3), chunk(5))


async def test_a_commit_that_fails_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(ENDS + 1):
        b = Bench(echo(), tmp_path / "s", monkeypatch)
        b.publisher.errors = [FatalError("fenced")]
        await b.run(chunk(5), chunk(6))
        assert b.ended[0] == ("commit failed", None)
    again = Suspects()
    again.open(tmp_path / "s")
    assert not again.condemned(("s", 3), chunk(5))


async def test_a_transaction_that_kafka_could_not_take_is_sent_again_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.engine.work.RETRY_SECONDS", 0)
    b = Bench(echo(), tmp_path / "s", monkeypatch)
    b.publisher.errors = [TemporaryError("away"), TemporaryError("away")]
    await b.run(chunk(0, 1), chunk(2))
    assert b.sent("out") == [0, 1, 2]


async def test_a_handler_that_swallows_its_cancellation_commits_nothing_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def handle(chunk: Chunk, partition: Partition) -> Result:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Result([Output("out", b"k", b"1")])

    b = Bench(handle, tmp_path / "s", monkeypatch)
    b.work.put(chunk(0))
    await begun.wait()
    b.work.abandon()
    await asyncio.wait([b.work._task])
    await asyncio.sleep(0)
    assert b.publisher.commits == []
    assert not b.work.clean
    assert b.ended == []


async def test_an_abandoned_chunk_is_given_up_where_the_partition_is_lost_and_fatal_where_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handle(chunk: Chunk, partition: Partition) -> Result:
        raise Abandoned

    lost = Bench(handle, tmp_path / "s", monkeypatch)
    lost.alive = False
    lost.work.put(chunk(0))
    await asyncio.wait([lost.work._task])
    assert lost.given_up == [lost.work]
    assert not lost.work.mine()
    ours = Bench(handle, tmp_path / "s", monkeypatch)
    await ours.run(chunk(0))
    assert ours.ended == [("stage failed", ("s", 3))]
    assert not ours.suspects.condemned(("s", 3), chunk(0))


async def test_a_wait_is_over_when_it_says_so_and_the_time_counts_from_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bench(echo(), tmp_path / "s", monkeypatch)
    b.work.progress = 0.0
    b.work.waiting("rate limit", 1e12)
    assert (b.work.wait_reason, b.work.wait_until) == ("rate limit", 1e12)
    b.work.waiting("", 0.0)
    assert (b.work.wait_reason, b.work.wait_until) == ("", 0.0)
    assert b.work.progress > 0
    await b.work.drain()
