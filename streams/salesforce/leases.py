"""Who may make how many of an org's calls, and how many at a time: what processes of a connection tell each other in the topic `limits`.

A process writes one record, of the calls it made and of those it takes for the next half minute: its lease. The records of a connection
stand in one partition, so that all read them in one order, and a claim keeps only what was left before it: together they never use more
than `api_share`. Whoever starts reads what was used; a lease that is not renewed ends. No process waits for another.

A claim also shows how many processes there are, and `at_once` calls are divided among them. One that starts takes its part at once, and the
others give it within the life of their leases, half a minute: for so long there may be more calls under way than `at_once`.
"""

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from models.errors import HeadraceError, TemporaryError
from models.settings import Settings
from streams import metrics
from streams.consume import close_consumer, read_last, reading
from streams.engine.stage import Output
from streams.kafka import partition_of
from streams.publish import Publisher
from streams.salesforce.limits import BUCKET, DAY, Budget
from streams.topics import Topics

log = structlog.get_logger()

HOLD_SECONDS = 30.0
"""So long a lease may be used by its holder, by the holder's own clock."""
END_SECONDS = 60.0
"""So long others count it, by the broker's clock."""
REPORT_SECONDS = 10.0
"""After a call others hear of it within so many seconds, though no new lease is needed."""
AGAIN_SECONDS = 5.0
"""Where nothing was left it is asked for again after this."""
LEAST, MOST_OF = 2, 0.01
"""Calls of a first lease; each that follows soon is twice as many, up to this part of the share."""
PATIENCE = 20.0


@dataclass(slots=True)
class Entry:
    """Value of a record of the limits topic; its key is "<connection>|<process>".

    used       calls by time (epoch s at which a bucket begins) and purpose
    lease      calls taken beyond these
    under_way  calls without a reply
    most       the org's limit of a day, as last heard; 0: not yet
    at         epoch ms of the record, by the broker
    """

    used: dict[int, dict[str, int]] = field(default_factory=dict)
    lease: int = 0
    under_way: int = 0
    most: int = 0
    at: int = 0

    def within(self, now: float) -> Counter[str]:
        """Calls of the rolling day, by purpose."""
        found: Counter[str] = Counter()
        for begun, calls in self.used.items():
            if begun + BUCKET + DAY > now:
                found.update(calls)
        return found

    def held(self, at: int) -> int:
        """The lease, as long as it is one: `at` epoch ms, by the broker."""
        return self.lease if self.at > at - END_SECONDS * 1000 else 0

    def lives(self, at: int) -> bool:
        """Whether calls of it may be under way: it has some, or a lease, and tells so."""
        return bool(self.lease or self.under_way) and self.at > at - END_SECONDS * 1000


def parse_entry(value: bytes, at: int) -> Entry:
    """What a process wrote; what is damaged says nothing, and its writer soon writes anew."""
    try:
        found: dict[str, Any] = orjson.loads(value)
        used = {int(begun): {str(p): int(n) for p, n in calls.items()} for begun, calls in found["used"].items()}
        return Entry(used, int(found["lease"]), int(found.get("under_way", 0)), int(found["most"]), at)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Entry(at=at)


