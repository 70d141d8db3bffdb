"""Maps of a flow: built-in ones and map files are read, compiled and checked once, before anything runs.

Reads files, asks nobody.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agents.map_file import Problem, read_map
from agents.rules.compound import PERSONS, parts
from agents.rules.filters import Filter, FilterError, compile_filter
from agents.rules.mapping import BUILT_IN, ColumnType, Map, compile_map, lacks
from agents.rules.plan import Plan, make_plan
from agents.rules.quality import gate
from agents.rules.ways import Way, key_fields
from models.errors import SettingsError
from models.flow import Flow, Route, is_event
from streams.map_versions import MapText, MapVersion
from streams.yaml_lines import did_you_mean

_NO_VERSIONS: Mapping[str, MapVersion] = {}


class TargetFacts(Protocol):
    """What maps must know of a target; every target has it."""

    @property
    def renames(self) -> bool: ...
    @property
    def key_field(self) -> str | None: ...
    @property
    def default_object(self) -> str | None: ...

    @staticmethod
    def refusal(name: str) -> str | None: ...
    def same_key(self, object: str, key: str) -> str: ...


class MapsError(SettingsError):
    """Maps, filters or keys cannot be used; `problems` holds all that were found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda p: (p.place, p.file or "", p.line, p.message))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class CompiledRoute:
    """A route with its way for each source."""

    name: str
    target: str
    object: str
    ways: Mapping[str, Way]
    version: int = 0


class InUse(Protocol):
    """The maps that are in use now: ask for each piece of work anew. Those that nobody changes are themselves so."""

    @property
    def now(self) -> "Maps": ...

    async def catch_up(self) -> None:
        """Know what is in use by now. Raises TemporaryError, FatalError."""
        ...


class Maps:
    """What a flow does to records, ready to be used."""

    now: "Maps"

    def __init__(self, routes: Mapping[str, CompiledRoute], columns: Mapping[str, Mapping[str, Mapping[str, ColumnType]]]) -> None:
        self.now, self._routes, self._columns = self, routes, columns
        self._ways: dict[str, tuple[Way, ...]] = {}
        for route in routes.values():
            for source, way in route.ways.items():
                self._ways[source] = (*self._ways.get(source, ()), way)
        self._plans = {
            source: make_plan(
                source.partition("/")[2],
                (path for way in ways for path in sorted(way.fields)),
                hook="/" not in source,
                event=is_event(source),
                version=sum(way.version for way in ways),
            )
            for source, ways in self._ways.items()
        }

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source a route reads."""
        return tuple(self._ways)

    def fields(self, source: str) -> tuple[str, ...]:
        """SOQL paths that rows of this source must hold; always Id, IsDeleted, SystemModstamp."""
        return self._plans[source].select

    def plan(self, source: str) -> Plan | None:
        """What is merged of this source; None when no route reads it."""
        return self._plans.get(source)

    def ways(self, source: str) -> tuple[Way, ...]:
        """This source's ways, in the order of the routes."""
        return self._ways.get(source, ())

    def columns(self, target: str) -> dict[str, Mapping[str, ColumnType]]:
        """By object of this target the top-level fields of its bodies and their types."""
        return dict(self._columns.get(target, {}))

    def version(self, route: str) -> int:
        """Of the route's map; 0 where it has none."""
        return self._routes[route].version if route in self._routes else 0

    async def catch_up(self) -> None:
        """These never change."""

    @property
    def routes(self) -> frozenset[str]:
        """Names of all routes."""
        return frozenset(self._routes)

    def route(self, name: str) -> CompiledRoute:
        """A route by name. Raises KeyError."""
        return self._routes[name]


def load_maps(flow: Flow, targets: Mapping[str, TargetFacts], versions: Mapping[str, MapVersion] = _NO_VERSIONS) -> Maps:
    """Read and compile every map, filter and key of the flow. Raises MapsError (a SettingsError) with all problems.

    versions   by route the map to take instead of what the flow file names
    """
    problems: list[Problem] = []
    routes: dict[str, CompiledRoute] = {}
    columns: dict[str, dict[str, dict[str, ColumnType]]] = {}
    for name, route in flow.routes.items():
        facts = targets.get(route.to)
        if facts is None:
            problems.append(Problem(("routes", name, "to"), f"unknown target {route.to}", did_you_mean(route.to, targets)))
            continue
        version = versions.get(name)
        found = _find_map(flow, name, route, problems, version.map if version else None)
        filter = _filter(name, route, problems)
        if found is None or (route.where is not None and filter is None):
            continue
        sobjects = tuple(source.partition("/")[2] for source in route.sources)
        _check(name, route, found, facts, filter, sobjects, problems)
        named = BUILT_IN[route.map].entity if route.map in BUILT_IN else None  # by the flow, whatever a later version is called
        object_name = route.object or facts.default_object or named or Path(route.map).stem
        number = version.number if version else 0
        ways = {
            source: replace(_way(name, route, order, source, object_name, found, facts, filter, sobjects), version=number)
            for order, source in enumerate(route.sources)
        }
        routes[name] = CompiledRoute(name, route.to, object_name, ways, number)
        into = columns.setdefault(route.to, {}).setdefault(object_name, {})
        for column, kind in found.columns(sobjects).items():
            if into.setdefault(column, kind) != kind:
                message = f"field {column} of {route.to} is {kind} here and {into[column]} in another route to the same object"
                problems.append(Problem(("routes", name, "map"), message, "give one of the routes another `object:`"))
    if problems:
        raise MapsError(problems)
    return Maps(routes, columns)


