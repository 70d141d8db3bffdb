"""Maps follow the org: `fields: all` gives what describe shows now, and a field that is gone holds no record up.

Whoever owns a connection looks at intervals, and at once when something told of a change: an event made by another schema, a field that
Salesforce refused. What is found becomes a version of the route's map, as a changed file does, and with it, in one transaction, the run
that reads of every record the new fields and nothing else. No file is changed here, and no target is called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from functools import partial
from typing import Any, TypeVar

import structlog

from agents.map_draft import LEFT_OUT, NEVER, TYPES
from agents.map_versions import Versions
from agents.maps import InUse
from models.errors import PausedError, PermanentError, SettingsError, TemporaryError
from models.flow import Flow, Route, Salesforce
from models.scrub import scrub
from models.settings import Settings
from streams.map_versions import OrgFields
from streams.publish import send
from streams.salesforce.auth import Login
from streams.salesforce.columns import types_of
from streams.salesforce.described import forget
from streams.salesforce.leader import Leadership
from streams.salesforce.rest import Rest
from streams.salesforce.retry import retried
from streams.salesforce.rights import described
from streams.salesforce.runs import Run, filling, snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics

log = structlog.get_logger()

LOOK_SECONDS, AGAIN_SECONDS = 600.0, 5.0
"""Between two looks; and whatever tells of changes."""
AGE_SECONDS = 300.0
"""So old a describe may be that nobody told to forget: the look at rights has just asked for it."""
ROW_ONLY = frozenset({"LastActivityDate"})
"""Beside formulas, what events do not carry: known to routes that read each row."""
WHAT = "fields"
T = TypeVar("T")
Mend = Callable[[Rest], Awaitable[object]]
"""`follow_org` of a process."""


def left_out(field: Mapping[str, Any], *, query: bool) -> str:
    """Why `fields: all` does not give a field of a describe; "" where it does. `query`: rows are read, with what events do not carry."""
    kind = str(field.get("type"))
    if field["name"] in NEVER:
        return "Headrace's own, or of the user who looks"
    if kind in ("address", "location"):
        return "compound: its parts are fields"
    if kind in LEFT_OUT:
        return f"no column holds {kind}"
    if not query and (field.get("calculated") or field["name"] in ROW_ONLY):
        return "no event carries it: `fetch: query` brings it"
    return ""


def shown_fields(told: Mapping[str, Any], *, query: bool) -> dict[str, str]:
    """What `fields: all` gives, told a describe: by name the map's type."""
    return {
        str(field["name"]): TYPES.get(str(field.get("type")), "text")
        for field in told.get("fields") or ()
        if not left_out(field, query=query)
    }


def followed(route: Route, held: OrgFields, told: Mapping[str, Any], missing: Set[str]) -> OrgFields:
    """In what a route's map follows the org from now on. `missing`: of the paths it names, those that the org does not show.

    A field that became another type is not taken any more: its column has the type it had.
    """
    added: dict[str, str] = {}
    names = {str(field["name"]) for field in told.get("fields") or ()}
    if route.fields == "all":
        now = shown_fields(told, query=route.fetch == "query")
        same = {name for name, kind in held.added.items() if name not in names or now.get(name) == kind}
        added = now | {name: kind if name in same else "" for name, kind in held.added.items()}
    return OrgFields(added, tuple(sorted(missing | (added.keys() - names))))


async def follow_org(maps: Versions, flow: Flow, rest: Rest) -> dict[str, frozenset[str]]:
    """Make the maps in use go with what the org of `rest` has now; by source all its fields.

    Of an sObject that the user does not see nothing is said: the look at rights tells. Raises TemporaryError, PausedError, FatalError.
    """
    found: dict[str, tuple[Mapping[str, Any], frozenset[str]]] = {}
    for sobject in flow.sobjects(rest.connection):
        source = f"{rest.connection}/{sobject}"
        if (told := await described(rest, sobject, WHAT, age=AGE_SECONDS)) and told.get("fields"):
            kinds = await types_of(sobject, sorted(maps.now.read(source)), partial(described, rest, purpose=WHAT))
            found[source] = told, frozenset(path for path, kind in kinds.items() if kind is None)

    def org(name: str, held: Mapping[str, OrgFields]) -> dict[str, OrgFields]:
        route = flow.routes[name]
        ways = {way.source: way.wanted for source in route.sources for way in maps.now.ways(source) if way.route == name}
        fresh = {source: held.get(source, OrgFields()) for source in route.sources}
        for source in fresh.keys() & found.keys():
            told, missing = found[source]
            was = fresh[source].added
            fresh[source] = followed(route, fresh[source], told, missing & ways.get(source, frozenset()))
            if other := [field for field, kind in fresh[source].added.items() if not kind and was.get(field)]:
                log.warning("fields are of another type now, and are not taken any more", alert=True, route=name, source=source,
                            fields=other, do="write a line for each in a map file, with a target path of its own")  # fmt: skip
        return {source: fields for source, fields in fresh.items() if fields != OrgFields()}

    await maps.adapt(org)
    return {source: frozenset(str(field["name"]) for field in told["fields"]) for source, (told, _) in found.items()}


