"""Lag as the broker knows it: what each stage has not finished, how old that is, and when Kafka's retention would eat it.

It reads and never joins the group, commits, or makes a topic. A transaction's end marker takes an offset without being a record, so a
difference of offsets alone is no lag: where one is left, the first real record behind the committed offset is looked at.
"""

import asyncio
import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from models.errors import TemporaryError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams import metrics
from streams.consume import close_consumer, read_committed_consumer
from streams.kafka import client_options
from streams.salesforce.positions import Position, read_positions
from streams.topics import Topics

PATIENCE = 5.0
"""Seconds one question to the broker may take."""
SALESFORCE_SECONDS = 72 * 3600.0
"""What Salesforce keeps of a channel."""
POSITIONS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Lag:
    """Of one topic. `oldest` and `loss` are seconds: age of the oldest unfinished record, and time until retention reaches it."""

    stage: str
    topic: str
    records: int
    oldest: float
    loss: float | None


def stage_of(topics: Topics, topic: str) -> str:
    """The stage that reads a topic."""
    kind = topic.removeprefix(f"{topics.installation}.").partition(".")[0]
    return {"in": "process", "refill": "process", "duplicates": "duplicates", "writes": "write", "fetch": "fetch"}[kind]


def salesforce_loss(position: Position) -> float | None:
    """Seconds until Salesforce's retention reaches a stored position; None where none was stored. 0: it may be refused."""
    if position.second is None:
        return None
    return max(0.0, position.second + SALESFORCE_SECONDS - time.time())


def disk_free(path: Path) -> int:
    """Free bytes where `path` is or would be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class LagWatch:
    """Asks the broker; its clients are made at the first question and anew after an error."""

    def __init__(self, settings: Settings, flow: Flow) -> None:
        topics = Topics(settings.installation)
        self._settings = settings
        self._topics = {
            topic.name: (stage_of(topics, topic.name), topic.retention)
            for topic in topics.all(flow, settings)
            if topic.read_by in ("process", "duplicates", "writer", "fetch")
        }
        self._salesforce = any(isinstance(connection, Salesforce) for connection in flow.connections.values())
        self._positions_at = 0.0
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._seen: dict[TopicPartition, tuple[int, int, int]] = {}  # start, offset and timestamp of the first record at or behind it
        self._markers: dict[TopicPartition, tuple[int, int]] = {}  # start and end between which there are only markers

    async def measure(self) -> None:
        """Set the gauges. Raises TemporaryError when Kafka is away."""
        for lag in await self.read():
            metrics.LAG.labels(lag.stage, lag.topic).set(lag.records)
            metrics.OLDEST.labels(lag.stage, lag.topic).set(lag.oldest)
            if lag.loss is not None:
                metrics.KAFKA_HOURS.labels(lag.topic).set(lag.loss)
        if self._salesforce and time.monotonic() > self._positions_at:
            self._positions_at = time.monotonic() + POSITIONS_SECONDS
            for key, position in (await read_positions(self._settings)).items():
                if (loss := salesforce_loss(position)) is not None:
                    metrics.SALESFORCE_HOURS.labels(*key.split("|", 1)).set(loss)

    async def read(self) -> list[Lag]:
        """One Lag per topic that exists, in the order of the flow. Raises TemporaryError when Kafka is away."""
        try:
            async with asyncio.timeout(3 * PATIENCE):
                return await self._read()
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise TemporaryError(f"Kafka at {self._settings.kafka} did not say how far the stages are ({type(error).__name__})") from None

    async def close(self) -> None:
        """Close the clients."""
        admin, consumer, self._admin, self._consumer = self._admin, self._consumer, None, None
        for client in (admin.close() if admin else None, close_consumer(consumer) if consumer else None):
            if client is not None:
                with contextlib.suppress(KafkaError, OSError):
                    await client

    async def _read(self) -> list[Lag]:
        admin, consumer = await self._clients()
        there = set(await admin.list_topics())
        names = [name for name in self._topics if name in there]
        if not names:
            return []
        partitions = [TopicPartition(name, number) for name in names for number in range(self._settings.partitions)]
        committed = await admin.list_consumer_group_offsets(self._settings.installation)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        starts = {tp: max(begins[tp], committed[tp].offset if tp in committed else 0) for tp in partitions}
        apart = {tp: start for tp, start in starts.items() if start < ends[tp] and self._markers.get(tp) != (start, ends[tp])}
        first = await self._first(consumer, apart, ends)
        now, lags = time.time(), []
        for name in names:
            stage, retention = self._topics[name]
            behind = {tp: first[tp] for tp in partitions if tp.topic == name and tp in first}
            records = sum(ends[tp] - offset for tp, (offset, _) in behind.items())
            oldest = max((max(0.0, now - stamp / 1000) for _, stamp in behind.values()), default=0.0)
            lags.append(Lag(stage, name, records, oldest, None if retention is None else max(0.0, retention / 1000 - oldest)))
        return lags

    async def _first(
        self, consumer: AIOKafkaConsumer, starts: dict[TopicPartition, int], ends: dict[TopicPartition, int]
    ) -> dict[TopicPartition, tuple[int, int]]:
        """Offset and timestamp (ms) of the first record at or behind each start; partitions that hold only markers are left out."""
        known = {tp: self._seen[tp] for tp, start in starts.items() if tp in self._seen and self._seen[tp][0] == start}
        missing = {tp: start for tp, start in starts.items() if tp not in known}
        if missing:
            consumer.assign(list(missing))
            for tp, start in missing.items():
                consumer.seek(tp, start)
            deadline = time.monotonic() + PATIENCE
            open_ = set(missing)
            while open_ and time.monotonic() < deadline:
                for tp, records in (await consumer.getmany(*open_, timeout_ms=200)).items():
                    if records:
                        known[tp] = (missing[tp], records[0].offset, records[0].timestamp)
                        consumer.pause(tp)
                open_ -= known.keys()
                for tp in list(open_):
                    if await consumer.position(tp) >= ends[tp]:
                        open_.discard(tp)
                        self._markers[tp] = (missing[tp], ends[tp])
                        consumer.pause(tp)
            consumer.pause(*missing)
        self._seen = known
        return {tp: (offset, stamp) for tp, (_, offset, stamp) in known.items()}

    async def _clients(self) -> tuple[AIOKafkaAdminClient, AIOKafkaConsumer]:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**client_options(self._settings), request_timeout_ms=int(PATIENCE * 1000))
            await self._admin.start()
        if self._consumer is None:
            self._consumer = read_committed_consumer(
                self._settings, request_timeout_ms=int(PATIENCE * 1000), max_partition_fetch_bytes=65_536
            )
            await self._consumer.start()
        return self._admin, self._consumer
