"""One stage on one partition number: chunk → handler → transaction → commit, one chunk after another.

Invariants: the handler never sees two chunks at once; transactions are committed in the order of the chunks; the next chunk may be
handled while the one before commits, and reads its changes; an error out of the handler or a transaction ends the process, unless the
partition was abandoned: then nothing of it counts, since whoever has it now has fenced our producer.

A chunk is taken apart where it must be: one that ended the process again and again (suspects.py), and one with an output that Kafka does
not take. Each part is a transaction of its own, in order, until the guilty record is alone: it becomes a dead letter, the rest goes on.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

import structlog
from aiokafka import TopicPartition

from models.errors import CodeError, FatalError, HeadraceError, PermanentError, TemporaryError
from streams.engine.fatal import fatal_errors
from streams.engine.stage import Abandoned, Changes, Chunk, Output, Result, Stage, Store
from streams.engine.store import TableStore, mark_key
from streams.engine.suspects import Suspects, halves
from streams.engine.turns import Turns
from streams.letters import dead_letter_output
from streams.metrics import CHUNK_RECORDS, CHUNK_SECONDS, CHUNKS
from streams.publish import Batches, Ends, TransactionalPublisher, batched
from streams.topics import Topics

RETRY_SECONDS = 0.5
log = structlog.get_logger()
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass(slots=True)
class Ground:
    """What a Work stands on; it outlives a Work when a rebalance gives the partition back to the same process.

    changelogs   topic by table name
    group        the installation
    partitions   of every topic
    committed    next offset to read, by topic
    """

    publisher: TransactionalPublisher
    stores: Mapping[str, TableStore]
    changelogs: Mapping[str, str]
    group: str
    partitions: int
    suspects: Suspects
    committed: dict[str, int] = field(default_factory=dict)


class Work:
    """Also the handler's `Partition` (stage.py)."""

    def __init__(self, stage: Stage, number: int, ground: Ground, alive: Callable[[], bool], share: Callable[[], float],
                 done: Callable[[Chunk], None], given_up: Callable[["Work"], None], turns: Turns) -> None:  # fmt: skip
        self.stage, self.number, self.ground = stage, number, ground
        self._alive, self._share, self._done, self._given_up, self._turns = alive, share, done, given_up, turns
        self._queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._closing = self._lost = False
        self._commit: asyncio.Task[None] | None = None
        self._handled: Chunk | None = None
        self.progress = time.monotonic()
        self.wait_until, self.wait_reason = 0.0, ""
        self._task = asyncio.create_task(self._run(), name=f"{stage.name}.{number}")
        self.key = (stage.name, number)
        self._task.add_done_callback(fatal_errors("stage failed", self._abandoned, guilty=self.key, stage=stage.name, partition=number))

    # what the handler sees

    def store(self, table: str) -> Store:
        """This partition of a table."""
        return _Readable(table, self.ground.stores[table])

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
        """A declared wait, or with a time in the past its end; the watchdog lets it pass."""
        now = time.monotonic()
        if until > now:
            self.wait_reason, self.wait_until = reason, until
            self.ground.suspects.rests(self.key)
        else:
            self.wait_reason, self.wait_until, self.progress = "", 0.0, now
            if self._handled is not None:
                self.ground.suspects.begins(self.key, self._handled)

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
        self._let_go()
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
            if chunk.topic in self.stage.bulk:
                await self._turns.bulk(lambda: not self._queue.empty())
            todo = [chunk]
            while todo and (todo[0] is chunk or not self._closing):  # the rest of one that was taken apart was not begun
                part = todo.pop(0)
                if (share := self.ground.suspects.share(self.key, part)) < len(part.records):
                    todo = [*halves(part, share), *todo]
                    continue
                try:
                    result = self._condemned(part) or await self._handle(part)
                except Abandoned:
                    self._give_up(part)
                    return
                if self._lost:
                    return
                changes = self._marked(part, {table: _last(changed) for table, changed in result.state.items() if changed})
                try:
                    batches = self._batches(result.outputs, changes)
                except PermanentError as error:
                    if len(part.records) > 1:
                        todo = [*halves(part), *todo]
                        continue
                    changes = self._marked(part, {})
                    batches = self._batches([self._letter(part, error)], changes)
                tokens = {table: self.ground.stores[table].stage(changed) for table, changed in changes.items()}
                if self._commit is not None:
                    await self._commit
                self._commit = asyncio.create_task(self._finish(part, batches, changes, tokens, started, chunk if not todo else None))
                self._commit.add_done_callback(fatal_errors("commit failed", self._abandoned, stage=self.stage.name, partition=self.number))

    async def _handle(self, chunk: Chunk) -> Result:
        self._handled = chunk
        self.ground.suspects.begins(self.key, chunk)
        try:
            result = await self.stage.handler(chunk, self)
        except (HeadraceError, Abandoned, OSError) as error:
            if not isinstance(error, CodeError):  # something else is wrong than these records
                self._let_go()
            raise
        self._let_go()
        return result

    def _let_go(self) -> None:
        self._handled = None
        self.ground.suspects.rests(self.key)

    def _abandoned(self) -> bool:
        return self._lost

    def _give_up(self, chunk: Chunk) -> None:
        if self.mine():
            raise FatalError(f"{self.stage.name} abandoned partition {self.number}, which is still ours")
        self._lost = self._closing = True
        log.info("chunk abandoned", stage=self.stage.name, topic=chunk.topic, partition=chunk.partition)
        self._given_up(self)

    def _condemned(self, chunk: Chunk) -> Result | None:
        if not self.ground.suspects.condemned(self.key, chunk):
            return None
        error = CodeError("handling this record ended the process again and again: see its log, mend the code or the record, then redrive")
        return Result([self._letter(chunk, error, retryable=True)])

    def _letter(self, chunk: Chunk, error: Exception, *, retryable: bool = False) -> Output:
        (record,) = chunk.records
        return dead_letter_output(
            self.stage.word or self.stage.name,
            record,
            error,
            topics=Topics(self.ground.group),
            redrive_to=chunk.topic.removesuffix(".bulk"),
            retryable=retryable,
        )

    def _marked(self, chunk: Chunk, changes: dict[str, Changes]) -> dict[str, Changes]:
        """With the mark of how far the topic is read by then (loss.py), in the first table there is."""
        for table in self.ground.stores:
            return {**changes, table: [*changes.get(table, ()), (mark_key(chunk.topic), b"%d" % (chunk.records[-1].offset + 1))]}
        return changes

    def _batches(self, outputs: Sequence[Output], changes: Mapping[str, Changes]) -> Batches:
        """What one transaction sends. Raises PermanentError for a record that Kafka would refuse."""
        logged = [
            Output(self.ground.changelogs[table], key, value, partition=self.number)
            for table, changed in changes.items()
            for key, value in changed
        ]
        return batched([*outputs, *logged], self.ground.partitions)

    async def _finish(
        self, part: Chunk, batches: Batches, changes: Mapping[str, Changes], tokens: Mapping[str, int], started: float, whole: Chunk | None
    ) -> None:
        """One transaction; `whole` is the chunk that is done with it."""
        ground = self.ground
        end = part.records[-1].offset + 1
        ends = await self._send(batches, {TopicPartition(part.topic, part.partition): end})
        for table, token in tokens.items():
            ground.stores[table].apply(token, changes[table], ends.get(TopicPartition(ground.changelogs[table], self.number)))
        ground.committed[part.topic] = end
        ground.suspects.passed(self.key, part.topic, end)
        self.progress = now = time.monotonic()
        self.wait_until = 0.0
        CHUNK_RECORDS.labels(self.stage.name).inc(len(part.records))
        if whole is not None:
            CHUNK_SECONDS.labels(self.stage.name).observe(now - started)
            CHUNKS.labels(self.stage.name).inc()
            self._done(whole)

    async def _send(self, batches: Batches, offsets: Mapping[TopicPartition, int]) -> Ends:
        while True:
            try:
                return await self.ground.publisher.send_batched(batches, offsets=offsets, group=self.ground.group)
            except TemporaryError as error:  # nothing of it is visible: the same again, as long as it is ours to do
                log.warning("transaction repeated", stage=self.stage.name, partition=self.number, reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)


class _Readable:
    """A store whose faults are ours, not those of the records being handled."""

    def __init__(self, table: str, store: TableStore) -> None:
        self._table, self._store = table, store

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._read(self._store.get_many, keys)

    def page(self, prefix: bytes, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        return self._read(self._store.page, prefix, after, most)

    def _read(self, read: Callable[[*Ts], T], *args: *Ts) -> T:
        try:
            return read(*args)
        except Exception as error:
            raise FatalError(
                f"table {self._table} cannot be read ({type(error).__name__}): look at the disk of the state folder"
            ) from error


def _last(changes: Changes) -> Changes:
    return list(dict(changes).items())