def mended(
    call: Callable[[], Awaitable[T]], maps: InUse | None, mend: Callable[[], Awaitable[object]] | None
) -> Callable[[], Awaitable[T]]:
    """A call that is made once more where it is refused a field, after `mend`, if the maps in use are others then."""

    async def made() -> T:
        seen = maps.now if maps else None
        try:
            return await call()
        except PermanentError as error:
            if error.field is None or mend is None or maps is None:
                raise
            await mend()
            if maps.now is seen:
                raise
        return await call()

    return made


class FieldWatch:
    """Of one connection, in each process that subscribes: looks where a change is told, and in the one that leads at intervals too."""

    def __init__(self, settings: Settings, flow: Flow, connection: str, maps: Versions) -> None:
        self._settings, self._flow, self._connection, self._maps = settings, flow, connection, maps
        self._names: dict[str, frozenset[str]] = {}
        self._leadership = Leadership(settings, f"fields.{connection}", f"fields.{connection}")

    async def first(self) -> None:
        """One look before anything is read, so that the first snapshot has all fields. It may fail: there will be others."""
        config = self._flow.connections[self._connection]
        if not isinstance(config, Salesforce):
            return
        rest = Rest(self._connection, config, Login.of(self._settings, self._flow, self._connection, config))
        try:
            await self._look(rest)
        finally:
            await rest.close()

    async def run(self, rest: Rest) -> None:
        """Until cancelled. Raises FatalError."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._looks(rest))
                group.create_task(self._leadership.whenever_mine(lambda: self._lead(rest), lambda: None))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _looks(self, rest: Rest) -> None:
        while True:
            await rest.reshaped.wait()
            rest.reshaped.clear()
            forget(self._settings, self._connection)
            await self._look(rest)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _look(self, rest: Rest) -> None:
        try:
            now = await follow_org(self._maps, self._flow, rest)
        except (TemporaryError, PausedError) as error:
            log.info("the org's fields are unknown now", connection=self._connection, reason=scrub(error.reason))
            return
        for source, names in now.items():
            if new := sorted(names - self._names.get(source, names) - self._maps.now.read(source)):
                log.info(
                    "the org has new fields that no map takes", source=source, fields=new, do="map them, or give a route `fields: all`"
                )
        self._names |= now

    async def _lead(self, rest: Rest) -> None:
        """Have it looked at intervals, and read what new versions of maps ask for."""
        due, seen = 0.0, None
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + LOOK_SECONDS
                rest.reshaped.set()
            if self._maps.now is not seen:
                seen = self._maps.now
                for run in (await retried(lambda: snapshot_runs(self._settings), WHAT)).values():
                    if run.open and run.by == "fields" and run.source.startswith(f"{self._connection}/"):
                        await self._fill(run, rest)
            await asyncio.sleep(1.0)

    async def _fill(self, run: Run, rest: Rest) -> None:
        plan, only = self._maps.now.plan(run.source), run.only.split(",")
        left = [name for name in only if plan and name in plan.select]
        if plan and left == only:
            try:
                await run_snapshot(self._settings, self._flow, run.source, plan.select, run_id=run.run, rest=rest, plan=plan.print)
            except (PermanentError, SettingsError) as error:
                log.warning("new fields are not filled in", alert=True, source=run.source, run=run.run, reason=scrub(str(error)),
                            do=f"headrace snapshot {run.source} --fields {run.only}")  # fmt: skip
            return
        others = filling(run.source, left)  # some of them are gone again
        outputs = [one.output(Topics(self._settings.installation)) for one in (run.stopped(), *others)]
        await retried(lambda: send(self._settings, outputs), WHAT)
        for other in others:
            await self._fill(other, rest)
