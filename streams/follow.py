"""Follows a compacted topic: the last value of each key, as committed when asked. Reads only; its consumer starts at the first question."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from models.errors import TemporaryError
from models.settings import Settings
from streams.consume import close_consumer, reading
from streams.kafka import partition_of

PATIENCE = 20.0


class Followed:
    """One topic, for readers that ask again and again."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._found: dict[bytes, bytes] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._lock = asyncio.Lock()

    async def get(self, key: str) -> bytes | None:
        """The value committed when this was called; None where there is none. Raises TemporaryError when Kafka is away."""
        await self._catch_up(partition_of(key.encode(), self._settings.partitions))
        return self._found.get(key.encode())

    async def all_of(self, number: int) -> dict[bytes, bytes]:
        """Last value by key of a partition, as committed when this was called; it must not be changed. Raises TemporaryError."""
        await self._catch_up(number)
        return self._found

    async def stop(self) -> None:
        """Close."""
        if (consumer := self._consumer) is not None:
            self._consumer = None
            await close_consumer(consumer)

    async def _catch_up(self, number: int) -> None:
        part = TopicPartition(self._topic, number)
        async with self._lock:
            try:
                async with asyncio.timeout(PATIENCE):
                    if self._consumer is None:
                        await self._start()
                    consumer = self._consumer
                    if consumer is None:
                        raise TemporaryError(f"the reader of {self._topic} was stopped")
                    end = (await consumer.end_offsets([part]))[part]
                    while await consumer.position(part) < end:
                        for records in (await consumer.getmany(timeout_ms=50)).values():
                            for record in records:
                                self._keep(record.key or b"", record.value)
            except (KafkaError, TimeoutError) as error:
                await self.stop()
                raise TemporaryError(f"{self._topic} cannot be read now ({type(error).__name__})") from error

    def _keep(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._found.pop(key, None)
        else:
            self._found[key] = value

    async def _start(self) -> None:
        self._consumer = await reading(self._settings, [TopicPartition(self._topic, p) for p in range(self._settings.partitions)])
        self._found = {}
