"""Faust's way to Kafka, replaced: one Event per chunk of one partition, no commits of its own (broker URL scheme `headrace://`).

Runs on the worker's own loop. Offsets are committed by the stages' transactions only (work.py); whatever of Faust asks for a commit gets
none. The consumer is read_committed and never resets a position by itself: an offset outside the log is fatal.
"""

# ruff: noqa: ARG002 - the arguments are Faust's

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from faust.transport.consumer import Consumer as Base
from faust.transport.consumer import ensure_TPset
from faust.transport.drivers import aiokafka as stock
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.consume import close_consumer
from streams.engine.engine import Engine
from streams.engine.fatal import end, fatal_errors
from streams.engine.member import Member
from streams.engine.stage import Chunk
from streams.engine.watchdog import watch
from streams.kafka import client_options, unreachable

FETCH_WAIT_MS = 100  # a freed partition waits at most this long for the poll of the others
PREFETCH_BACKOFF = 0.01  # and a partition with unconsumed records holds up its broker's fetches at most this long
RECORDS_AT_ONCE = 2000
HEARTBEAT_MS = 1000
NEVER_MS = 2**31 - 1
REJOIN_SECONDS = 20  # what a rebalance may take beside the drain
log = structlog.get_logger()


class Listener(ConsumerRebalanceListener):
    """aiokafka's rebalance calls, in the order Faust wants them."""

    def __init__(self, consumer: "Consumer") -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Before the group is joined again."""
        self._consumer.engine.revoked()
        self._consumer.app.on_rebalance_start()
        await self._consumer.on_partitions_revoked(ensure_TPset(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """After it was joined."""
        generation = self._consumer.kafka._coordinator.generation
        self._consumer.app.consumer_generation_id = generation
        self._consumer.member.remember(self._consumer.kafka._coordinator.member_id)
        await self._consumer.on_partitions_assigned(ensure_TPset(assigned), generation)


class Consumer(Base):
    """Fetches, hands out chunks, drains. Everything about offsets is the engine's."""

    consumer_stopped_errors: ClassVar[tuple[type[BaseException], ...]] = ()
    kafka: AIOKafkaConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine: Engine = self.app.engine
        self.member = Member(self.app.folder.path, self.app.conf.id)
        self._watchdog: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        """Connect; the group is joined by `subscribe`."""
        settings = self.engine.settings
        self.kafka = AIOKafkaConsumer(
            **client_options(settings),
            client_id=f"headrace-{settings.installation}",
            group_id=self.app.conf.id,
            partition_assignment_strategy=[self.app.assignor],
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=16 << 20,
            max_partition_fetch_bytes=1 << 20,
            session_timeout_ms=int(settings.session_timeout * 1000),
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=int((settings.drain_seconds + REJOIN_SECONDS) * 1000),
            max_poll_interval_ms=NEVER_MS,  # a stage may wait for its target as long as it must; the watchdog looks after the rest
        )
        try:
            await self.kafka.start()
        except KafkaError as error:
            end("Kafka is not to be reached", reason=str(await unreachable(settings, error)))
        await self.member.leave_for_predecessor(self.kafka._client)
        self.engine.consumer = self.kafka
        self.engine.resume = self._resume
        self._watchdog = asyncio.create_task(watch(self.engine))
        self._watchdog.add_done_callback(fatal_errors("watchdog failed"))

    async def on_stop(self) -> None:
        """Drain, leave the group, give up producers and stores."""
        began = time.monotonic()
        await self.wait_empty()
        if self._watchdog is not None:
            self._watchdog.cancel()
        await close_consumer(self.kafka)
        self.member.forget()
        await self.engine.close()
        log.info("work stopped", seconds=round(time.monotonic() - began, 2))

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group."""
        self.kafka.subscribe(topics=sorted(topics), listener=Listener(self))
        coordinator = self.kafka._coordinator
        beat = coordinator._do_heartbeat

        async def heard() -> bool:
            if answered := bool(await beat()):
                self.engine.heard()
            return answered

        coordinator._do_heartbeat = heard
        self.kafka._fetcher._prefetch_backoff = PREFETCH_BACKOFF

    async def wait_empty(self) -> None:
        """Called by Faust before a rebalance and at stop."""
        await self.engine.drain()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Never: offsets belong to transactions."""
        return False

    async def _resume(self) -> None:
        app = self.app
        await app.on_rebalance_complete.send()
        app.flow_control.resume()
        self.resume_flow()
        await app._fetcher.maybe_start()
        app.tables.on_actives_ready()
        app.tables.on_standbys_ready()
        app.on_rebalance_end()

    async def _drain_messages(self, fetcher: Any) -> None:
        """The fetch loop, run by Faust's Fetcher service."""
        task = asyncio.create_task(self._fetch(), name="fetch")
        task.add_done_callback(fatal_errors("fetching failed"))
        try:
            await task
        finally:
            task.cancel()

    async def _fetch(self) -> None:
        engine, buffers = self.engine, self.engine.buffers
        while True:
            await engine.opened.wait()
            engine.wake.clear()
            async with engine.fetching:
                if not engine.opened.is_set():
                    continue
                generation = engine.generation
                take = [tp for tp in self.kafka.assignment() if buffers.wants(tp.topic, tp.partition)]
                got = await self._take(take) if take else {}
                if not engine.opened.is_set() or engine.generation != generation:
                    continue
                for tp, records in got.items():
                    buffers.add(tp.topic, tp.partition, records)
            for chunk in list(buffers.next()):
                self._deliver(chunk, generation)
            if got:
                await asyncio.sleep(0)
            else:
                await self._wait()

    async def _take(self, take: list[TopicPartition]) -> Mapping[TopicPartition, list[Any]]:
        try:
            found: Mapping[TopicPartition, list[Any]] = await self.kafka.getmany(*take, timeout_ms=0, max_records=RECORDS_AT_ONCE)
        except OffsetOutOfRangeError as error:
            end("the log no longer holds what was not read", error, do="`headrace status`; then a snapshot of the source")
        return found

    async def _wait(self) -> None:
        """Until something was fetched or a partition became free."""
        arrived = self.kafka._fetcher._create_fetch_waiter()
        freed = asyncio.create_task(self.engine.wake.wait())
        await asyncio.wait([arrived, freed], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        freed.cancel()
        if not arrived.done():
            arrived.cancel()

    def _deliver(self, chunk: Chunk, generation: int) -> None:
        tp, last = TP(chunk.topic, chunk.partition), chunk.records[-1]
        message = ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, 0, None, None, None, None, 0, 0, tp, generation_id=generation
        )
        (channel,) = self.app.topics._tp_index[tp]
        channel.queue.force_put_nowait(self.app.create_event(None, chunk, None, message))

    # what Faust's base class asks for; positions are moved by the engine alone

    def assignment(self) -> set[TP]:
        """What aiokafka says is ours."""
        return set(ensure_TPset(self.kafka.assignment())) if hasattr(self, "kafka") else set()

    def highwater(self, tp: TP) -> int:
        return self.kafka.highwater(TopicPartition(*tp)) or 0

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        ends = await self.kafka.end_offsets([TopicPartition(*tp) for tp in partitions])
        return {TP(*tp): offset for tp, offset in ends.items()}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        begins = await self.kafka.beginning_offsets([TopicPartition(*tp) for tp in partitions])
        return {TP(*tp): offset for tp, offset in begins.items()}

    async def position(self, tp: TP) -> int | None:
        found: int = await self.kafka.position(TopicPartition(*tp))
        return found

    def topic_partitions(self, topic: str) -> int | None:
        return self.engine.partitions

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        raise NotImplementedError("outputs go through the engine")

    async def create_topic(self, topic: str, *_args: Any, **_options: Any) -> None:
        """Topics are made before anything starts (streams/topics.py)."""

    async def perform_seek(self) -> None: ...
    async def seek_to_committed(self) -> Mapping[TP, int]:
        return {}

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None: ...
    async def _seek(self, partition: TP, offset: int) -> None: ...
    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return False

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        raise NotImplementedError

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        raise NotImplementedError("records travel in chunks")

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def close(self) -> None:
        """Nothing: on_stop leaves the group."""


class Producer(stock.Producer):
    """Stock, for `faust send` and the like; with our addresses and security, idempotent. No stage sends through it."""

    def _settings_default(self) -> Mapping[str, Any]:
        options = dict(super()._settings_default())
        return options | client_options(self.app.engine.settings)

    def _settings_auth(self) -> Mapping[str, Any]:
        return {}

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class Transport(stock.Transport):
    """Named in pyproject.toml as entry point `headrace` of `faust.transports`."""

    Consumer: ClassVar[type] = Consumer
    Producer: ClassVar[type] = Producer