def _find_map(flow: Flow, name: str, route: Route, problems: list[Problem], text: MapText | None) -> Map | None:
    place, called = ("routes", name, "map"), text.name if text else route.map
    if (found := BUILT_IN.get(called)) is not None and (text is None or text.text is None):
        wrong = [source for source in route.sources if source.partition("/")[2] not in found.sobjects]
        for source in wrong:
            message = f"the built-in map {called} is for {' and '.join(found.sobjects)}, not for {source}"
            problems.append(Problem(place, message, "write a map file, or use another built-in map"))
        return None if wrong else found
    if (text is None or text.text is None) and not is_file(called):
        near = did_you_mean(called, BUILT_IN)
        problems.append(Problem(place, f"there is no built-in map {called}", f"{near}, or name a map file (.yaml, .json)"))
        return None
    try:
        loaded, wrongs = read_map(Path(flow.folder) / called, place, text.text if text else None)
    except ValueError:
        problems.append(Problem(place, "the name of the map file cannot be used", "write a path relative to the flow file"))
        return None
    problems += wrongs
    return loaded


def is_file(name: str) -> bool:
    """Whether `map:` names a file."""
    return name.lower().endswith((".yaml", ".yml", ".json"))


def _filter(name: str, route: Route, problems: list[Problem]) -> Filter | None:
    if route.where is None:
        return None
    try:
        return compile_filter(route.where)
    except FilterError as error:
        message = f"line {error.line}, column {error.column} of the filter: {error.message}"
        problems.append(Problem(("routes", name, "where"), message, "write it as in SOQL: Email != null AND Amount > 10"))
        return None


def _check(
    name: str, route: Route, found: Map, facts: TargetFacts, filter: Filter | None, sobjects: tuple[str, ...], problems: list[Problem]
) -> None:
    written = {".".join(leaf.target[:end]) for leaf in found.leaves for end in range(1, len(leaf.target) + 1)}
    if facts.key_field is not None:
        if route.key is not None and route.key != facts.key_field:
            message = f"the target {route.to} names its records by {facts.key_field}"
            problems.append(Problem(("routes", name, "key"), message, "remove `key:`"))
        if facts.key_field not in written:
            message = f"the map {route.map} never writes {facts.key_field}, by which the target {route.to} names its records"
            problems.append(Problem(("routes", name, "map"), message, f"add a line such as  Email: {facts.key_field}"))
    elif route.key is not None:
        try:
            missing = [path for path in key_fields(route.key) if path not in written]
        except ValueError as error:
            problems.append(Problem(("routes", name, "key"), f"the template cannot be read ({error})", "write {field} or {a}-{b}"))
        else:
            for path in missing:
                message = f"`key: {path}` is no field of the mapped body"
                problems.append(Problem(("routes", name, "key"), message, did_you_mean(path, sorted(written))))
    for leaf in found.leaves:
        if (reason := facts.refusal(leaf.target[0])) is not None:
            at = (found.name, leaf.line) if leaf.line else (None, 0)
            problems.append(Problem(("routes", name, "map"), reason, "give the field another target path", *at))
    lines = {source: leaf.line for leaf in reversed(found.leaves) for source in leaf.sources}
    for path in dict.fromkeys((*lines, *(filter.fields if filter else ()))):
        for sobject in sobjects:
            if path not in ("Name",) and not path.endswith("__c") and sobject and (compound := parts(sobject, path)):
                message = f"{path} of {sobject} is a compound field"
                remedy = f"use its parts: {', '.join(flat for _, flat in compound[:5])}"
                line = lines.get(path, 0)
                problems.append(Problem(("routes", name, "map"), message, remedy, found.name if line else None, line))


def _way(
    name: str,
    route: Route,
    order: int,
    source: str,
    object_name: str,
    found: Map,
    facts: TargetFacts,
    filter: Filter | None,
    sobjects: tuple[str, ...],
) -> Way:
    sobject = source.partition("/")[2]
    compiled = compile_map(found, sobject, sobjects)
    asked = [path for path in (filter.fields if filter else ()) if not lacks(sobject, path, sobjects)]
    same_key: Callable[[str, str], str] = facts.same_key
    return Way(
        route=name,
        source=source,
        target=route.to,
        object=object_name,
        order=order,
        query=route.fetch == "query" and bool(sobject),
        on_delete=route.on_delete,
        renames=facts.renames,
        fields=frozenset((*compiled.fields, *asked)),
        map=compiled,
        where=filter.matches if filter else None,
        key=facts.key_field or route.key,
        same_key=same_key,
        gate=gate(route.quality, found.entity, found.types(sobjects), compiled.required, found.done()),
        once="duplicates" in route.quality,
        mail=_mail(route, found, facts, sobjects),
    )


def _mail(route: Route, found: Map, facts: TargetFacts, sobjects: tuple[str, ...]) -> str | None:
    """By which field persons are compared: where the address is the target's key already, its writer decides between them."""
    persons = found.entity == "person" or set(sobjects) <= PERSONS
    named = facts.renames or (facts.key_field or route.key) == "email"
    return "email" if "duplicates" in route.quality and persons and not named and "email" in found.columns(sobjects) else None
