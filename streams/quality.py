"""What the topic `quality` holds and what people see of it: results by batch and route. Written by agents/tally.py, read here."""

import time
from collections.abc import Iterable

import msgspec
from msgspec import field

from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Record
from streams.topics import Topics
from streams.typed import of_type

HOUR_MS = 3_600_000
HOURS = 168
"""Of live events that are kept."""
MOST_CAUSES = 100
"""Kept of one batch, partition and route."""


class Failure(msgspec.Struct):
    """A record that failed: its id, and of each fault the field, the rule, the class of what stood there."""

    id: str
    faults: list[tuple[str, str, str]]


class Sums(msgspec.Struct, rename={"came": "inputCount", "passed": "passedCount", "failed": "failedCount", "removed": "duplicatesRemoved"}):
    """came = passed + failed + removed, always."""

    came: int = 0
    passed: int = 0
    failed: int = 0
    removed: int = 0


class Counted(Sums):
    """Of many chunks. `causes`: faults by field, rule and class in words, and how often."""

    causes: dict[str, int] = field(default_factory=dict)

    def add(self, result: "Result | Counted") -> None:
        """Count these too."""
        self.came, self.passed = self.came + result.came, self.passed + result.passed
        self.failed, self.removed = self.failed + result.failed, self.removed + result.removed
        for cause, count in (by_cause(result.failures) if isinstance(result, Result) else result.causes).items():
            if cause in self.causes or len(self.causes) < MOST_CAUSES:
                self.causes[cause] = self.causes.get(cause, 0) + count


class Result(Sums):
    """Of one chunk: as many `failures` as failed; `held`: of each duplicate its id and that of the record that stands for both."""

    failures: list[Failure] = field(default_factory=list)
    held: list[tuple[str, str]] = field(default_factory=list)


class Batch(msgspec.Struct):
    """Value of the topic: totals of one batch in one partition of a stage, and what the last chunk added.

    run     "": live events of one hour, `hour` since 1970; at: epoch ms of Kafka's clock
    """

    run: str
    hour: int
    stage: str
    partition: int
    at: int = 0
    routes: dict[str, Counted] = field(default_factory=dict)
    chunk: dict[str, Result] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As people read it."""
        return self.run or time.strftime("%Y-%m-%d %H:00Z", time.gmtime(self.hour * 3600))


def by_cause(failures: Iterable[Failure]) -> dict[str, int]:
    """How often each cause stands in them."""
    found: dict[str, int] = {}
    for failure in failures:
        for name, rule, value in failure.faults:
            cause = f"{name}: {rule}, found {value}"
            found[cause] = found.get(cause, 0) + 1
    return found


def batches_of(records: Iterable[Record]) -> list[Batch]:
    """The last of each key; what cannot be read is left out."""
    return list(of_type(records, Batch))


class Row(msgspec.Struct):
    """Of one route and batch, all stages and partitions together. `batch`: a run, or the hour that live events came in."""

    route: str
    batch: str
    live: bool
    at: int
    total: Counted


def rows_of(batches: Iterable[Batch], route: str | None = None) -> list[Row]:
    """The latest first."""
    found: dict[tuple[str, str], Row] = {}
    for batch in batches:
        for name, counted in batch.routes.items():
            if route in (None, name):
                row = found.setdefault((name, batch.name), Row(name, batch.name, not batch.run, 0, Counted()))
                row.at = max(row.at, batch.at)
                row.total.add(counted)
    return sorted(found.values(), key=lambda row: (-row.at, row.route, row.batch))


async def read_quality(settings: Settings) -> list[Batch]:
    """All that is kept. Raises TemporaryError, FatalError (no such topic)."""
    return batches_of(await read_all(settings, Topics(settings.installation).quality))
