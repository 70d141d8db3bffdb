"""What stands in Kafka, counted by a plain consumer that shares no code with Headrace: each event once in, each write once out.

An event that does not say what changed (a gap, an overflow, one too large) is not in Kafka itself: an incident names it.

An output is known by what may be there once only: route, source record, its revision, operation and target key. A stage that ran a chunk
twice would leave it twice.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

READ_SECONDS = 60.0
SOBJECTS = ("Contact", "Lead", "Account", "Opportunity", "Case")
WEBHOOK, HOOK_ROUTE, HOOK_TARGET = "forms", "signups", "warehouse"
TARGETS = ("warehouse", "marketing")
ID_LENGTH = 18
TOLD = re.compile(r"@\d+/(\d+)/\d+/(\w+)/[^/]+$")
"""End of the id of an incident that one event opened: position, sObject."""


@dataclass(slots=True)
class Counts:
    """Of one run. The dictionaries hold what must be empty: how often beyond once, or what is missing."""

    events: int = 0
    rows: int = 0
    hooks: int = 0
    writes: int = 0
    events_twice: dict[str, int] = field(default_factory=dict)
    events_missing: list[str] = field(default_factory=list)
    writes_twice: dict[str, int] = field(default_factory=dict)
    hooks_wrong: dict[str, int] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """In sentences; none when all is as it must be."""
        told = (
            (self.events_missing, "events of Salesforce are neither in Kafka nor an incident"),
            (self.events_twice, "events are in Kafka more than once"),
            (self.writes_twice, "outputs were written to Kafka more than once"),
            (self.hooks_wrong, "accepted webhooks have not exactly one output"),
        )
        return [f"{len(found)} {text}: {str(found)[:300]}" for found, text in told if found]


def count(
    records: Mapping[str, Iterable[ConsumerRecord]],
    installation: str,
    commits: Iterable[tuple[int, str, list[str]]],
    accepted: Iterable[str],
    incidents: Iterable[str] = (),
) -> Counts:
    """Count records by topic.

    commits     replay id, object, record ids of every event of the run
    accepted    keys of webhooks
    incidents   their ids
    """
    counts = Counts()
    events: Counter[str] = Counter()
    for sobject in SOBJECTS:
        for name in (f"{installation}.in.acme.{sobject}", f"{installation}.in.acme.{sobject}.bulk"):
            for record in records.get(name, ()):
                headers = {key: value.decode() for key, value in record.headers}
                if headers.get("kind") == "change" and headers.get("run") is None:
                    events[f"{headers.get('epoch')}/{headers.get('position')}/{record.key.decode()}"] += 1
                else:
                    counts.rows += 1
    counts.events = events.total()
    counts.events_twice = _more_than_once(events)
    there = {key.partition("/")[2] for key in events}
    told = {(int(found[1]), found[2]) for name in incidents if (found := TOLD.search(name))}
    wanted = {
        f"{replay}/{each}"
        for replay, entity, ids in commits
        if entity in SOBJECTS and (replay, entity) not in told
        for each in ids
        if len(str(each)) == ID_LENGTH or str(each).endswith("*")
    }
    counts.events_missing = sorted(wanted - there)
    _outputs(counts, records, installation, set(accepted))
    return counts


def _outputs(counts: Counts, records: Mapping[str, Iterable[ConsumerRecord]], installation: str, accepted: set[str]) -> None:
    counts.hooks = sum(1 for _ in records.get(f"{installation}.in.{WEBHOOK}", ()))
    outputs: Counter[str] = Counter()
    signups: Counter[str] = Counter()
    for target in TARGETS:
        for name in (f"{installation}.writes.{target}", f"{installation}.writes.{target}.bulk"):
            for record in records.get(name, ()):
                write: dict[str, Any] = json.loads(record.value)
                outputs["/".join(str(write.get(part)) for part in ("route", "source", "revision", "op", "key"))] += 1
                if write["route"] == HOOK_ROUTE and target == HOOK_TARGET:
                    signups[str(write["source"]).partition("/")[2]] += 1
    counts.writes = outputs.total()
    counts.writes_twice = _more_than_once(outputs)
    counts.hooks_wrong = {key: signups[key] for key in sorted(accepted | set(signups)) if signups[key] != (key in accepted)}


def _more_than_once(counted: Counter[str]) -> dict[str, int]:
    return {key: number for key, number in counted.items() if number > 1}


def read(bootstrap: str, installation: str, partitions: int) -> dict[str, list[ConsumerRecord]]:
    """Everything committed in the in-topics and writes topics, by topic. Raises TimeoutError, KafkaError."""
    return asyncio.run(_read(bootstrap, installation, partitions))


async def _read(bootstrap: str, installation: str, partitions: int) -> dict[str, list[ConsumerRecord]]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    found: dict[str, list[ConsumerRecord]] = {}
    try:
        async with asyncio.timeout(READ_SECONDS):
            await consumer.start()
            topics = [t for t in await consumer.topics() if t.startswith((f"{installation}.in.", f"{installation}.writes."))]
            parts = [TopicPartition(topic, part) for topic in topics for part in range(partitions)]
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)  # with read_committed: what is stable
            while left := [part for part in parts if await consumer.position(part) < ends[part]]:
                for records in (await consumer.getmany(*left, timeout_ms=200)).values():
                    for record in records:
                        found.setdefault(record.topic, []).append(record)
    finally:
        await consumer.stop()
    return found
