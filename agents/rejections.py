"""What this worker knows of its targets' fields, by describe and by what they refused: the gates of routes whose quality names `target`.

Processing asks for gates, a writer tells what was refused and taken, and neither waits: what is learned goes with the writer's transaction
into the topic `rejections`, which all workers follow, and describes are asked for beside the work. Where nothing is known nothing is
stopped, and the target answers itself.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace as with_fields

import structlog
from msgspec.structs import replace

from agents.maps import Maps
from agents.rules.takes import IN_A_ROW, Known, Refusal, Takes, class_of, learn, mark_of, target_gate
from agents.rules.ways import Way
from agents.rules.writes import Json, read_json
from agents.targets.base import Describing, TargetLike
from models.errors import HeadraceError, TemporaryError
from models.flow import Flow
from models.learned import Learned
from models.scrub import scrub
from models.settings import Settings
from models.write import at_path
from streams.engine.stage import Output
from streams.follow import Followed
from streams.rejections import forgotten, learned_of, output_of
from streams.topics import Topics

log = structlog.get_logger()

LOOK_SECONDS, DESCRIBE_SECONDS, PATIENCE = 1.0, 30.0, 20.0
SOON_SECONDS = 3.0
"""A target that refused something is asked again what it takes after so long: it need not be asked for each."""
MOST = 1000
"""Learned of a route at a time: more is no pattern."""
GatesOf = Callable[[tuple[Way, ...]], tuple[Way, ...]]
"""Ways with the gates that they have now."""


def no_gates(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """No target is known."""
    return ways


class Rejections:
    """Of one process. `maps`: those in use, whenever asked."""

    def __init__(self, settings: Settings, flow: Flow, targets: Mapping[str, TargetLike], maps: Callable[[], Maps]) -> None:
        self.aimed = frozenset(name for name, route in flow.routes.items() if "target" in route.quality)
        self._targets, self._maps, self._topics = targets, maps, Topics(settings.installation)
        self._followed = Followed(settings, self._topics.rejections)
        self._said: dict[tuple[str, str], Mapping[str, Takes]] = {}
        self._learned: dict[str, dict[str, Learned]] = {}  # by route and key
        self._known: dict[str, dict[str, Known]] = {}  # the same by route and field
        self._gated: dict[tuple[str, str], tuple[Way, Way]] = {}  # as the maps have it, and with its gate
        self._row: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._described = float("-inf")

    def gates(self, ways: tuple[Way, ...]) -> tuple[Way, ...]:
        """These ways with their gates."""
        return tuple(map(self._with_gate, ways)) if self._gated else ways

    def _with_gate(self, way: Way) -> Way:
        plain, gated = self._gated.get((way.route, way.source), (way, way))
        return gated if plain is way else way  # another version of its map is in use by now

    async def follow(self) -> None:
        """Know what is learned and described, again and again; until it is cancelled."""
        try:
            while self.aimed:
                try:
                    await self.look()
                except TemporaryError as error:  # what was known holds
                    log.info("what targets refused could not be read", reason=error.reason)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self.close()

    async def look(self) -> None:
        """Once. Raises TemporaryError."""
        if time.monotonic() - self._described > DESCRIBE_SECONDS:
            await self._describe()
        found = learned_of((await self._followed.all_of(0)).items(), _now())
        self._learned = {route: {one.key: one for one in found.values() if one.route == route} for route in self.aimed}
        self._known = {route: _by_field(mine.values()) for route, mine in self._learned.items() if mine}
        self._compile()

    async def close(self) -> None:
        """Close."""
        await self._followed.stop()

    async def _describe(self) -> None:
        """Ask the targets; what one does not say now stays as it was."""
        self._described = time.monotonic()
        for name, object_name in sorted({(route.target, route.object) for route in map(self._maps().route, self._routes())}):
            target = self._targets[name]
            if isinstance(target, Describing):
                try:
                    async with asyncio.timeout(PATIENCE):
                        self._said[name, object_name] = await target.describe(object_name)
                except (HeadraceError, TimeoutError) as error:
                    log.info("a target does not say now what its fields take", target=name, reason=scrub(str(error)))

    def _routes(self) -> Iterable[str]:
        return sorted(self.aimed & self._maps().routes)

    def _compile(self) -> None:
        gated = {}
        maps = self._maps()
        for route in map(maps.route, self._routes()):
            said = self._said.get((route.target, route.object), {})
            for source, way in route.ways.items():
                sobject = source.partition("/")[2]
                if gate := target_gate(way.map.written, sobject, said, self._learned.get(route.name, {}).values(), way.version):
                    gated[route.name, source] = way, with_fields(way, beyond=gate)
        self._gated = gated

    def refused(self, refusal: Refusal) -> list[Output]:
        """What a target refused: what is to be stored for everybody."""
        if refusal.route not in self._routes():
            return []
        now, class_ = _now(), class_of(refusal.value)
        row = self._row[refusal.route, refusal.field, class_]
        if len(row) < IN_A_ROW:
            row.add(mark_of(refusal.value))
        route = self._maps().route(refusal.route)
        said = self._said.get((route.target, route.object), {}).get(refusal.field)
        fresh = learn(refusal, said.print if said else "", now, class_=len(row) >= IN_A_ROW)
        mine = self._learned.setdefault(refusal.route, {})
        if (before := mine.get(fresh.key)) is not None:
            fresh = replace(fresh, since=before.since, times=before.times + 1, least=min(before.least, fresh.least))
        elif len(mine) >= MOST:
            return []
        self._described = min(self._described, time.monotonic() - DESCRIBE_SECONDS + SOON_SECONDS)  # perhaps it takes something else now
        mine[fresh.key] = fresh
        self._known[refusal.route] = _by_field(mine.values())
        return [output_of(self._topics, fresh)]

    def took(self, route: str, source: str, body: Json) -> list[Output]:
        """A body that a target took is the proof to the contrary of whatever would stop it."""
        known = self._known.get(route)
        rows = [key for key in self._row if key[0] == route] if self._row else []
        if not (known or rows) or (read := read_json(body)) is None:
            return []
        for key in rows:
            if class_of(at_path(read, key[1].split("."))) == key[2]:
                del self._row[key]
        found = (field.stopping(at_path(read, path.split(".")), source) for path, field in (known or {}).items())
        wrong = [one for one in found if one is not None]
        for one in wrong:
            del self._learned[route][one.key]
            log.info("a target took what it had refused", route=route, field=one.field, rule=one.rule)
        if wrong:
            self._known[route] = _by_field(self._learned[route].values())
        return [forgotten(self._topics, one) for one in wrong]


def _by_field(learned: Iterable[Learned]) -> dict[str, Known]:
    found: defaultdict[str, list[Learned]] = defaultdict(list)
    for one in learned:
        found[one.field].append(one)
    return {field: Known.of(some) for field, some in found.items()}


def _now() -> int:
    return int(time.time() * 1000)
