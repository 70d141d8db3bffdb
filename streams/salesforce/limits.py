"""How many calls may be made: the org's limits as it tells them, a forecast, and who steps back first. Rules only: no I/O, no waiting.

Salesforce counts API calls over the rolling 24 hours, ours and everybody else's together, and says so on most replies. Two fractions count:
what we used of our share, and what the org used of everything, or will have used: what can wait looks ahead, what is live does not.
"""

import re
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from models.errors import HeadraceError, TemporaryError

DAY, BUCKET = 86_400.0, 900.0
"""Own calls are counted in buckets of a quarter of an hour: one leaves the day up to so much late, never early."""
LEAD = 2 * 3600.0
"""So far ahead is looked."""
SLOPE_SECONDS, SLOPE_LEAST = 3600.0, 600.0
"""The usage's growth is taken over the last hour; less than ten minutes say nothing."""
RECENT = 120.0
"""Replies of parallel calls overtake each other: the highest figure of so many seconds counts."""
STALE = 900.0
"""After so long without a figure one call is let through to hear a new one."""
DAILY_SECONDS, CONCURRENT_SECONDS = 900.0, 120.0

AT_ONCE = 5
"""Calls of a process under way at a time, at most."""
CEILINGS: Mapping[str, float] = {
    "verify": 0.5, "snapshot": 0.7, "count": 0.7, "poll": 0.85, "rights": 0.85, "canary": 0.85, "repair": 0.95, "fetch": 0.95,
}  # fmt: skip
"""A purpose steps back when this fraction is used. What is not named (describe, limits: a person waits for it) may use all."""
CAN_WAIT = frozenset({"verify", "snapshot", "count"})
"""These step back already for a forecast."""
PATIENCE = 30.0
"""So many seconds, times what its ceiling leaves of 1, a purpose lets others pass where calls wait for each other."""
HEADER = re.compile(r"(?:^|;)\s*api-usage=([0-9]{1,12})/([0-9]{1,12})(?![0-9])")
DAILY_CALLS, DAILY_EVENTS = "DailyApiRequests", "DailyDeliveredPlatformEvents"
NAMES = (
    DAILY_CALLS, DAILY_EVENTS, "MonthlyPlatformEventsUsageEntitlement", "DailyBulkApiBatches", "DailyBulkV2QueryJobs",
    "DailyBulkV2QueryFileStorageMB", "StreamingApiConcurrentClients", "DurableStreamingApiConcurrentClients",
)  # fmt: skip
"""Limits that Headrace can run into: a closed set, it becomes a metric's label."""


class Step(IntEnum):
    """What to do without, one after another, before a limit."""

    NORMAL = 0
    NO_OPTIONAL = 1
    BATCH = 2
    POLL = 3
    STOP = 4


