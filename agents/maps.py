"""Maps of a flow: built-in ones and map files are read, compiled and checked once, before anything runs.

Reads files, asks nobody.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast, get_args

from agents.map_file import Problem, read_map
from agents.map_steps import type_step
from agents.rules.compound import PERSONS, parts
from agents.rules.duplicates import MAIL, Grouping, grouping
from agents.rules.filters import Filter, FilterError, compile_filter
from agents.rules.mapping import BUILT_IN, ColumnType, Leaf, Map, MapType, column_of, compile_map, lacks
from agents.rules.plan import Plan, make_plan
from agents.rules.quality import gate
from agents.rules.ways import Way, key_fields
from models.errors import SettingsError
from models.flow import Flow, Route, is_event
from streams.map_versions import MapText, MapVersion, OrgFields
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
                (path for way in ways for path in sorted(way.fields | way.gone)),
                hook="/" not in source,
                event=is_event(source),
                version=sum(way.version for way in ways),
                gone={path for way in ways for path in way.gone} - {path for way in ways for path in way.fields},
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

    def read(self, source: str) -> frozenset[str]:
        """Every path that maps and filters read of this source, also those that the org does not show any more."""
        return frozenset().union(*(way.wanted for way in self._ways[source]))

    def wanted(self, source: str) -> tuple[str, ...]:
        """The columns of its rows, and those that a line of a map or a filter names though the org does not show them any more."""
        return (*self.fields(source), *sorted({path for way in self._ways[source] for path in way.gone - way.added}))

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
    read: list[tuple[CompiledRoute, Route, Map, Filter | None]] = []
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
        if route.fields and (other := [source for source in route.sources if "/" not in source or is_event(source)]):
            problems.append(
                Problem(("routes", name, "fields"), f"`fields: all` is for sObjects, not for {', '.join(other)}", "map its fields")
            )
        _check(name, route, found, facts, filter, sobjects, problems)
        named = BUILT_IN[route.map].entity if route.map in BUILT_IN else None  # by the flow, whatever a later version is called
        object_name = route.object or facts.default_object or named or Path(route.map).stem
        read.append((CompiledRoute(name, route.to, object_name, {}, version.number if version else 0), route, found, filter))
        into = columns.setdefault(route.to, {}).setdefault(object_name, {})
        for column, kind in found.columns(sobjects).items():
            if into.setdefault(column, kind) != kind:
                message = f"field {column} of {route.to} is {kind} here and {into[column]} in another route to the same object"
                problems.append(Problem(("routes", name, "map"), message, "give one of the routes another `object:`"))
    if problems:
        raise MapsError(problems)
    for compiled, route, found, filter in read:  # when the columns of all lines are known
        into, org = columns[route.to][compiled.object], versions[compiled.name].map.org or {} if compiled.name in versions else {}
        ways = {
            source: _way(compiled, route, order, source, found, targets[route.to], filter, org.get(source, OrgFields()), into)
            for order, source in enumerate(route.sources)
        }
        routes[compiled.name] = replace(compiled, ways=ways)
    return Maps(routes, columns)


def _added(
    sobject: str, found: Map, facts: TargetFacts, org: OrgFields, into: dict[str, ColumnType]
) -> tuple[tuple[Leaf, ...], dict[str, str]]:
    """What `fields: all` gives beside the map's lines, which come first; their columns go to `into`. And what it does not, and why."""
    read = {source for leaf in found.leaves if not leaf.sobjects or sobject in leaf.sobjects for source in leaf.sources}
    taken = {leaf.target[:end] for leaf in found.leaves for end in range(1, len(leaf.target) + 1)} - {("dataFields",)}
    leaves, left_out = [], {}
    for name, kind in org.added.items():
        target = ("dataFields", name) if facts.key_field == "email" else (name,)
        if name in read:
            continue
        if kind not in get_args(MapType):
            left_out[name] = "it is of another type now than its column"
        elif target in taken:
            left_out[name] = f"a line of the map writes {'.'.join(target)}"
        elif (refused := facts.refusal(target[0])) is not None:
            left_out[name] = refused
        else:
            column = "json" if len(target) > 1 else column_of(cast(MapType, kind))
            if (other := into.setdefault(target[0], column)) != column:
                left_out[name] = f"the column is {other} already, and the field {column}"
                continue
            step = type_step(cast(MapType, kind))
            leaves.append(Leaf(name, target, (step,) if step else (), (sobject,), type=cast(MapType, kind)))
    return tuple(leaves), left_out


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
    if route.unique is not None:
        problems += _check_unique(name, route, facts, written)
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


def _check_unique(name: str, route: Route, facts: TargetFacts, written: set[str]) -> list[Problem]:
    """Between records of one target key the writer decides, and a target that renames hands writes from key to key."""
    place, field, named = ("routes", name, "unique"), str(route.unique), facts.key_field or route.key
    if field == named:
        message = f"the target {route.to} names its records by {named}: those that share it are one record there"
        return [Problem(place, message, "remove `unique:`")]
    if facts.renames:
        return [Problem(place, f"`unique:` is not for the target {route.to}, which renames a record when its {named} changes", "remove it")]
    if field in written:
        return []
    message = f"the map {route.map} never writes {field}, which `unique:` names"
    return [Problem(place, message, did_you_mean(field, sorted(written), "add a line to the map"))]


def _way(
    of: CompiledRoute,
    route: Route,
    order: int,
    source: str,
    found: Map,
    facts: TargetFacts,
    filter: Filter | None,
    org: OrgFields,
    into: dict[str, ColumnType],
) -> Way:
    sobject, sobjects = source.partition("/")[2], tuple(source.partition("/")[2] for source in route.sources)
    added, left_out = _added(sobject, found, facts, org, into) if route.fields == "all" else ((), {})
    compiled = compile_map(replace(found, leaves=(*found.leaves, *added)), sobject, sobjects)
    asked = [path for path in (filter.fields if filter else ()) if not lacks(sobject, path, sobjects)]
    same_key: Callable[[str, str], str] = facts.same_key
    wanted, gone = frozenset((*compiled.fields, *asked)), frozenset(org.gone)
    return Way(
        route=of.name,
        source=source,
        target=of.target,
        object=of.object,
        order=order,
        query=route.fetch == "query" and bool(sobject),
        on_delete=route.on_delete,
        renames=facts.renames,
        fields=wanted - gone,
        gone=wanted & gone,
        added=frozenset(leaf.source for leaf in added) - frozenset(asked),
        left_out=left_out,
        version=of.version,
        map=compiled,
        where=filter.matches if filter else None,
        key=facts.key_field or route.key,
        same_key=same_key,
        gate=gate(route.quality, found.entity, found.types(sobjects), compiled.required, found.done()),
        once="duplicates" in route.quality,
        unique=_unique(route, found, facts, sobjects),
    )


def _unique(route: Route, found: Map, facts: TargetFacts, sobjects: tuple[str, ...]) -> Grouping | None:
    """By which field records are compared: persons by their address, but where that is the target's key already its writer decides."""
    if "duplicates" not in route.quality:
        return None
    if route.unique is not None:
        return grouping(route.unique)
    persons = found.entity == "person" or set(sobjects) <= PERSONS
    named = facts.renames or (facts.key_field or route.key) == MAIL
    return grouping(MAIL, mail=True) if persons and not named and MAIL in found.columns(sobjects) else None
