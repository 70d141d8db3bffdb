"""Verifications that nobody asks for: in the process that leads them of a connection, one after another, each route when its time has come.

When that is stands in the topic `runs`, so a restart or another leader does not begin anew. It decides nothing about differences, and
whatever becomes of a verification, the subscription beside it goes on.
"""

import asyncio
import time
from collections.abc import Mapping

import structlog

from agents.verify import lanes, workers_done
from agents.verify_run import verify_source
from models.errors import HeadraceError, TemporaryError
from models.flow import Flow, Route, Salesforce
from models.scrub import scrub
from models.settings import Settings
from streams import metrics
from streams.salesforce.incidents import open_ones, read_incidents
from streams.salesforce.leader import Leadership
from streams.salesforce.positions import position_key, read_positions
from streams.salesforce.rest import Rest
from streams.salesforce.retry import retried
from streams.salesforce.runs import snapshot_runs
from streams.verified import Found, Verified, read_verified, through

log = structlog.get_logger()

TICK, SOON = 30.0, 3.0
"""Seconds between two looks at what is due, and where that waits for a snapshot or a repair."""
AGAIN_SECONDS = 1800.0
"""So long after one that came to no end, or could claim nothing, it is tried again."""
LEFT_SECONDS = 3600.0
"""A snapshot that somebody began and that nobody worked on for so long holds nothing up."""
WHAT = "verify"


class Schedule:
    """The scheduled verifications of one connection."""

    def __init__(self, settings: Settings, flow: Flow, connection: str) -> None:
        self._settings, self._flow = settings, flow
        org = flow.connections[connection]
        self._routes = {n: r for n, r in flow.routes.items() if any(s.startswith(f"{connection}/") for s in r.sources)}
        self._positions: dict[str, str] = {}  # by source the key of its position
        if isinstance(org, Salesforce):
            self._positions = {f"{connection}/{s}": position_key(connection, org.channel_of(s)) for s in flow.sobjects(connection)}
        name = f"verify.{connection}"
        self._leadership = Leadership(settings, name, name)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return any(route.verify is not None for route in self._routes.values())

    async def run(self, rest: Rest) -> None:
        """Until cancelled."""
        await retried(self._leadership.join, WHAT)
        try:
            while True:
                await self._leadership.mine.wait()
                work, lost = asyncio.create_task(self._lead(rest)), asyncio.create_task(self._leadership.lost.wait())
                try:
                    await asyncio.wait([work, lost], return_when=asyncio.FIRST_COMPLETED)
                    if work.done():
                        await work
                finally:
                    for task in (work, lost):
                        task.cancel()
                    await asyncio.wait([work, lost])
        finally:
            await self._leadership.leave()

    async def _lead(self, rest: Rest) -> None:
        while True:
            try:
                held = await self._look(rest)
            except HeadraceError as error:
                held = False
                alert = not isinstance(error, TemporaryError)
                log.warning("not verified", alert=alert, connection=rest.connection, reason=scrub(str(error)))
            await asyncio.sleep(SOON if held else TICK)

    async def _look(self, rest: Rest) -> bool:
        """Verify what is due; whether something of it has to wait for a snapshot or a repair. Raises as `verify_source`."""
        found = await retried(lambda: read_verified(self._settings), WHAT)
        self._show(found)
        held = False
        for source in self._positions:
            if not (routes := due(self._routes, source, found, time.time())):
                continue
            if not await self._quiet(source):
                held = True
                continue
            await self._verify(source, routes, rest)
            self._show(await retried(lambda: read_verified(self._settings), WHAT))
        return held

    async def _verify(self, source: str, routes: list[str], rest: Rest) -> None:
        found, by_route = await verify_source(
            self._settings, self._flow, source, routes, repair=True, quick=False, show=lambda *_: None, rest=rest
        )
        for route in by_route:
            kinds = found.kinds + route.kinds
            log.info("verified", source=source, route=route.route, compared=route.compared, behind=route.behind, dead=route.dead, **kinds)

    async def _quiet(self, source: str) -> bool:
        """It was begun, and nothing of it is being read anew: what is still to come by that would be taken for differences."""
        stored = await retried(lambda: read_positions(self._settings), WHAT)  # before the runs, which come with it or earlier
        runs = await retried(lambda: snapshot_runs(self._settings), WHAT)
        incidents = await retried(lambda: read_incidents(self._settings), WHAT)
        mine = [run for run in runs.values() if run.source == source]
        read = any(run.open and (run.by == "first" or time.time() - run.at / 1000 < LEFT_SECONDS) for run in mine)
        begun = bool(mine) or self._positions[source] in stored
        if not begun or read or open_ones(incidents.values(), [source]):
            return False
        return not await workers_done(self._settings, self._flow, SOON, lanes(self._settings, source))

    def _show(self, found: Found) -> None:
        for name, route in self._routes.items():
            if route.verify is not None:
                metrics.VERIFY_EVERY.labels(name).set(route.verify)
            if route.verify is not None or any((name, source) in found for source in route.sources):
                metrics.VERIFIED.labels(name, route.to).set(through(found, name, route.sources))


def due(routes: Mapping[str, Route], source: str, found: Found, now: float) -> list[str]:
    """Routes from a source that are to be verified now (epoch s); those never verified first of all."""
    return [
        name
        for name, route in routes.items()
        if route.verify is not None and source in route.sources and now >= next_at(route.verify, found.get((name, source)))
    ]


def next_at(every: float, last: Verified | None) -> float:
    """When (epoch s) a route that was last verified so is to be verified again."""
    if last is None:
        return 0.0
    return last.at / 1000 + (every if last.state == "verified" else min(every, AGAIN_SECONDS))
