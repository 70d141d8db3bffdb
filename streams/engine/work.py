"""One stage on one partition number: chunk → handler → transaction → commit, one chunk after another.

Invariants: the handler never sees two chunks at once; transactions are committed in the order of the chunks; the next chunk may be
handled while the one before commits, and reads its changes; an error out of the handler or a transaction ends the process, unless the
partition was abandoned: then nothing of it counts, since whoever has it now has fenced our producer.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog
from aiokafka import TopicPartition

from models.errors import FatalError, TemporaryError
from streams.engine.fatal import fatal_errors
from streams.engine.stage import Abandoned, Changes, Chunk, Output, Result, Stage, Store
from streams.engine.store import TableStore
from streams.metrics import CHUNK_RECORDS, CHUNK_SECONDS, CHUNKS
from streams.publish import Ends, TransactionalPublisher

RETRY_SECONDS = 0.5
log = structlog.get_logger()


@dataclass(slots=True)
class Ground:
    """What a Work stands on; it outlives a Work when a rebalance gives the partition back to the same process.

    changelogs   topic by table name
    committed    next offset to read, by topic
    """

    publisher: TransactionalPublisher
    stores: Mapping[str, TableStore]
    changelogs: Mapping[str, str]
    group: str
    committed: dict[str, int] = field(default_factory=dict)


class Work:
    """Also the handler's `Partition` (stage.py)."""

    def __init__(self, stage: Stage, number: int, ground: Ground, alive: Callable[[], bool], share: Callable[[], float],
                 done: Callable[["Work", Chunk], None], given_up: Callable[["Work"], None]) -> None:  # fmt: skip
        self.stage, self.number, self.ground = stage, number, ground
        self._alive, self._share, self._done, self._given_up = alive, share, done, given_up
        self._queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._closing = self._lost = False
        self._commit: asyncio.Task[None] | None = None
        self.progress = time.monotonic()
        self.wait_until, self.wait_reason = 0.0, ""
        self._task = asyncio.create_task(self._run(), name=f"{stage.name}.{number}")
        self._task.add_done_callback(fatal_errors("stage failed", lambda: self._lost, stage=stage.name, partition=number))

    # what the handler sees

    def store(self, table: str) -> Store:
        """This partition of a table."""
        return self.ground.stores[table]

    def committed(self, topic: str) -> int:
        """Offset below which everything is committed; 0 for a topic that was never read."""
        return self.ground.committed.get(topic, 0)

    def mine(self) -> bool:
        """False once abandoned, and while we cannot know (no heartbeat for a session timeout)."""
        return not self._lost and self._alive()

    def share(self) -> float:
        """Our share of all partitions."""
        return self._share()

    def waiting(self, reason: str, until: float) -> None:
        """A declared wait; the watchdog lets it pass."""
        self.wait_reason, self.wait_until = reason, until

    # what the engine does with it

    def put(self, chunk: Chunk) -> None:
        """Hand over a chunk; dropped when closing, the next owner reads it again."""
        if not self._closing:
            self._queue.put_nowait(chunk)

    async def drain(self) -> None:
        """Finish and commit what was begun, begin nothing new."""
        self._closing = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)
        await asyncio.wait([self._task])
        if self._commit is not None:
            await asyncio.wait([self._commit])

    def abandon(self) -> None:
        """Count nothing of it any more."""
        self._lost = self._closing = True
        self._task.cancel()
        if self._commit is not None:
            self._commit.cancel()

    @property
    def clean(self) -> bool:
        """Everything that was begun is committed: the ground can be kept."""
        return not self._lost and self._task.done() and (self._commit is None or self._commit.done())

    async def _run(self) -> None:
        while (chunk := await self._queue.get()) is not None:
            started = self.progress = time.monotonic()
            try:
                result = await self.stage.handler(chunk, self)
            except Abandoned:
                if self.mine():
                    raise FatalError(f"{self.stage.name} abandoned partition {self.number}, which is still ours") from None
                self._lost = self._closing = True
                log.info("chunk abandoned", stage=self.stage.name, topic=chunk.topic, partition=chunk.partition)
                self._given_up(self)
                return
            tokens = {table: self.ground.stores[table].stage(changes) for table, changes in result.state.items() if changes}
            if self._commit is not None:
                await self._commit
            self._commit = asyncio.create_task(self._finish(chunk, result, tokens, started))
            self._commit.add_done_callback(fatal_errors("commit failed", lambda: self._lost, stage=self.stage.name, partition=self.number))

    async def _finish(self, chunk: Chunk, result: Result, tokens: Mapping[str, int], started: float) -> None:
        ground = self.ground
        end = chunk.records[-1].offset + 1
        outputs = list(result.outputs)
        for table in tokens:
            topic = ground.changelogs[table]
            outputs += [Output(topic, key, value, partition=self.number) for key, value in _last(result.state[table])]
        ends = await self._send(outputs, {TopicPartition(chunk.topic, chunk.partition): end})
        for table, token in tokens.items():
            ground.stores[table].apply(token, result.state[table], ends.get(TopicPartition(ground.changelogs[table], self.number)))
        ground.committed[chunk.topic] = end
        self.progress = now = time.monotonic()
        self.wait_until = 0.0
        CHUNK_SECONDS.labels(self.stage.name).observe(now - started)
        CHUNK_RECORDS.labels(self.stage.name).inc(len(chunk.records))
        CHUNKS.labels(self.stage.name).inc()
        self._done(self, chunk)

    async def _send(self, outputs: list[Output], offsets: Mapping[TopicPartition, int]) -> Ends:
        while True:
            try:
                return await self.ground.publisher.send(outputs, offsets=offsets, group=self.ground.group)
            except TemporaryError as error:  # nothing of it is visible: the same again, as long as it is ours to do
                log.warning("transaction repeated", stage=self.stage.name, partition=self.number, reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)


def _last(changes: Changes) -> Changes:
    return list(dict(changes).items())
