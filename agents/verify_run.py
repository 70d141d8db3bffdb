"""One verification of a source and of routes that read it: compared, repaired, and kept in the topic `runs` as what can be claimed.

The command and the schedule both come here.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import structlog

from agents.map_versions import Versions
from agents.maps import Maps
from agents.rejections import Rejections
from agents.rules.ways import Way
from agents.targets import make_target
from agents.targets.base import TargetLike
from agents.verify import Found, Seen, Show, SourceCheck, patiently
from agents.verify_targets import RouteCheck, RouteFound
from models.errors import HeadraceError, SettingsError, TemporaryError
from models.flow import Flow
from models.scrub import scrub
from models.settings import Settings
from streams.pauses import read_pauses
from streams.publish import Publisher
from streams.salesforce.renames import Followed
from streams.salesforce.rest import Rest
from streams.topics import Topics
from streams.verified import Verified, read_verified

log = structlog.get_logger()


async def verify_source(
    settings: Settings, flow: Flow, source: str, routes: Sequence[str], *, repair: bool, quick: bool, show: Show, rest: Rest | None = None
) -> tuple[Found, list[RouteFound]]:
    """Compare, and mend what differs. What is claimed is kept. `quick`: only what changed since all routes were verified, where they were;
    `rest`: of the process that asks.

    Raises SettingsError, PermanentError, TemporaryError, PausedError, FatalError: then nothing new is claimed.
    """
    routes = await _going_on(settings, routes)
    before = await patiently(partial(read_verified, settings))
    fresh = [Verified(name, source, flow.routes[name].to, "running", int(time.time() * 1000)) for name in routes]
    kept = [replace(one, through=last.through) if (last := before.get((one.route, source))) else one for one in fresh]

    since = min(one.through for one in kept) if quick else 0

    async def keep(what: Sequence[Verified]) -> None:
        await patiently(partial(publisher.send, [one.output(Topics(settings.installation)) for one in what]))

    async with Publisher(settings) as publisher:
        await keep(kept)
        try:
            found, by_route = await _compare(settings, flow, source, routes, repair, since, show, rest)
        except HeadraceError as error:
            await keep([replace(one, state="failed", at=_now(), why=scrub(str(error), 300)) for one in kept])
            raise
        await keep([_kept(one, found, next(r for r in by_route if r.route == one.route), repair) for one in kept])
        return found, by_route


async def _going_on(settings: Settings, routes: Sequence[str]) -> list[str]:
    """Those that nobody paused: what a paused one has not told yet is no difference. Raises TemporaryError where none is left."""
    pauses = await patiently(partial(read_pauses, settings))
    held = {name: pauses[f"route/{name}"] for name in routes if f"route/{name}" in pauses}
    for name, pause in held.items():
        log.warning("not verified", route=name, reason=str(pause))
    if len(held) == len(routes):
        raise TemporaryError(f"{'; '.join(map(str, held.values()))}: verify when it goes on")
    return [name for name in routes if name not in held]


async def _compare(
    settings: Settings, flow: Flow, source: str, routes: Sequence[str], repair: bool, since: int, show: Show, rest: Rest | None
) -> tuple[Found, list[RouteFound]]:
    """The targets are looked at after the source, so that all reach the same T."""
    targets = {name: make_target(name, options, settings.installation) for name, options in flow.targets.items()}
    maps = (await Versions(settings, flow, targets, strict=False).read()).now
    plan = maps.plan(source)
    if plan is None:
        raise SettingsError(f"no route reads {source}")
    connection, _, sobject = source.partition("/")
    followed = Followed(connection, {name: maps.fields(name) for name in maps.sources}, Topics(settings.installation))
    of_source = SourceCheck(settings, flow, source, plan, partial(followed.of_ids, sobject), rest)
    try:
        ways = tuple(way for way in maps.ways(source) if way.route in routes)
        await _start({way.target for way in ways}, targets, maps)
        ways = await _gated(settings, flow, targets, maps, ways)
        checks = [RouteCheck(settings, flow, way, targets[way.target], of_source.found.run) for way in ways]
        found = await of_source.run(since=since, show=show, seen=_all([each.seen for each in checks]))
        by_route = [await each.run() for each in checks]
        if repair:
            await of_source.repair()
            for each in checks:
                await each.repair()
        return found, by_route
    finally:
        await of_source.close()
        for target in targets.values():
            await target.close()


async def _start(names: set[str], targets: dict[str, TargetLike], maps: Maps) -> None:
    for name in sorted(names):
        await targets[name].start(maps.columns(name))


async def _gated(settings: Settings, flow: Flow, targets: Mapping[str, TargetLike], maps: Maps, ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """With what keeps records from the targets on purpose, as the workers know it."""
    rejections = Rejections(settings, flow, targets, lambda: maps)
    try:
        if rejections.aimed:
            await patiently(rejections.look)
        return rejections.gates(ways)
    finally:
        await rejections.close()


def _all(seen: Sequence[Seen]) -> Seen:
    def tell(id: str, state: object) -> None:
        for each in seen:
            each(id, state)  # type: ignore[arg-type]

    return tell


def settled(found: Found, route: RouteFound, repair: bool) -> bool:
    """Equal, or all that differed was repaired."""
    return not (route.behind or route.dead) and (repair or not (found.differences or route.differences))


def claimed(found: Found, route: RouteFound, repair: bool) -> int | None:
    """T of a route (epoch s, by Salesforce's clock); None where nothing can be claimed."""
    return found.through if route.comparable and settled(found, route, repair) else None


def why_not(route: RouteFound) -> str:
    """Why nothing can be claimed of a route, in words."""
    if not route.comparable:
        return "a target of this type cannot be read back"
    if route.behind:
        return f"the workers are {route.behind:,} records behind: run it again when they are through"
    return f"{route.dead:,} differences are dead letters (`headrace dead-letters`)" if route.dead else "differences were not repaired"


def _kept(one: Verified, found: Found, route: RouteFound, repair: bool) -> Verified:
    through = claimed(found, route, repair)
    counted = replace(
        one,
        at=_now(),
        compared=route.compared,
        differed=len(found.differences) + len(route.differences) + route.dead,
        repaired=found.repaired + route.repaired,
        calls=found.calls,
    )
    if through is None:
        return replace(counted, state="failed", why=why_not(route))
    return replace(counted, state="verified", through=max(through, one.through))


def _now() -> int:
    return int(time.time() * 1000)