class Leases:
    """The leases of one connection in this process; they are counted in its budget."""

    def __init__(self, settings: Settings, connection: str, budget: Budget) -> None:
        self._settings, self._connection, self._budget = settings, connection, budget
        self._topic = Topics(settings.installation).limits
        self._part = TopicPartition(self._topic, partition_of(connection.encode(), settings.partitions))
        self._key = f"{connection}|{budget.name}".encode()
        self._publisher = Publisher(settings)
        self._consumer: AIOKafkaConsumer | None = None
        self._others: dict[bytes, Entry] = {}
        self._lock = asyncio.Lock()
        self._until = self._again = self._claimed = 0.0
        self._size = LEAST
        self._report: asyncio.Task[None] | None = None
        budget.leased = 0

    async def room(self) -> None:
        """Before a call: see to a lease that has room for it, where there is any left. Raises TemporaryError (no Kafka), FatalError."""
        if not self._has():
            async with self._lock:
                now = time.monotonic()
                if not self._has() and now >= self._again:
                    await self._claim(now)
        if self._report is None or self._report.done():
            self._report = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Give back what was not used."""
        if self._report is not None:
            self._report.cancel()
            await asyncio.wait([self._report])
        try:
            if self._claimed:
                self._budget.leased = 0
                await self._write(0)
        except HeadraceError as error:
            log.warning("a lease of calls was not given back", connection=self._connection, reason=str(error))
        await self._publisher.stop()
        if self._consumer is not None:
            await close_consumer(self._consumer)
            self._consumer = None

    def _has(self) -> bool:
        return bool(self._budget.leased) and time.monotonic() < self._until

    async def _claim(self, now: float) -> None:
        budget = self._budget
        soon = now - self._claimed < HOLD_SECONDS
        self._size = max(LEAST, min(self._size * 2 if soon else LEAST, int(budget.most * budget.share * MOST_OF)))
        mark = uuid.uuid4().hex
        await self._write(self._size, mark)
        left = await self._left(mark)
        granted = self._size if left is None else max(0, min(self._size, left))
        if granted < self._size:
            await self._write(granted)
        self._claimed, self._until = now, now + HOLD_SECONDS
        self._again = 0.0 if granted else time.monotonic() + AGAIN_SECONDS
        budget.leased = granted
        metrics.API_SHARE.labels(self._connection).set(budget.of_share())

    async def _tell(self) -> None:
        """Write what was used once more, a little later, before the lease ends for the others; and of long calls until they end."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            async with self._lock:
                try:
                    await self._write(self._budget.leased if self._has() and self._budget.leased else 0)
                except HeadraceError as error:
                    log.warning("calls made are not told yet", connection=self._connection, reason=str(error))
            if not self._budget.under_way:
                return

    async def _write(self, lease: int, mark: str = "") -> None:
        value = {
            "used": {str(b): c for b, c in self._budget.own_by_time().items()},
            "lease": lease,
            "under_way": self._budget.under_way,
            "most": self._budget.most,
            "mark": mark,
        }
        dead = [key for key, e in self._others.items() if not e.within(self._budget.clock()) and not e.held(self._latest())]
        outputs = [Output(self._topic, self._key, orjson.dumps(value), partition=self._part.partition)]
        outputs += [Output(self._topic, key, None, partition=self._part.partition) for key in dead]
        await self._publisher.send(outputs)
        for key in dead:
            del self._others[key]

    def _latest(self) -> int:
        return max((entry.at for entry in self._others.values()), default=0)

    async def _left(self, mark: str) -> int | None:
        """Of the share, where the record of that mark stands; None while nobody has heard the org's limit."""
        try:
            async with asyncio.timeout(PATIENCE):
                consumer = await self._started()
                left: list[int | None] = []
                while not left:
                    for records in (await consumer.getmany(self._part, timeout_ms=200)).values():
                        for record in records:
                            self._fold(record, mark, left)
                return left[0]
        except (KafkaError, TimeoutError) as error:
            if self._consumer is not None:
                await close_consumer(self._consumer)
                self._consumer = None
            raise TemporaryError(f"the leases of {self._connection} cannot be read now ({type(error).__name__})") from error

    def _fold(self, record: Any, mark: str, left: list[int | None]) -> None:
        """Take note of another's record; at our own one, count what stood before it."""
        if record.key != self._key:
            if not record.key.startswith(f"{self._connection}|".encode()):
                return
            if record.value is None:
                self._others.pop(record.key, None)
            else:
                self._others[record.key] = parse_entry(record.value, record.timestamp)
        elif record.value is not None and orjson.loads(record.value)["mark"] == mark:
            budget, now = self._budget, self._budget.clock()
            used = [entry.within(now) for entry in self._others.values()]
            budget.elsewhere = sum((calls.total() for calls in used), 0)
            if not budget.most:
                budget.most = max((entry.most for entry in self._others.values()), default=0)
            budget.processes = 1 + sum(entry.lives(record.timestamp) for entry in self._others.values())
            held = sum(entry.held(record.timestamp) for entry in self._others.values())
            left.append(int(budget.share * budget.most) - budget.elsewhere - held - budget.own().total() if budget.most else None)

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = await reading(self._settings, [self._part])
            self._others = {}
        return self._consumer


async def read_leases(settings: Settings) -> dict[str, Counter[str]]:
    """Calls of the rolling day by connection and purpose, of all processes, dead ones too. Raises TemporaryError, FatalError."""
    found: dict[str, Counter[str]] = {}
    for key, record in (await read_last(settings, Topics(settings.installation).limits)).items():
        connection, entry = (key or b"").decode(errors="replace").partition("|")[0], parse_entry(record.value or b"", record.timestamp)
        found.setdefault(connection, Counter()).update(entry.within(time.time()))
    return found
