"""What this process owns and how it comes and goes: takeover, hand-out, drain, release.

Invariants:
- Takeover of a partition number fences first (a producer for every stage), then reads committed offsets and recovers the stores,
  then works.
- A number that comes back in the very next generation, and whose work was all committed, keeps its producers and stores: nobody
  else can have had it in between.
- Hand-out happens only between `begin_takeover`'s end and the next `drain`; chunks of another generation are dropped unseen.
- A partition whose log lost what was not read is not read at all until a person accepts that; the others go on (loss.py).
- What is not drained in time is abandoned: its tasks are cancelled, its producers given up, its stores closed and recovered anew.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from models.errors import FatalError
from models.settings import Settings
from streams.engine.buffers import Buffers
from streams.engine.fatal import end, fatal_errors
from streams.engine.loss import Loss, letter, start_at, told
from streams.engine.recovery import recover
from streams.engine.stage import Chunk, Stage
from streams.engine.store import Backend, TableStore
from streams.engine.suspects import Suspects
from streams.engine.turns import Turns
from streams.engine.work import Ground, Work
from streams.metrics import LOST, REBALANCE_SECONDS, REBALANCES
from streams.publish import TransactionalPublisher
from streams.topics import Topics

STARTS_AT_ONCE = 8
ACCEPT_SECONDS = 2.0
log = structlog.get_logger()


@dataclass(slots=True)
class Holding:
    """One partition number: its stores by table, and per stage its ground and its work."""

    number: int
    stores: dict[str, TableStore]
    grounds: dict[str, Ground]
    works: dict[str, Work]


class Engine:
    """One per process. `backend` makes the place of a table's partition."""

    def __init__(self, settings: Settings, stages: Sequence[Stage], backend: Callable[[str, int], Backend]) -> None:
        self.settings, self.stages = settings, stages
        self.partitions = settings.partitions
        self.buffers = Buffers(stages)
        self.turns = Turns(lambda: self.buffers.live_out > 0)
        self.tables = tuple(dict.fromkeys(table for stage in stages for table in stage.tables))
        self.changelogs = {table: Topics(settings.installation).changelog(table) for table in self.tables}
        self.suspects = Suspects()
        self.consumer: AIOKafkaConsumer | None = None
        self.resume: Callable[[], Awaitable[None]] = _nothing
        self.fetching = asyncio.Lock()
        self.opened, self.wake = asyncio.Event(), asyncio.Event()
        self.ready = asyncio.Event()  # opened once, for Faust; whether work is handed out now is `opened`
        self.generation = -1
        self._backend = backend
        self._holdings: dict[int, Holding] = {}
        self._takeover: asyncio.Task[None] | None = None
        self.lost: dict[TopicPartition, Loss] = {}
        self._acceptance: asyncio.Task[None] | None = None
        self._heartbeat = time.monotonic()
        self._stopped_at: float | None = None

    # what others ask

    def held(self) -> tuple[int, Iterable[int]]:
        """Generation and partition numbers last worked on, for the assignor."""
        return self.generation, self._holdings.keys()

    def works(self) -> list[Work]:
        """Every work of this process."""
        return [work for holding in self._holdings.values() for work in holding.works.values()]

    def stores(self) -> list[TableStore]:
        """Every store of this process."""
        return [store for holding in self._holdings.values() for store in holding.stores.values()]

    def alive(self) -> bool:
        """Whether the group may still count on us: it heard us within the session timeout."""
        return time.monotonic() - self._heartbeat < self.settings.session_timeout

    def heard(self) -> None:
        """The coordinator answered."""
        self._heartbeat = time.monotonic()

    def share(self) -> float:
        """Our share of all partition numbers."""
        return max(len(self._holdings), 1) / self.partitions

    @property
    def _kafka(self) -> AIOKafkaConsumer:
        if self.consumer is None:
            raise FatalError("partitions were assigned before the consumer started")
        return self.consumer

    # the way of a chunk

    def accept(self, chunk: Chunk, generation: int) -> None:
        """Called by a stage's agent."""
        if generation == self.generation and self.opened.is_set() and (holding := self._holdings.get(chunk.partition)) is not None:
            holding.works[self.buffers.stage_of(chunk.topic).name].put(chunk)

    def _done(self, chunk: Chunk) -> None:
        if self.opened.is_set():
            self.buffers.done(chunk)
            self.wake.set()

    def _given_up(self, _work: Work) -> None:
        # No heartbeat was answered for a session timeout, and no rebalance began yet: ask for one, it takes over from what is committed.
        if self.consumer is not None:
            self.consumer._coordinator.request_rejoin()

    # coming and going

    def revoked(self) -> None:
        """A rebalance began."""
        REBALANCES.inc()
        self._stopped_at = time.monotonic()

    async def drain(self) -> None:
        """Stop handing out; let what was begun commit for `drain_seconds`, abandon the rest."""
        self.opened.clear()
        if self._acceptance is not None:
            self._acceptance.cancel()
        if self._takeover is not None and not self._takeover.done():
            self._takeover.cancel()
            if (await asyncio.wait([self._takeover], timeout=self.settings.drain_seconds))[1]:
                end("takeover does not let go", seconds=self.settings.drain_seconds)
        works = self.works()
        drains = [asyncio.create_task(work.drain()) for work in works]
        if drains:
            _, late = await asyncio.wait(drains, timeout=self.settings.drain_seconds)
            for task in late:
                task.cancel()
        for work in works:
            if not work.clean:
                log.warning("partition abandoned", stage=work.stage.name, partition=work.number, waiting=work.wait_reason or None)
                work.abandon()
        self.buffers.clear()

    def begin_takeover(self, assigned: Iterable[TopicPartition], generation: int) -> None:
        """Take over what was assigned, in a task of its own."""
        self.heard()
        self._takeover = asyncio.create_task(self._take_over(set(assigned), generation))
        self._takeover.add_done_callback(fatal_errors("takeover failed"))

    async def _take_over(self, assigned: set[TopicPartition], generation: int) -> None:
        numbers = {tp.partition for tp in assigned}
        next_in_line = generation == self.generation + 1
        kept = {n for n, h in self._holdings.items() if n in numbers and next_in_line and all(w.clean for w in h.works.values())}
        await asyncio.gather(*(self._release(n) for n in list(self._holdings) if n not in kept))
        fresh: dict[int, Holding] = {}
        try:
            for number in sorted(numbers - kept):
                fresh[number] = self._new_holding(number)
            await self._fence([ground.publisher for holding in fresh.values() for ground in holding.grounds.values()])
            await recover(
                self.settings,
                {
                    TopicPartition(self.changelogs[table], number): (table, store)
                    for number, holding in fresh.items()
                    for table, store in holding.stores.items()
                },
            )
            offsets = await self._offsets(assigned, self._holdings | fresh)
            for hold in {id(stage.hold): stage.hold for stage in self.stages}.values():
                if hold is not None:
                    await hold.ready()
        except BaseException:
            self._holdings |= fresh  # half made: without works; the next takeover or stop releases them
            self.generation = -1
            raise
        self._holdings |= fresh
        stopped = await self._open(offsets, generation)
        log.info("partitions taken over", partitions=sorted(numbers), kept=sorted(kept), generation=generation, stopped=round(stopped, 2))

    async def _open(self, offsets: Mapping[TopicPartition, int], generation: int) -> float:
        """Begin to hand out; the seconds for which nothing was."""
        async with self.fetching:  # nobody takes records between the seek and the new generation
            self.buffers.clear()
            for tp, offset in offsets.items():
                self._seek(tp, offset)
            for tp, loss in self.lost.items():
                self._kafka.seek(tp, loss.end)  # it must have a position; paused, nothing is read from there
                self._kafka.pause(tp)
            for holding in self._holdings.values():
                holding.works = {
                    stage.name: Work(
                        stage, holding.number, holding.grounds[stage.name], self.alive, self.share, self._done, self._given_up, self.turns
                    )
                    for stage in self.stages
                }
            self.generation = generation
            self.opened.set()
        if self.lost:
            self._acceptance = asyncio.create_task(self._await_acceptance(generation))
            self._acceptance.add_done_callback(fatal_errors("waiting for a lost partition failed"))
        now = time.monotonic()
        stopped = now - (now if self._stopped_at is None else self._stopped_at)
        REBALANCE_SECONDS.observe(stopped)
        await self.resume()
        self.ready.set()
        return stopped

    def _new_holding(self, number: int) -> Holding:
        stores = {table: TableStore(self._backend(table, number)) for table in self.tables}
        name = self.settings.installation
        grounds = {
            stage.name: Ground(
                TransactionalPublisher(self.settings, f"{name}.{stage.name}.{number}"),
                {table: stores[table] for table in stage.tables or self.tables[:1]},  # a stage without tables keeps its marks somewhere
                self.changelogs,
                name,
                self.partitions,
                self.suspects,
            )
            for stage in self.stages
        }
        return Holding(number, stores, grounds, {})

    async def _fence(self, publishers: Sequence[TransactionalPublisher]) -> None:
        gate = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start(publisher: TransactionalPublisher) -> None:
            async with gate:
                await publisher.start()

        async with asyncio.TaskGroup() as group:
            for publisher in publishers:
                group.create_task(start(publisher))

    async def _offsets(self, assigned: set[TopicPartition], holdings: Mapping[int, Holding]) -> dict[TopicPartition, int]:
        """Next offset to read of each partition. What a log lost is told; such a partition is left out and waits (loss.py)."""
        places = await self._places([TopicPartition(tp.topic, tp.partition) for tp in assigned], holdings)
        self._set_lost({tp: place for tp, place in places.items() if isinstance(place, Loss)})
        known = await told(self.settings) if self.lost else {}
        for tp, loss in self.lost.items():
            if loss.id not in known:
                ground = holdings[tp.partition].grounds[self.buffers.stage_of(tp.topic).name]
                await ground.publisher.send([letter(loss, Topics(self.settings.installation))])
        return {tp: place for tp, place in places.items() if not isinstance(place, Loss)}

    async def _places(self, parts: list[TopicPartition], holdings: Mapping[int, Holding]) -> dict[TopicPartition, int | Loss]:
        found = await self._kafka._coordinator.fetch_committed_offsets(parts)
        begins, ends = await self._kafka.beginning_offsets(parts), await self._kafka.end_offsets(parts)
        places = {}
        for tp in parts:
            committed = found[tp].offset if tp in found and found[tp].offset >= 0 else None
            # Of what we kept we know better: a commit is answered a moment before the group's offsets show it.
            if (own := holdings[tp.partition].grounds[self.buffers.stage_of(tp.topic).name].committed.get(tp.topic)) is not None:
                committed = max(own, committed or 0)
            # In any table: which one a stage marks changes with the flow.
            marks = [mark for store in holdings[tp.partition].stores.values() if (mark := store.mark(tp.topic)) is not None]
            places[tp] = start_at(tp, committed, max(marks, default=None), begins[tp], ends[tp])
        return places

    def _set_lost(self, lost: dict[TopicPartition, Loss]) -> None:
        for topic in {tp.topic for tp in (*self.lost, *lost)}:
            LOST.labels(self.buffers.stage_of(topic).name, topic).set(sum(tp.topic == topic for tp in lost))
        self.lost = lost

    async def _await_acceptance(self, generation: int) -> None:
        """Until every lost partition goes on from where a person set it (`headrace accept-loss`), or the next rebalance."""
        while self.lost:
            await asyncio.sleep(ACCEPT_SECONDS)
            try:
                places = await self._places(list(self.lost), self._holdings)
            except KafkaError as error:
                log.info("lost partitions could not be looked at", reason=type(error).__name__)
                continue
            async with self.fetching:
                if not self.opened.is_set() or self.generation != generation:
                    return
                for tp, place in places.items():
                    if not isinstance(place, Loss):
                        self._seek(tp, place)
                        self._kafka.resume(tp)
                        log.info("loss accepted", topic=tp.topic, partition=tp.partition, offset=place)
                self._set_lost({tp: place for tp, place in places.items() if isinstance(place, Loss)})

    def _seek(self, tp: TopicPartition, offset: int) -> None:
        self._kafka.seek(tp, offset)
        self._holdings[tp.partition].grounds[self.buffers.stage_of(tp.topic).name].committed[tp.topic] = offset

    async def _release(self, number: int) -> None:
        holding = self._holdings.pop(number)
        await asyncio.gather(*(ground.publisher.stop() for ground in holding.grounds.values()))
        for store in holding.stores.values():
            store.touch()
            store.close()

    async def close(self) -> None:
        """After the group was left: give everything up."""
        await asyncio.gather(*(self._release(number) for number in list(self._holdings)))


async def _nothing() -> None: ...
