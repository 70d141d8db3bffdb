"""Gates against swarms: when many records of a route are deleted, emptied, or come at once, the route is paused and a person is asked.

What a worker saw within an hour is compared with the route's `gates:`, its partitions' share of them. The chunk that passes one is done
again with the route parked, and its transaction holds the pause: nothing of it reaches the target. From then on it is a pause like any
other (agents/holds.py): `headrace status` says why, `headrace resume` lets the records through as they are by then, mended or meant, and
`headrace refuse` drops those of the swarm, which are parked with their marks. Other routes go on. Counts live in the process: one that
starts anew begins at nothing.
"""

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from agents.rules.merge import RecordState
from agents.rules.ways import Way, leaves
from models.flow import Flow, Gates
from streams.engine.stage import Partition, Result
from streams.pauses import CAME, DELETE, NULL, Pause
from streams.quality import HOUR_MS
from streams.topics import Topics

log = structlog.get_logger()

HeldRoutes = Callable[[Collection[str], Partition], Awaitable[frozenset[str]]]
BEFORE_SEEN_SECONDS = 30.0
"""So long a route is taken for paused whose pause this process has written and not yet read."""
USUAL_HOURS, USUAL_LEAST = 24, 100
"""A spike is measured by the busiest of so many hours before, if that had so many records."""
Swarm = Counter[tuple[str, str]]
"""By route and mark."""


async def none_held(_routes: Collection[str], _partition: Partition) -> frozenset[str]:
    """No route is paused."""
    return frozenset()


def marks(way: Way, state: RecordState, changed: Collection[str]) -> list[str]:
    """As what a record counts that is about to be emitted to a route with gates: before the emission, after the merge."""
    keys = state.keys.get(way.route)
    if keys is None or keys.last is None:
        return [CAME]  # the target holds nothing of it that could be lost
    if leaves(way, state):
        return [CAME, DELETE]
    return [CAME, *(NULL + path for path in changed if path in way.fields and state.values.get(path, "") is None)]


def still(mark: str, way: Way, state: RecordState) -> bool:
    """Whether a record that counted so would do so again, as it is now."""
    if mark == CAME or leaves(way, state):
        return mark in (CAME, DELETE)
    return mark.startswith(NULL) and state.values.get(mark.removeprefix(NULL), "") is None


@dataclass(slots=True)
class _Route:
    """What was seen of a route: in this hour by mark, and records by hour before."""

    hour: int = 0
    now: Counter[str] = field(default_factory=Counter)
    usual: dict[int, int] = field(default_factory=dict)
    spared: int = -1  # the hour in which a spike was let through
    paused: bool = False


class Watch:
    """Of one worker."""

    def __init__(self, flow: Flow, topics: Topics) -> None:
        self.gates: dict[str, Gates] = {name: route.gates for name, route in flow.routes.items() if route.gates is not None}
        self.gated = frozenset(self.gates)
        self._topics, self._routes, self._written = topics, {name: _Route() for name in self.gates}, dict[str, float]()

    def paused(self, held: frozenset[str]) -> frozenset[str]:
        """`held` and what this process has just paused. A route that goes on begins to be counted anew: what waited was meant."""
        for name, route in self._routes.items():
            if name in held:
                self._written.pop(name, None)
            elif route.paused and name not in self._written:
                route.now.clear()
                route.spared = route.hour
            route.paused = name in held or name in self._written
        self._written = {name: until for name, until in self._written.items() if until > time.monotonic()}
        return held | self._written.keys()

    def passed(self, seen: Swarm, share: float, at: int) -> dict[str, tuple[str, str]]:
        """By route the mark that passes its gate, and why it must be paused, after a chunk of epoch ms `at` made this of its records."""
        why = {}
        for name in {name for name, _ in seen}:
            route = self._routes[name]
            if (hour := at // HOUR_MS) > route.hour:
                route.usual[route.hour] = route.now[CAME]
                route.usual = {one: count for one, count in route.usual.items() if one >= hour - USUAL_HOURS}
                route.hour = hour
                route.now.clear()
            for (of, mark), count in seen.items():
                if of == name:
                    route.now[mark] += count
            if passed := _passes(self.gates[name], route, share):
                why[name] = passed
        return why

    def hold(self, result: Result, why: Mapping[str, tuple[str, str]]) -> Result:
        """The result with the pauses."""
        now = int(time.time() * 1000)
        pauses = []
        for name, (mark, said) in why.items():
            self._written[name] = time.monotonic() + BEFORE_SEEN_SECONDS
            do = f"look; where it was meant headrace resume {name}, else headrace refuse {name}"
            log.error("a gate holds a route", alert=True, route=name, why=said, do=do)
            pauses.append(Pause("route", name, now, f"gate: {said}; was that meant? resume or refuse it", mark).output(self._topics))
        return Result([*result.outputs, *pauses], result.state)


def _passes(gates: Gates, route: _Route, share: float) -> tuple[str, str] | None:
    """Mark and words of the gate that is passed."""
    if gates.delete is not None and (count := route.now[DELETE]) > _part(gates.delete, share):
        return DELETE, f"{count} records left it within an hour (gates: delete: {gates.delete})"
    if gates.null is not None:
        for mark, count in route.now.items():
            if mark.startswith(NULL) and count > _part(gates.null, share):
                return mark, f"{mark.removeprefix(NULL)} became empty in {count} records within an hour (gates: null: {gates.null})"
    usual, came = max(route.usual.values(), default=0), route.now[CAME]
    if gates.spike is not None and usual >= USUAL_LEAST and came > gates.spike * usual and route.spared != route.hour:
        return CAME, f"{came} records within an hour, {usual} in the busiest one of a day (gates: spike: {gates.spike:g})"
    return None


def _part(limit: int, share: float) -> int:
    return max(1, math.ceil(limit * share))
