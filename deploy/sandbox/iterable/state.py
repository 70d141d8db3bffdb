"""What the sandbox Iterable is at a moment: projects by key, limits, faults, the request log. No HTTP."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from deploy.sandbox.faults import Faults, Kind
from deploy.sandbox.iterable.project import Project

API_KEY = "sandbox-iterable-key"
RATES = {
    "/api/users/bulkUpdate": 5.0,
    "/api/users/update": 500.0,
    "/api/users/updateEmail": 100.0,
    "/api/users/merge": 50.0,
    "user": 100.0,
    "slow": 3.0,
}
STYLES = ("json", "text", "retry-after")
KINDS = {
    "cut-body": Kind("do it, then send half of the answer"),
    "html-404": Kind("answer with an HTML page and 404"),
    "text-429": Kind("answer 429 in plain text"),
    "json-429": Kind("answer 429 in JSON, with Retry-After or without", ("plain", "retry-after")),
    "500-json": Kind("answer 500 with a JSON code", ("before", "mismatch")),
    "latency": Kind("do it, and answer late by some seconds", seconds=2.0),
    "reset-after-commit": Kind("do it, then cut the connection"),
    "reset-before": Kind("cut the connection and do nothing"),
    "down": Kind("be away: answer 503, or refuse", ("503", "refuse"), times=None),
    "revoke": Kind("refuse every key", times=None),
}


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` a second, as many at once."""

    rate: float
    tokens: float
    at: float

    def take(self, now: float) -> bool:
        self.tokens = min(max(self.rate, 1.0), self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class State:
    projects: dict[str, Project]  # by API key
    faults: Faults = field(default_factory=lambda: Faults(KINDS))
    rates: dict[str, float] = field(default_factory=lambda: dict(RATES))
    style: str = "json"  # of a 429
    max_bytes: int = 4_000_000
    log: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=20_000))
    buckets: dict[tuple[int, str], Bucket] = field(default_factory=dict)

    def admitted(self, project: Project, limit: str) -> bool:
        """Whether the project's limit for that endpoint lets one more request in."""
        now = time.monotonic()
        rate = self.rates[limit]
        bucket = self.buckets.setdefault((project.number, limit), Bucket(rate, max(rate, 1.0), now))
        bucket.rate = rate
        return rate <= 0 or bucket.take(now)
