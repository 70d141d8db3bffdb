"""The versions of maps that are in use: followed from the topic `maps` by every process, made by workers out of changed map files.

What is in the topic counts, not the file beside a process. A worker publishes what its file says when that is new: at the first start, when
it was changed since, or while the worker watches it (`older` says what is not new). A broken file changes nothing, and says so once.
Whoever reads a version from the topic uses it from the next chunk on; so all processes switch within the time that a record takes, and
where one is a moment late, the writer refuses what it still shapes by the older map (agents/rules/delivery.py).
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agents.maps import InUse, Maps, MapsError, TargetFacts, is_file, load_maps
from agents.rules.mapping import BUILT_IN
from agents.targets import make_target
from agents.targets.base import Columns
from models.errors import FatalError, SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams import metrics
from streams.consume import close_consumer, reading
from streams.engine.stage import Output
from streams.map_versions import MapText, MapVersion, OrgFields, hash_of, older, parse, publish, read_versions
from streams.salesforce.runs import filling, snapshot_runs
from streams.topics import Topics
from streams.yaml_lines import Document, read_text

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class File:
    """What a route's map is beside this process; `problem` where it cannot be read."""

    map: MapText
    problem: str = ""


class Versions:
    """Of one process. `now` are the maps in use: take it once for each piece of work.

    strict   the process ends when it cannot use what the others use (a worker); else it goes on with what it had, and says so
    """

    def __init__(self, settings: Settings, flow: Flow, targets: Mapping[str, TargetFacts], *, strict: bool) -> None:
        self._settings, self._flow, self._targets, self._strict = settings, flow, targets, strict
        self.known: dict[str, MapVersion] = {}
        self._now: Maps | None = None
        self.broken: dict[str, str] = {}
        """By route why its file is not used."""
        self._accepted: dict[str, str] = {}  # by route the hash of the file as it was last taken for right
        self._seen: dict[str, str] = {}  # as it was looked at last
        self._refused: dict[str, str] = {}
        self._adapting = asyncio.Lock()

    @property
    def now(self) -> Maps:
        """In use. Only after `read` or `begin`."""
        if self._now is None:
            raise RuntimeError("maps are known after Versions.read() or begin()")
        return self._now

    def version(self, route: str) -> int:
        """Number of the version of a route's map; 0 before it has one."""
        return self.now.version(route)

    def columns(self, target: str) -> Mapping[str, Columns]:
        """By object of the target what the maps give it."""
        return self.now.columns(target)

    async def read(self) -> "Versions":
        """Know what is in use; where nothing is, our own files. Raises TemporaryError, FatalError, MapsError."""
        self._take(await read_versions(self._settings), strict=True)
        return self

    async def catch_up(self) -> None:
        """Know what is in use by now. Raises TemporaryError, FatalError."""
        self._take(await read_versions(self._settings))

    async def begin(self) -> "Versions":
        """The same for a worker, whose own maps are published where they are new. Raises TemporaryError, FatalError, MapsError."""
        found = await read_versions(self._settings)
        files = self._files()
        for route, file in files.items():
            if file.problem and route in found:
                self._say([route], file, found)
            elif not file.problem and route in found and older(found[route], file.map, None):
                self._follows(route, file, found[route])
        wanted = {route: file.map for route, file in files.items() if not file.problem}
        wanted = {route: text for route, text in wanted.items() if route not in found or not older(found[route], text, None)}
        new = {route: text for route, text in wanted.items() if route not in found or found[route].map.hash != text.hash}
        fit = self._fit(found, new) if all(route in found for route in new) else new  # at the first start all must be right
        if fit:
            load_maps(self._flow, self._targets, _with(found, fit))
            found = await self._publish(fit, {})
        self._accepted = {route: file.map.hash for route, file in files.items() if not file.problem and route not in self.broken}
        self._take(found, strict=True)
        return self

    async def activate(self, wanted: Mapping[str, MapText], *, above: int = 0) -> dict[str, MapVersion]:
        """Make these the next versions of their routes' maps, wherever they come from, an older file too; what is in use then.

        `above`: the number must be higher than this. Raises MapsError when they do not fit the flow, TemporaryError, FatalError.
        """
        load_maps(self._flow, self._targets, _with(await read_versions(self._settings), wanted))
        found = await publish(self._settings, lambda _: wanted, above=above)
        self._take(found)
        return found

    async def adapt(self, org: Callable[[str, Mapping[str, OrgFields]], Mapping[str, OrgFields]]) -> None:
        """Make the maps follow the org: `org` says by source how a route does, told how it did. New fields of records that are there are to
        be read, by a run that is in Kafka together with the version. Raises TemporaryError, FatalError.
        """
        files = await asyncio.to_thread(self._files)

        def choose(known: Mapping[str, MapVersion]) -> Mapping[str, MapText]:
            maps = {route: file.map for route, file in files.items() if not file.problem}
            maps |= {route: version.map for route, version in known.items() if route in files}
            fresh = {route: replace(map, org=org(route, map.org or {})) for route, map in maps.items()}
            return {route: map for route, map in fresh.items() if map.org != (maps[route].org or {})}

        async with self._adapting:
            if not choose(self.known):
                return
            runs = await snapshot_runs(self._settings)
            begun = {run.source for run in runs.values() if run.state != "wanted"}
            self._take(await publish(self._settings, choose, beside=lambda known, fresh: self._filling(known, fresh, begun)))

    def _filling(self, known: Mapping[str, MapVersion], fresh: Sequence[MapVersion], begun: Set[str]) -> list[Output]:
        """Runs that read what these versions want and those before did not."""
        before, after = self._loaded(known), self._loaded({**known, **{version.route: version for version in fresh}})
        outputs, topics = list[Output](), Topics(self._settings.installation)
        for source in after.sources:
            had, has = before.fields(source) if before.plan(source) else (), after.fields(source)
            new, gone = [path for path in has if path not in had], [path for path in had if path not in has]
            if new:
                log.info("the org has new fields, which maps take", source=source, fields=new)
            if gone:
                log.warning("the org does not show fields any more that maps take; their columns stay as they are",
                            alert=True, source=source, fields=gone, do="take them out of the map, or grant them to the user")  # fmt: skip
            outputs += [run.output(topics) for run in filling(source, new if source in begun else ())]
        return outputs

    def _loaded(self, versions: Mapping[str, MapVersion]) -> Maps:
        """These alone: the file of a route that has none may be broken."""
        routes = {name: route for name, route in self._flow.routes.items() if name in versions}
        return load_maps(self._flow.model_copy(update={"routes": routes}), self._targets, versions)

    async def follow(self) -> None:
        """Switch to every version when it comes. Raises FatalError when it cannot be used (`strict`)."""
        parts = [TopicPartition(Topics(self._settings.installation).maps, number) for number in range(self._settings.partitions)]
        away = False
        while True:
            consumer = None
            try:
                consumer = await reading(self._settings, parts)
                while True:
                    found = await consumer.getmany(timeout_ms=1000)
                    if records := [record for some in found.values() for record in some]:
                        self._take(parse(records))
                    away = False
            except KafkaError as error:
                if not away:
                    log.warning("the versions of maps cannot be followed now", error=type(error).__name__)
                away = True
            finally:
                if consumer is not None:
                    await close_consumer(consumer)
            await asyncio.sleep(AGAIN_SECONDS)

    async def watch(self) -> None:
        """Look at the map files again and again. Raises FatalError."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except TemporaryError as error:  # the next look finds the same
                log.warning("a changed map cannot be published now", reason=error.reason)

    async def look(self) -> None:
        """Publish what was changed in files; each must be seen the same twice, for it may be written just now."""
        changed: dict[str, MapText] = {}
        for route, file in (await asyncio.to_thread(self._files)).items():
            seen, self._seen[route] = self._seen.get(route), file.map.hash
            if self._accepted.get(route) == file.map.hash:
                self._right(route)
            elif seen == file.map.hash != self._refused.get(route):
                if file.problem:
                    self._say([route], file, self.known)
                else:
                    changed[route] = file.map
        if not changed:
            return
        if fit := self._fit(self.known, changed):
            before = dict(self._accepted)
            found = await self._publish(fit, before)
            for route, text in fit.items():
                self._accepted[route] = text.hash
                self._right(route)
                if found[route].map.hash != text.hash:
                    self._follows(route, File(text), found[route])
            self._take(found)

    async def _publish(self, wanted: Mapping[str, MapText], before: Mapping[str, str]) -> dict[str, MapVersion]:
        def choose(known: Mapping[str, MapVersion]) -> Mapping[str, MapText]:
            held = {route: known.get(route) for route in wanted}
            return {route: text for route, text in wanted.items() if not ((h := held[route]) and older(h, text, before.get(route)))}

        return await publish(self._settings, choose)

    def _files(self) -> dict[str, File]:
        return {name: self._file(route.map) for name, route in self._flow.routes.items()}

    def _file(self, name: str) -> File:
        """The map that the flow file names, as it is here."""
        if not is_file(name):
            return File(MapText(name, None, _built_in(name)), "" if name in BUILT_IN else f"there is no built-in map {name}")
        document = Document(str(Path(self._flow.folder) / name))
        try:
            text = read_text(Path(document.file), document)
        except ValueError as error:
            return File(MapText(name, None, hash_of(str(error))), f"{name}: {error}")
        if text is None:
            problem = "\n".join(map(str, document.mistakes))
            return File(MapText(name, None, hash_of(problem)), problem)
        return File(MapText.of(name, text))

    def _fit(self, known: Mapping[str, MapVersion], wanted: Mapping[str, MapText]) -> dict[str, MapText]:
        """Those that can be used: together, else file by file."""
        if not wanted:
            return {}
        names = {text.name for text in wanted.values()}
        try:
            load_maps(self._flow, self._targets, _with(known, wanted))
        except MapsError as error:
            if len(names) == 1:
                self._say(list(wanted), File(next(iter(wanted.values())), str(error)), known)
                return {}
        else:
            return dict(wanted)
        found: dict[str, MapText] = {}
        for name in sorted(names):
            found |= self._fit(_with(known, found), {route: text for route, text in wanted.items() if text.name == name})
        return found

    def _say(self, routes: Sequence[str], file: File, known: Mapping[str, MapVersion]) -> None:
        """Once for each content."""
        for route in routes:
            self._refused[route] = file.map.hash
            self.broken[route] = file.problem
            metrics.MAP_BROKEN.labels(route).set(1)
            number = known[route].number if route in known else 0
            log.error("a map file is broken: it changes nothing", alert=True, route=route, in_use=f"version {number}", problem=file.problem)

    def _right(self, route: str) -> None:
        self._refused.pop(route, None)
        if self.broken.pop(route, None) is not None:
            log.info("the map file is right again", route=route)
        metrics.MAP_BROKEN.labels(route).set(0)

    def _follows(self, route: str, file: File, held: MapVersion) -> None:
        log.warning("a map file is older than the version in use, which is followed", route=route, file=file.map.name,
                    in_use=f"version {held.number}", do=f"bring the file up to date, or: headrace map activate {route}")  # fmt: skip

    def _take(self, found: Mapping[str, MapVersion], *, strict: bool | None = None) -> None:
        """Use what is later than what is in use."""
        later = {
            route: version
            for route, version in found.items()
            if route in self._flow.routes and (route not in self.known or self.known[route].number < version.number)
        }
        if not later and self._now is not None:
            return
        versions = {**self.known, **later}
        try:
            now = load_maps(self._flow, self._targets, versions)
        except MapsError as error:
            if self._now is None:
                raise
            said = f"{', '.join(f'version {v.number} of the map of {r}' for r, v in later.items())} cannot be used here: {error}"
            if self._strict if strict is None else strict:
                raise FatalError(f"{said}; start this worker with the flow and the version of Headrace that the others have") from None
            log.error("a map that others use cannot be used here", alert=True, problem=said)  # noqa: TRY400 - it is a mistake in a file
            return
        first = self._now is None
        self.known, self._now = versions, now
        for route, version in later.items():
            metrics.MAP_VERSION.labels(route).set(version.number)
            if not first:
                log.info("another version of a map is in use", route=route, version=version.number, map=version.map.name)


class Fields(Mapping[str, Sequence[str]]):
    """By source the columns its rows are read with, as the maps in use want them when asked; `gone`: those that the org lacks beside."""

    def __init__(self, maps: InUse, *, gone: bool = False) -> None:
        self._maps, self._gone = maps, gone

    def __getitem__(self, source: str) -> Sequence[str]:
        if self._maps.now.plan(source) is None:
            raise KeyError(source)
        return self._maps.now.wanted(source) if self._gone else self._maps.now.fields(source)

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps.now.sources)

    def __len__(self) -> int:
        return len(self._maps.now.sources)


async def maps_in_use(settings: Settings, flow: Flow) -> Versions:
    """For a command or a subscriber: what is in use when it is called. Raises SettingsError, TemporaryError, FatalError."""
    targets = {name: make_target(name, target, settings.installation) for name, target in flow.targets.items()}
    return await Versions(settings, flow, targets, strict=False).read()


async def activate_file(settings: Settings, flow: Flow, route: str, above: int = 0) -> MapVersion:
    """Make the map that the flow names the next version of a route's. Raises SettingsError (MapsError), TemporaryError, FatalError."""
    versions = await maps_in_use(settings, flow)
    file = versions._file(flow.routes[route].map)
    if file.problem:
        raise SettingsError(file.problem)
    return (await versions.activate({route: file.map}, above=above))[route]


def _with(known: Mapping[str, MapVersion], wanted: Mapping[str, MapText]) -> dict[str, MapVersion]:
    fresh = {route: known[route].next(text) if route in known else MapVersion(route, 1, text) for route, text in wanted.items()}
    return {**known, **fresh}


def _built_in(name: str) -> str:
    """What tells definitions of a built-in map apart: its version is that of the code."""
    found = BUILT_IN.get(name)
    leaves = (
        [f"{'|'.join(leaf.sources)}>{'.'.join(leaf.target)}:{[step.name for step in leaf.steps]}" for leaf in found.leaves] if found else []
    )
    return hash_of("\n".join([f"built-in {name}", *leaves]))
