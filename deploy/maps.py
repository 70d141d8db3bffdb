"""`headrace map try`, `draft` and `activate`: see what a map does to one record; begin a map; put one into use. Only the last writes."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.map_draft import draft
from agents.map_file import read_map
from agents.map_versions import activate_file
from agents.rules.explain import Told, body_of, explain, sobject_of, values_of
from agents.rules.mapping import BUILT_IN, Map, compile_map
from agents.targets import find_target
from deploy.context import choose_connection, choose_route, read_all, rest_of
from deploy.looks import printable
from models.errors import SettingsError
from models.flow import Flow
from models.settings import Settings
from streams.log import set_up_logging
from streams.yaml_lines import did_you_mean

MOST_BYTES = 10_000_000


def try_map(flow_path: Path | None, name: str, record: str | None, sample: Path | None, source: str | None, as_json: bool) -> int:
    """Print before and after of one record; 0 when it would be written, 1 when it would be refused. Raises SettingsError."""
    if (record is None) == (sample is None):
        raise SettingsError("which record? Name its id by --record, or a file that holds one by --sample")
    found = _map(name)
    sobject = source.rpartition("/")[2] if source else None
    if sample is not None:
        row = _sample(sample)
        attributes = row.get("attributes")
        sobject = sobject or (str(attributes.get("type") or "") if isinstance(attributes, dict) else "")
    else:
        settings, flow = _read(flow_path)
        connection, sobject = _source(flow, name, str(record), source)
        row = asyncio.run(_fetch(settings, flow, connection, sobject, found, str(record)))
    told = explain(found, sobject, values_of(row, tuple(dict.fromkeys(path for leaf in found.leaves for path in leaf.sources))))
    body = body_of(told)
    if as_json:
        fields = [asdict(line) for line in told]
        print(orjson.dumps({"map": name, "source": sobject, "refused": body is None, "body": body, "fields": fields}).decode())
    else:
        Console().print(_table(told))
        print("refused" if body is None else orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
    return 1 if body is None else 0


def draft_map(flow_path: Path | None, source: str, target: str, out: Path | None) -> int:
    """Print a first map, or write it to a file that is not there yet. Raises SettingsError."""
    settings, flow = _read(flow_path)
    if target not in flow.targets:
        raise SettingsError(f"there is no target {target!r}: {did_you_mean(target, flow.targets)}")
    connection, slash, sobject = source.partition("/")
    choose_connection(flow, connection)
    if not slash or not sobject:
        raise SettingsError(f"{source!r} is no source: write for example {connection}/Contact")
    described = asyncio.run(_describe(settings, flow, connection, sobject))
    nested = find_target(flow.targets[target].type).key_field == "email"
    text = draft(source, target, described, nested)
    if out is None:
        print(text, end="")
        return 0
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SettingsError(f"{out} is there already, and is left as it is: name another file") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{out} cannot be written ({getattr(error, 'strerror', None) or error})") from None
    print(f"wrote {out}: remove what nobody needs, then `headrace map try {out} --record …`")
    return 0


def _read(flow_path: Path | None) -> tuple[Settings, Flow]:
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="CRITICAL")  # what is printed is for a person, or JSON
    return settings, flow


def _map(name: str) -> Map:
    if name in BUILT_IN:
        return BUILT_IN[name]
    found, problems = read_map(Path(name))
    if problems or found is None:
        raise SettingsError("\n".join(map(str, problems)))
    return found


def _sample(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = orjson.loads(file.read(MOST_BYTES))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} holds no record: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{path} holds no record: write one JSON object")
    return found


def _source(flow: Flow, name: str, record: str, source: str | None) -> tuple[str, str]:
    """Where the record is read: --from, else what a route with this map reads and the id fits."""
    if source is not None:
        connection, _, sobject = source.partition("/")
        choose_connection(flow, connection)
        return connection, sobject
    wanted = Path(name).resolve()
    routes = [route for route in flow.routes.values() if route.map == name or (Path(flow.folder) / route.map).resolve() == wanted]
    found = dict.fromkeys(one for route in routes for one in route.sources if "/" in one)
    chosen = [one for one in found if one.partition("/")[2] == sobject_of(record)] or list(found)
    if len(chosen) != 1:
        which = f"one of {', '.join(chosen)}" if chosen else "no route of the flow uses this map"
        raise SettingsError(f"where is {record} read? Say --from, such as --from acme/Contact ({which})")
    connection, _, sobject = chosen[0].partition("/")
    choose_connection(flow, connection)
    return connection, sobject


async def _fetch(settings: Settings, flow: Flow, connection: str, sobject: str, found: Map, record: str) -> dict[str, Any]:
    fields = ("Id", *(path for path in compile_map(found, sobject, ("Contact", "Lead")).fields if path != "Id"))
    rest = rest_of(settings, flow, connection)
    try:
        rows = (await rest.by_ids(sobject, fields, [record], "try")).rows
    except ValueError as error:
        raise SettingsError(f"{record!r} or {sobject!r} cannot be asked for: {error}") from None
    finally:
        await rest.close()
    if not rows:
        raise SettingsError(f"{connection} has no {sobject} {record}, or hides it from the user: check the id")
    return rows[0]


async def _describe(settings: Settings, flow: Flow, connection: str, sobject: str) -> dict[str, Any]:
    rest = rest_of(settings, flow, connection)
    try:
        return await rest.describe(sobject)
    finally:
        await rest.close()


def _table(told: list[Told]) -> Table:
    table = Table("field", "before", "target", "after", "why", box=None, pad_edge=False)
    for line in told:
        after = _shown(line.after) if line.written else "–"
        table.add_row(line.source, _shown(line.before), line.target, after, line.why, style="red" if line.fault else None)
    return table


def _shown(value: Any) -> Text:
    text = printable(orjson.dumps(value, default=str).decode())
    return Text(text if len(text) <= 60 else f"{text[:59]}…")


def activate_map(flow_path: Path | None, route: str, above: int) -> int:
    """Always 0. Raises SettingsError."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    version = asyncio.run(activate_file(settings, flow, choose_route(flow, route), above))
    print(f"route {route}: version {version.number} ({version.map.name}) is in use; `headrace replay {route}` writes past events by it")
    return 0
