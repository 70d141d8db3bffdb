"""Brings stores up to the end of their changelogs, by a consumer of its own that belongs to no group.

Over when the POSITION reaches the end: a transaction ends in a control record, which is an offset without an event. Every producer that
writes the changelog was fenced before, so nothing is open and the end is final. Any error here is the caller's to let out: it ends the
process. A record that no stage of ours can have written is such an error: to pass over it would be to serve a state that nobody wrote.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from models.errors import FatalError
from models.settings import Settings
from streams.consume import close_consumer, read_committed_consumer
from streams.engine.facts import tombstone_seconds
from streams.engine.stage import Changes
from streams.engine.store import MARK, META, DamagedError, TableStore
from streams.metrics import RECOVERED
from streams.publish import MAX_RECORD

CHUNK = 5000
FETCH_BYTES, PARTITION_BYTES = 8 << 20, 512 << 10  # of 36 stores at 1 MB each 100 MB lay in the fetcher
SKEW_SECONDS = 60.0
"""A store from further in the future than this has an age that nobody knows."""
log = structlog.get_logger()


async def recover(settings: Settings, stores: Mapping[TopicPartition, tuple[str, TableStore]]) -> None:
    """Stores by changelog partition, with the name of their table. Unusable ones are wiped and read from the start. Raises FatalError."""
    if not stores:
        return
    kept = await tombstone_seconds(settings, {tp.topic for tp in stores})
    parts = list(stores)
    consumer = read_committed_consumer(
        settings,
        auto_offset_reset="none",
        max_poll_records=CHUNK,
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=PARTITION_BYTES,
    )
    try:
        await consumer.start()
        consumer.assign(parts)
        begins, ends = await consumer.beginning_offsets(parts), await consumer.end_offsets(parts)
        left: dict[TopicPartition, float] = {}
        for tp, (table, store) in stores.items():
            start, at = _usable(table, tp, store, begins[tp], ends[tp], kept[tp.topic] / 2)
            consumer.seek(tp, start)
            left[tp] = at
        while True:
            for tp in list(left):
                if await consumer.position(tp) >= ends[tp]:
                    stores[tp][1].loaded(ends[tp])
                    del left[tp]
            if not left:
                break
            for tp, records in (await consumer.getmany(*left, timeout_ms=50)).items():
                table, store = stores[tp]
                store.load(checked(records), records[-1].offset + 1, left[tp])
                RECOVERED.labels(table).inc(len(records))
    except KafkaError as error:
        raise FatalError(
            f"the changelogs of {settings.installation} cannot be read ({type(error).__name__}: {error}): see to Kafka"
        ) from error
    finally:
        await close_consumer(consumer)


def checked(records: Sequence[Any]) -> Changes:
    """Keys and values of changelog records. Raises FatalError for one that no stage can have written."""
    for r in records:
        key, value = r.key, r.value
        if key is None:
            raise _poison(r, "has no key", "compaction drops it by itself, if cleanup.policy is compact")
        if len(key) + len(value or b"") > MAX_RECORD:
            raise _poison(r, f"has {len(key) + len(value or b''):,} bytes, more than a stage can send", TOMBSTONE)
        if key.startswith(META) and (not key.startswith(MARK) or (value is not None and not value.isdigit())):
            raise _poison(r, f"has the key {key[:60]!r}, which the engine keeps for itself, and not its value", TOMBSTONE)
    return [(r.key, r.value) for r in records]


TOMBSTONE = "write a record with this key and no value; compaction then drops both"


def _poison(record: Any, what: str, remedy: str) -> FatalError:
    return FatalError(
        f"the changelog {record.topic} holds a record that Headrace did not write: partition {record.partition}, offset {record.offset}, "
        f"{what}. The worker does not start on a state that others wrote. Find who writes to this topic and take its right to; to get rid "
        f"of the record, {remedy} (at once with segment.ms=1000 and max.compaction.lag.ms=1000 on the topic, taken back afterwards). Until "
        f"it is gone no worker can take partition {record.partition} over"
    )


def _usable(table: str, tp: TopicPartition, store: TableStore, begin: int, end: int, stale: float) -> tuple[int, float]:
    """Offset to read from and the age of what is there, after wiping a store that cannot be trusted.

    The age stays what it was until the end is reached: a tombstone between the offset and the end is only sure to be there for a while.
    """
    now = time.time()
    try:
        found, why = store.position, ""
    except DamagedError as error:
        found, why = None, str(error)
    if found is not None:
        offset, at = found
        if offset > end:
            why = "ahead of its changelog, which was made anew or truncated"
        elif offset < begin:
            why = "behind the changelog's start"
        elif now - at >= stale:
            why = f"older than half of delete.retention.ms ({stale:.0f} s): deletions may be gone from the changelog"
        elif at - now > SKEW_SECONDS:
            why = "from the future: its age is not known"
        else:
            return offset, at
        why += f" (persisted {offset}, changelog {begin} to {end}, age {now - at:.0f} s)"
    if why:
        log.warning("store wiped", table=table, partition=tp.partition, reason=why)
    store.wipe()
    return begin, now
