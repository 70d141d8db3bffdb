"""How records get out of Kafka outside the engine: a topic to its end, the last of each key, a consumer of one's own. Nothing
here commits an offset.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from models.errors import FatalError
from models.settings import Settings
from streams.engine.stage import Record
from streams.kafka import client_options, our_error

READ_SECONDS = 30.0


def read_committed_consumer(settings: Settings, **options: Any) -> AIOKafkaConsumer:
    """A consumer as ours must be: read_committed, no automatic commits, from the earliest where nothing is said. Not started."""
    defaults: dict[str, Any] = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}
    return AIOKafkaConsumer(**client_options(settings), **(defaults | options), isolation_level="read_committed")


async def reading(settings: Settings, parts: Sequence[TopicPartition]) -> AIOKafkaConsumer:
    """Such a consumer of these partitions, started; whoever has it closes it. Raises KafkaError."""
    consumer = read_committed_consumer(settings)
    try:
        await consumer.start()
    except BaseException:
        await close_consumer(consumer)
        raise
    consumer.assign(parts)
    return consumer


async def close_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop. While a broker is away aiokafka's own stop ends in a cancellation that nobody asked for (a fetch that waits out its failure),
    and the caller's task would end by it without a word.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping])
    if stopping.cancelled():
        await consumer._client.close()  # it did not come so far
    elif isinstance(error := stopping.exception(), Exception) and not isinstance(error, KafkaError):
        raise error


async def read_all(settings: Settings, topic: str) -> list[Record]:
    """All that `read_batches` gives, at once; meant for small and compacted topics. Raises TemporaryError, FatalError (no such topic)."""
    return [record async for batch in read_batches(settings, topic) for record in batch]


async def read_last(settings: Settings, topic: str) -> dict[bytes | None, Record]:
    """The last record of each key of a compacted topic, those that were deleted left out, in the order of writing per partition.

    Raises TemporaryError, FatalError (no such topic).
    """
    return last_of(await read_all(settings, topic))


def last_of(records: Iterable[Record]) -> dict[bytes | None, Record]:
    """The same, of records that were read."""
    found: dict[bytes | None, Record] = {}
    for record in records:
        found.pop(record.key, None)
        if record.value is not None:
            found[record.key] = record
    return found


async def read_batches(settings: Settings, topic: str, partitions: Sequence[int] | None = None) -> AsyncGenerator[list[Record], None]:
    """Everything committed in a topic when the first batch was asked for, in order per partition, never all of it in memory.

    Ends at the high watermark, by POSITION: a transaction ends in an offset of no record, and its marker is written a moment after its
    commit was answered, so that the last stable offset would be too early. Waits for transactions open at the call (at most their
    time-out). Who may leave it early closes it. Raises TemporaryError, FatalError (no such topic).
    """
    parts = [TopicPartition(topic, p) for p in (range(settings.partitions) if partitions is None else partitions)]
    consumer = read_committed_consumer(settings)
    watcher = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    try:
        async with asyncio.timeout(READ_SECONDS):
            await asyncio.gather(consumer.start(), watcher.start())
            if topic not in await watcher.topics():
                raise FatalError(f"topic {topic} does not exist: start a worker or a subscriber once, they make the topics")
            begins, ends = await asyncio.gather(watcher.beginning_offsets(parts), watcher.end_offsets(parts))
        consumer.assign(parts)
        left = {tp for tp in parts if ends[tp] > begins[tp]}
        while left:
            async with asyncio.timeout(READ_SECONDS):
                found = await consumer.getmany(*left, timeout_ms=50)
                left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
            for tp, records in found.items():
                yield [r for r in records if r.offset < ends[tp]]
    except (KafkaError, TimeoutError) as error:
        raise our_error(error, f"reading {topic}") from error
    finally:
        await asyncio.gather(close_consumer(consumer), close_consumer(watcher))
