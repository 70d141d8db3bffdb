"""What the org allows within a rolling day, what of it is used, and how `/limits` and `Sforce-Limit-Info` tell it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy.sandbox.salesforce.errors import SalesforceError

if TYPE_CHECKING:
    from deploy.sandbox.salesforce.org import Org

DAY = 86_400
API, EVENTS, JOBS, STORAGE = "DailyApiRequests", "DailyDeliveredPlatformEvents", "DailyBulkV2QueryJobs", "DailyBulkV2QueryFileStorageMB"
PUBLISHED = "HourlyPublishedPlatformEvents"
UNLIMITED_EVENTS = 100_000_000  # what /limits shows where no limit is set: so high that no run reaches it
_VARIANTS = {API: "api", EVENTS: "events", JOBS: "bulk-jobs", STORAGE: "bulk-storage"}
_UNUSED = {  # shown, never used here
    "ConcurrentAsyncGetReportInstances": 200,
    "DailyAsyncApexExecutions": 250_000,
    "DailyBulkApiBatches": 15_000,
    "DailyDurableGenericStreamingApiEvents": 10_000,
    "DailyDurableStreamingApiEvents": 10_000,
    "DailyGenericStreamingApiEvents": 10_000,
    "DailyStreamingApiEvents": 10_000,
    "DataStorageMB": 1_024,
    "FileStorageMB": 1_024,
    "HourlyPublishedStandardVolumePlatformEvents": 1_000,
}


@dataclass(slots=True)
class Meter:
    """Uses by the second they were made in; those older than the window are forgotten."""

    window: int = DAY
    total: int = 0
    _seconds: deque[list[int]] = field(default_factory=deque)  # [second, uses]

    def add(self, now: float, count: int = 1) -> None:
        second = int(now)
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append([second, 0])
        self._seconds[-1][1] += count  # a clock set back adds to the latest second
        self.total += count

    def used(self, now: float, lag: float = 0) -> int:
        """Within the window before `now`, as it was `lag` seconds ago."""
        while self._seconds and self._seconds[0][0] <= now - self.window:
            self.total -= self._seconds.popleft()[1]
        recent = 0
        if lag:
            for second, count in reversed(self._seconds):
                if second <= now - lag:
                    break
                recent += count
        return self.total - recent


class Limits:
    def __init__(self, org: Org) -> None:
        self.org = org
        self.meters = {API: Meter(), EVENTS: Meter(), JOBS: Meter(), STORAGE: Meter(), PUBLISHED: Meter(3600)}

    def most(self, name: str) -> int:
        settings = self.org.settings
        most = {API: settings.daily_requests, EVENTS: settings.daily_events, JOBS: settings.daily_bulk_jobs, STORAGE: 976_562}
        return most.get(name, 250_000)

    def left(self, name: str, *, lag: float = 0) -> int:
        """How many more are allowed now. Events without a limit set: more than anybody takes."""
        if self.org.faults.peek("daily-limit", _VARIANTS.get(name, "none")):
            return 0
        if name == EVENTS and not self.org.settings.daily_events:
            return 10**12
        return max(0, self.most(name) - self.meters[name].used(self.org.now(), lag))

    def spend(self, name: str, count: int = 1) -> None:
        self.meters[name].add(self.org.now(), count)

    def spent(self, name: str) -> bool:
        """Whether nothing is left, noted as a refusal where so."""
        if self.left(name) > 0:
            return False
        self.org.faults.take("daily-limit", _VARIANTS.get(name, "none"))
        self.org.counts[f"refused by {name}"] += 1
        return True

    def call(self) -> str:
        """Count one call of REST or Bulk; the value of `Sforce-Limit-Info`. Errors: REQUEST_LIMIT_EXCEEDED, and it is not counted."""
        if self.spent(API):
            raise SalesforceError(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
        self.spend(API)
        return self.info()

    def info(self) -> str:
        most = self.most(API)
        return f"api-usage={most - min(most, self.left(API))}/{most}"

    def table(self, sessions: int) -> dict[str, Any]:
        """The body of `GET /limits`; as late as `limits_lag` says."""
        lag = self.org.settings.limits_lag
        shown = {name: (most, most) for name, most in _UNUSED.items()}
        for name in self.meters:
            left = self.left(name, lag=lag)
            if name == EVENTS and not self.org.settings.daily_events:
                most = UNLIMITED_EVENTS
                left = max(0, most - self.meters[name].used(self.org.now(), lag)) if left else 0
            else:
                most = self.most(name)
            shown[name] = (most, left)
        for name in ("StreamingApiConcurrentClients", "DurableStreamingApiConcurrentClients"):
            shown[name] = (2_000, max(0, 2_000 - sessions))
        return {name: {"Max": most, "Remaining": left} for name, (most, left) in sorted(shown.items())}
