"""Results of quality: of each batch and route how many records came, passed, failed, were removed as duplicates; and why they failed.

A batch is a run, or an hour of live events. What a chunk made of its records goes to the topic `quality` with the totals of its batch in
this partition, which stand in the stage's table: one record per batch in a chunk, all in the chunk's transaction. Hours are kept for a
week, each in the place of the one a week before it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agents.rules.quality import Fault
from streams import metrics
from streams.engine.stage import Changes, Output, Partition
from streams.quality import HOUR_MS, HOURS, Batch, Counted, Failure, Result
from streams.topics import Inbound, Topics

MARK = b"\x01quality|"
"""No source and no group begins so."""


class Tally:
    """Of one chunk of a stage. `part`: what several are made for in one transaction, and a run is counted by (a step of a refill)."""

    def __init__(self, stage: str, part: str = "") -> None:
        self.stage, self._part = stage, part
        self._batches: dict[str | None, dict[str, Result]] = {}

    def of(self, run: str | None, route: str) -> Result:
        """What the chunk makes of a route's records of one batch."""
        try:
            return self._batches[run][route]
        except KeyError:
            return self._batches.setdefault(run, {}).setdefault(route, Result())

    def close(self, table: str, partition: Partition, topics: Topics, timestamp: int) -> tuple[Changes, list[Output]]:
        """State and records. `timestamp` (epoch ms) of the chunk says which hour it is."""
        changes: Changes = []
        outputs: list[Output] = []
        for run, routes in self._batches.items():
            hour = timestamp // HOUR_MS
            name = f"run/{run}/{self._part}" if run else f"live/{hour % HOURS}"
            key = MARK + name.encode()
            (raw,) = partition.store(table).get_many([key])
            batch = _read(raw)
            if batch is None or (run is None and batch.hour != hour):
                batch = Batch(run or "", hour, self.stage, partition.number)
            batch.at, batch.chunk = timestamp, routes
            for route, result in routes.items():
                batch.routes.setdefault(route, Counted()).add(result)
            outputs.append(Output(topics.quality, f"{self.stage}/{partition.number}/{name}".encode(), msgspec.json.encode(batch)))
            batch.chunk = {}
            changes.append((key, msgspec.json.encode(batch)))
        return changes, outputs

    def count(self) -> None:
        """In the metrics: once the chunk's result is the one that stands."""
        for routes in self._batches.values():
            for route, result in routes.items():
                _measure(route, result)


def counted(inbound: Inbound, outcomes: Mapping[str, int], emitted: Mapping[tuple[str, str], int], tally: Tally) -> None:
    """In the metrics, what became of a chunk of an in-topic: by outcome, by route and target, and its quality."""
    for outcome, count in outcomes.items():
        metrics.PROCESSED.labels(inbound.connection, inbound.sobject, outcome).inc(count)
    for (route, target), count in emitted.items():
        metrics.EMITTED.labels(route, target).inc(count)
    tally.count()


def _read(raw: bytes | None) -> Batch | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=Batch)
    except msgspec.DecodeError:
        return None  # figures for people: they begin anew


def _measure(route: str, result: Result) -> None:
    for outcome, count in (("passed", result.passed), ("failed", result.failed), ("duplicate", result.removed)):
        if count:
            metrics.QUALITY.labels(route, outcome).inc(count)
    rules = Counter(rule for failure in result.failures for _, rule, _ in failure.faults)
    for rule, count in rules.items():
        metrics.QUALITY_FAULTS.labels(route, rule).inc(count)


def failed(result: Result, record_id: str, faults: tuple[Fault, ...]) -> None:
    """One record that failed."""
    result.came += 1
    result.failed += 1
    result.failures.append(Failure(record_id, [(fault.field, fault.rule, fault.found) for fault in faults]))


class Last(NamedTuple):
    """A record's last emission in a chunk, a single write: its place among the outputs, and of which run it was."""

    place: int
    made: Output
    always: bool
    run: str | None


class Once:
    """A record's last write in a chunk goes in the place of the one before it, where that says nothing else: a duplicate by its id."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._dropped = tally, set[int]()
        self._last: dict[tuple[str, str], Last] = {}

    def replaces(self, route: str, record_id: str, now: Last | None, *, joins: bool) -> bool:
        """Whether the write before is no longer needed. `now` None: more than a write was emitted. `joins`: its group counts it."""
        before = self._last.pop((route, record_id), None)
        if now is None:
            return False
        self._last[route, record_id] = now
        if before is None or (before.made.topic, before.made.key) != (now.made.topic, now.made.key) or before.always > now.always:
            return False
        self._dropped.add(before.place)
        result = self._tally.of(before.run, route)
        result.removed += 1
        if joins:
            result.came += 1
        else:
            result.passed -= 1
        return True

    def left(self, outputs: list[Output]) -> list[Output]:
        """Those that are needed."""
        return [made for place, made in enumerate(outputs) if place not in self._dropped] if self._dropped else outputs
