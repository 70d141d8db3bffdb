"""Brings stores up to the end of their changelogs, by a consumer of its own that belongs to no group.

Over when the POSITION reaches the end: a transaction ends in a control record, which is an offset without an event. Every producer that
writes the changelog was fenced before, so nothing is open and the end is final. Any error here is the caller's to let out: it ends the
process.
"""

import time
from collections.abc import Mapping

import structlog
from aiokafka import TopicPartition

from models.settings import Settings
from streams.engine.store import TableStore
from streams.metrics import RECOVERED
from streams.publish import read_committed_consumer

STALE_SECONDS = 43_200.0  # half of Kafka's delete.retention.ms: a tombstone that old may be gone from the changelog
CHUNK = 5000
log = structlog.get_logger()


async def recover(settings: Settings, stores: Mapping[TopicPartition, tuple[str, TableStore]]) -> None:
    """Stores by changelog partition, with the name of their table. Unusable ones are wiped and read from the start."""
    if not stores:
        return
    parts = list(stores)
    consumer = read_committed_consumer(settings, auto_offset_reset="none", max_poll_records=CHUNK)
    await consumer.start()
    try:
        consumer.assign(parts)
        begins, ends = await consumer.beginning_offsets(parts), await consumer.end_offsets(parts)
        left: dict[TopicPartition, float] = {}
        for tp, (table, store) in stores.items():
            start, at = _usable(table, tp, store, begins[tp], ends[tp])
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
                store.load([(r.key, r.value) for r in records], records[-1].offset + 1, left[tp])
                RECOVERED.labels(table).inc(len(records))
    finally:
        await consumer.stop()


def _usable(table: str, tp: TopicPartition, store: TableStore, begin: int, end: int) -> tuple[int, float]:
    """Offset to read from and the age of what is there, after wiping a store that cannot be trusted.

    The age stays what it was until the end is reached: a tombstone between the offset and the end is only sure to be there for a while.
    """
    now = time.time()
    if (found := store.position) is not None:
        offset, at = found
        if begin <= offset <= end and now - at < STALE_SECONDS:
            return offset, at
        log.warning("store wiped", table=table, partition=tp.partition, persisted=offset, begin=begin, end=end, age_seconds=round(now - at))
    store.wipe()
    return begin, now
