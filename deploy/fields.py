"""`headrace fields`: what fields an sObject has for the connection's user, by describe, and which routes read them. Reads only.

A describe is kept below the state folder for an hour, or until a subscriber there learns of a change; --refresh asks again. The org is
asked through the limits guard.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from agents.maps import load_maps
from agents.org_fields import shown_fields
from agents.targets import make_target
from deploy.context import choose_connection, read_all, rest_of
from models.errors import PermanentError, SettingsError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.salesforce import described
from streams.salesforce.rest import check_name

COMPOUND = frozenset({"address", "location"})
"""Types of fields that stand for others: each of their parts is a field of its own."""


@dataclass(frozen=True, slots=True)
class Field:
    """`length` in characters, None where the type has none; `picklist`: its active values."""

    name: str
    label: str
    type: str
    updateable: bool
    custom: bool
    length: int | None
    picklist: tuple[str, ...]


def fields_of(described: Mapping[str, Any], *, writable: bool = False) -> list[Field]:
    """Of a describe: standard ones first, then custom ones, each by label; compound ones left out. What is no field is left out too."""
    found = [_field(one) for one in described.get("fields") or () if isinstance(one, dict) and one.get("name")]
    chosen = [field for field in found if field.type not in COMPOUND and (field.updateable or not writable)]
    return sorted(chosen, key=lambda field: (field.custom, field.label.casefold(), field.name))


def _field(one: Mapping[str, Any]) -> Field:
    name, length = str(one["name"]), one.get("length")
    values: Iterable[Any] = one.get("picklistValues") or ()
    return Field(
        name=name,
        label=str(one.get("label") or name),
        type=str(one.get("type") or ""),
        updateable=one.get("updateable") is True,
        custom=one.get("custom") is True,
        length=length if isinstance(length, int) and length > 0 else None,
        picklist=tuple(str(v.get("value")) for v in values if isinstance(v, dict) and v.get("active") is not False),
    )


def fields(flow_path: Path | None, source: str, writable: bool, refresh: bool, as_json: bool) -> int:
    """Print them. Exit code 0. Raises SettingsError, TemporaryError, PausedError."""
    settings, flow = read_all(flow_path)
    name, slash, sobject = source.partition("/")
    if not slash:
        raise SettingsError(f"{source!r} names no sObject: write for example {choose_connection(flow, None)}/Contact")
    connection = choose_connection(flow, name)
    told = asyncio.run(describe(settings, flow, connection, sobject, refresh=refresh))
    found, read = fields_of(told, writable=writable), readers(settings, flow, source, told)
    if as_json:
        print(orjson.dumps([asdict(field) | {"routes": read.get(field.name, [])} for field in found]).decode())
        return 0
    names = ("name", "label", "type", "length", "updateable", "routes", "picklist")
    table = Table(*names, title=f"{source}: {len(found)} fields", title_justify="left")
    for field in found:
        routes, picklist = ", ".join(read.get(field.name, ())), ", ".join(field.picklist)
        length, updateable = str(field.length or ""), "yes" if field.updateable else ""
        table.add_row(field.name, field.label, field.type, length, updateable, routes, picklist)
    Console().print(table)
    return 0


async def describe(settings: Settings, flow: Flow, connection: str, sobject: str, *, refresh: bool = False) -> dict[str, Any]:
    """From the state folder where it is younger than an hour, else from the org. Raises SettingsError, TemporaryError, PausedError."""
    config = flow.connections[connection]
    if not isinstance(config, Salesforce):
        raise SettingsError(f"{connection} is no Salesforce connection")
    try:
        check_name(sobject)
    except PermanentError as error:
        raise SettingsError(error.reason) from None
    if not refresh and (found := described.kept(settings, connection, sobject, config.url)) is not None:
        return found
    rest = rest_of(settings, flow, connection)
    try:
        told = await rest.describe(sobject)
    except PermanentError as error:
        raise SettingsError(f"{connection} has no sObject {sobject}, or hides it from the user ({error.reason})") from None
    finally:
        await rest.close()
    described.keep(settings, connection, sobject, config.url, told)
    return told


def readers(settings: Settings, flow: Flow, source: str, told: Mapping[str, Any]) -> dict[str, list[str]]:
    """By field the routes whose maps or filters read it, as the files are; none where one is broken: this helps to mend it."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    try:
        maps = load_maps(flow, {name: make_target(name, target, settings.installation) for name, target in flow.targets.items()})
    except SettingsError:
        return found
    for way in maps.ways(source):
        route = flow.routes[way.route]
        every = shown_fields(told, query=route.fetch == "query") if route.fields else {}
        for name in way.wanted.union(every):
            found[name].append(way.route)
    return found
