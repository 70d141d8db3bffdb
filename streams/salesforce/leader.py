"""Who leads a channel: the member of a consumer group that Kafka gives the partition of the positions topic where the channel's key lies.

The group elects, it does not protect: that is the work of the transactional producer, which fences the predecessor. Nothing is read from
the topic here and no offset is committed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError

from models.errors import TemporaryError
from models.settings import Settings
from streams.consume import close_consumer, read_committed_consumer
from streams.kafka import partition_of
from streams.salesforce.retry import retried
from streams.topics import Topics

log = structlog.get_logger()

SESSION_SECONDS = 10.0
"""A leader that died is missed after this; with the rebalance and the new session a takeover stays below 30 s."""


class Leadership(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Membership in the group of one channel. `mine` is set while this process leads and no rebalance is under way."""

    def __init__(self, settings: Settings, name: str, key: str) -> None:
        self._settings, self._group = settings, f"{settings.installation}.subscribe.{name}"
        self._part = TopicPartition(Topics(settings.installation).positions, partition_of(key.encode(), settings.partitions))
        self.mine, self.lost = asyncio.Event(), asyncio.Event()
        self._sending = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Join; `mine` follows. Raises TemporaryError when Kafka is away."""
        session = int(min(self._settings.session_timeout, SESSION_SECONDS) * 1000)
        consumer = read_committed_consumer(
            self._settings,
            group_id=self._group,
            auto_offset_reset="latest",
            session_timeout_ms=session,
            heartbeat_interval_ms=session // 4,
            rebalance_timeout_ms=session,
            partition_assignment_strategy=(StickyPartitionAssignor,),
        )
        consumer.subscribe([self._part.topic], listener=self)
        try:
            await consumer.start()
        except KafkaError as error:
            await close_consumer(consumer)
            raise TemporaryError(f"the group {self._group} cannot be joined now ({type(error).__name__})") from error
        self._consumer = consumer
        self._task = asyncio.create_task(self._poll(consumer))

    async def leave(self) -> None:
        """Leave, so that another takes over at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._consumer is not None:
            await close_consumer(self._consumer)

    async def whenever_mine(self, lead: Callable[[], Coroutine[Any, Any, None]], standby: Callable[[], None]) -> None:
        """Join, and `lead()` each time this process leads, until it loses it; `standby()` whenever it begins to wait. Never returns; raises
        what `lead` does.
        """
        standby()
        await retried(self.join, f"group {self._group}")
        try:
            while True:
                standby()  # also after a lead that ended in trouble: waiting is what it is for now
                await self.mine.wait()
                leading = asyncio.create_task(lead())
                lost = asyncio.create_task(self.lost.wait())
                try:
                    await asyncio.wait([leading, lost], return_when=asyncio.FIRST_COMPLETED)
                    if leading.done():
                        await leading
                finally:
                    for task in (leading, lost):
                        task.cancel()
                    await asyncio.wait([leading, lost])
        finally:
            await self.leave()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a rebalance off for the length of one transaction; waits while one is under way."""
        while True:
            await self.mine.wait()
            async with self._sending:
                if self.mine.is_set():
                    yield
                    return

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:  # noqa: ARG002
        self.mine.clear()
        async with self._sending:  # the transaction under way ends before somebody else may begin
            pass

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        if self._part in assigned:
            self.lost.clear()
            self.mine.set()
        else:
            self.lost.set()
        log.info("channel led here" if self._part in assigned else "channel led elsewhere", group=self._group)

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        """A member that never polls is thrown out; what it reads is of no interest."""
        while True:
            with suppress(KafkaError):
                await consumer.getmany(timeout_ms=1000)