STEPS = (0.5, 0.7, 0.85, 0.95)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of the org."""

    most: int
    left: int


class LimitReachedError(TemporaryError):
    """Held back by ourselves, or refused by Salesforce for a limit: nothing is wrong with rights or data."""


def parse_header(text: str | None) -> tuple[int, int] | None:
    """(used, most) of `Sforce-Limit-Info`; None where it says nothing that can be used."""
    found = HEADER.search(text or "")
    return (int(found[1]), int(found[2])) if found and int(found[2]) else None


def parse_limits(body: Any) -> dict[str, Limit]:
    """What `/limits` says of the limits we can run into; what is not as described is left out."""
    found = {}
    for name in NAMES:
        part = body.get(name) if isinstance(body, dict) else None
        most, left = (part.get("Max"), part.get("Remaining")) if isinstance(part, dict) else (None, None)
        if type(most) is int and type(left) is int and most >= 0:
            found[name] = Limit(most, min(left, most))
    return found


def refused_for_a_limit(code: str, message: str) -> LimitReachedError | None:
    """The error of a 403 that is about a limit; None for every other, rights among them."""
    if code != "REQUEST_LIMIT_EXCEEDED":
        return None
    concurrent = "concurrent" in message.lower()
    which = "too many long calls at a time (`at_once` of the connection)" if concurrent else "the calls of the day are used up"
    said = f"Salesforce answered 403 {code}: {which}; waiting for the org's request limit"
    return LimitReachedError(said, retry_after=CONCURRENT_SECONDS if concurrent else DAILY_SECONDS)


def patience(purpose: str) -> float:
    """Seconds for which a call of that purpose lets others pass: live repair before snapshot before verify."""
    return PATIENCE * (1 - CEILINGS.get(purpose, 1.0))


_BEGUN = time.time() - time.monotonic()


def steady() -> float:
    """Epoch s, of a clock that nobody turns."""
    return _BEGUN + time.monotonic()


@dataclass(slots=True)
class Budget:
    """The calls of one connection in this process.

    share      fraction of the org's daily calls that may be ours, of all processes together
    elsewhere  calls of the rolling day made by the other processes
    leased     calls that may be made before leases.py asks for more; None: nobody shares with us
    at_once    calls that may be under way at a time, of all processes together
    processes  that have or had calls a moment ago, this one among them
    under_way  calls admitted whose reply is not there
    name       whose calls these are, for the others
    """

    connection: str
    share: float = 0.8
    clock: Callable[[], float] = steady
    most: int = 0
    elsewhere: int = 0
    leased: int | None = None
    at_once: int = 25
    processes: int = 1
    under_way: int = 0
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    limits: dict[str, Limit] = field(default_factory=dict)
    _own: deque[tuple[float, Counter[str]]] = field(default_factory=deque)
    _total: int = 0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _blocked: float = 0.0
    _refused: bool = False
    _probed: float = -STALE

    def admit(self, purpose: str) -> None:
        """Count a call that is made now; `heard` follows. Raises LimitReachedError with the seconds to wait, and counts nothing."""
        now = self.clock()
        if now < self._blocked or (self._refused and self.under_way):  # after a refusal one asks, not all
            wait = max(self._blocked - now, 1.0)
            raise LimitReachedError(
                f"{self.connection}: Salesforce refuses calls for a limit; the next one in {wait:.0f} s", retry_after=wait
            )
        ours, org, ahead = self._fractions(now)
        ceiling = CEILINGS.get(purpose, 1.0)
        if ours >= ceiling:
            raise self._held(purpose, f"{ours:.0%} of our share of the day's calls is used", self._until_less(now, ceiling))
        if (org := ahead if purpose in CAN_WAIT else org) >= ceiling:
            if now - max(self._seen[-1][0], self._probed) < STALE:
                raise self._held(purpose, f"the org's calls of the day are used to {org:.0%}, or soon will be", STALE / 3)
            self._probed = now
        if self.leased is not None:
            if self.leased <= 0:
                raise self._held(purpose, "our share of the day's calls is used, or leased to other processes", CONCURRENT_SECONDS / 2)
            self.leased -= 1
        self._count(purpose, now)
        self.under_way += 1

    def heard(self, header: str | None, *, ok: bool) -> None:
        """After each call that was admitted: what its reply said of the day's calls, and whether it was answered."""
        self.under_way -= 1
        if ok:
            self._refused = False
        if (found := parse_header(header)) is not None:
            used, self.most = found
            self._keep(used)

    @property
    def slots(self) -> int:
        """Calls that this process may have under way: its part, and at least one, whatever that makes together."""
        return max(1, min(AT_ONCE, self.at_once // self.processes))

    def told(self, body: Any) -> None:
        """What `/limits` said. It may be minutes behind, so a figure that a reply's header brought stands."""
        self.limits.update(parse_limits(body))
        fresh = self._seen and self.clock() - self._seen[-1][0] < RECENT
        if (calls := self.limits.get(DAILY_CALLS)) is not None and calls.most and not fresh:
            self.most = calls.most
            self._keep(calls.most - calls.left)

    def refused(self, error: HeadraceError) -> None:
        """Salesforce refused a call: for a limit, nobody asks again before the wait is over."""
        if isinstance(error, LimitReachedError) and error.retry_after:
            self._blocked, self._refused = max(self._blocked, self.clock() + error.retry_after), True

    @property
    def step(self) -> Step:
        """What must be done without now."""
        now = self.clock()
        if now < self._blocked:
            return Step.STOP
        ours, org, ahead = self._fractions(now)
        return max(_step(max(ours, org)), min(_step(ahead), Step.BATCH))

    @property
    def left(self) -> int | None:
        """Calls of the org that are left now; None while it has said nothing."""
        return None if not self.most or not self._seen else max(0, self.most - self._used(self.clock()))

    def forecast(self, ahead: float = LEAD) -> int | None:
        """Calls of the org used in the rolling day, so many seconds ahead, if it goes on as in the last hour."""
        if not self._seen:
            return None
        now = self.clock()
        used, (first, then) = self._used(now), self._seen[0]
        slope = (used - then) / (now - first) if now - first >= SLOPE_LEAST else 0.0
        return round(used + max(0.0, slope) * ahead)

    def own(self) -> Counter[str]:
        """Our calls of the rolling day by purpose."""
        self._drop(self.clock())
        return sum((calls for _, calls in self._own), Counter())

    def own_by_time(self) -> dict[int, dict[str, int]]:
        """The same by the time (epoch s) at which a bucket begins."""
        self._drop(self.clock())
        return {int(at): dict(calls) for at, calls in self._own}

    def of_share(self) -> float:
        """How much of our share is used, by all processes together; 0 while the org has said nothing."""
        self._drop(self.clock())
        return (self._total + self.elsewhere) / (self.share * self.most) if self.most else 0.0

    def _fractions(self, now: float) -> tuple[float, float, float]:
        """Of our share, of the org's limit now, and ahead."""
        if not self.most or not self._seen:  # others may have told what the limit is, before the org did
            return self.of_share(), 0.0, 0.0
        return self.of_share(), self._used(now) / self.most, (self.forecast() or 0) / self.most

    def _held(self, purpose: str, why: str, seconds: float) -> LimitReachedError:
        text = f"{self.connection}: calls for {purpose} wait, so that those that matter more still can be made: {why}"
        return LimitReachedError(text, retry_after=min(max(seconds, 1.0), DAILY_SECONDS))

    def _until_less(self, now: float, ceiling: float) -> float:
        """Seconds until so many of our calls are a day old that one more fits."""
        over = self._total + self.elsewhere - ceiling * self.share * self.most
        for at, calls in self._own:
            over -= calls.total()
            if over < 0:
                return at + BUCKET + DAY - now
        return DAILY_SECONDS

    def _count(self, purpose: str, now: float) -> None:
        if not self._own or now >= self._own[-1][0] + BUCKET:
            self._own.append((now, Counter()))
        self._own[-1][1][purpose] += 1
        self._total += 1

    def _drop(self, now: float) -> None:
        while self._own and self._own[0][0] + BUCKET + DAY <= now:
            self._total -= self._own.popleft()[1].total()

    def _keep(self, used: int) -> None:
        now = self.clock()
        if self._seen and now - self._seen[-1][0] < RECENT / 4:  # one figure for half a minute, the highest
            at, before = self._seen.pop()
            self._seen.append((at, max(before, used)))
        else:
            self._seen.append((now, used))
        while len(self._seen) > 1 and now - self._seen[0][0] > SLOPE_SECONDS:
            self._seen.popleft()

    def _used(self, now: float) -> int:
        recent = [used for at, used in self._seen if at >= now - RECENT]
        return max(recent, default=self._seen[-1][1]) + self.under_way


def _step(fraction: float) -> Step:
    return Step(sum(fraction >= limit for limit in STEPS))
