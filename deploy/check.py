"""`headrace check`: every mistake in a flow file, its maps and filters, and all in which it does not fit the org and the targets.

It changes nothing anywhere: it logs in, describes, probes. Each finding names a file, a line and a remedy, or it is not worth telling.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from agents.maps import MapsError, load_maps
from agents.rules.takes import Takes
from agents.rules.ways import Way
from agents.targets import find_target, known_types, make_target
from agents.targets.base import Describing
from deploy.check_canary import canary_misfit
from deploy.check_fields import foretold
from deploy.check_org import Described, Judged, Misfit, Org
from deploy.context import read_settings
from models.errors import HeadraceError, PausedError, SettingsError, TemporaryError
from models.flow import Flow, Salesforce, channel_sobject, is_event
from models.settings import Settings
from streams.flow_file import FlowFile, explain, read_flow
from streams.log import set_up_logging
from streams.salesforce.auth import RETIRING, Login
from streams.salesforce.rest import Rest
from streams.salesforce.rights import described, sees_all, views_all_data
from streams.yaml_lines import Mistake, did_you_mean

PATIENCE = 30.0
Said = dict[tuple[str, str], Mapping[str, Takes]]
"""By target and object what its fields take."""


def run_check(flow_path: Path | None, *, offline: bool, as_json: bool, environ: Mapping[str, str] = os.environ) -> int:
    """Print what was found; 0 when nothing is wrong, 1 when something is."""
    settings = read_settings(flow_path, environ)
    set_up_logging(settings.log_format, level="CRITICAL")
    found = check_files(settings.flow, environ)
    _check_vault(found, settings)
    notes = login_notes(found) + ([] if offline else asyncio.run(check_online(found, settings)))
    mistakes = sorted(set(found.document.mistakes))
    if as_json:
        print(orjson.dumps({"ok": not mistakes, "mistakes": [asdict(mistake) for mistake in mistakes], "notes": notes}).decode())
    else:
        _print(settings.flow, mistakes, notes)
    return 1 if mistakes else 0


def check_files(path: Path, environ: Mapping[str, str]) -> FlowFile:
    """What the files alone show."""
    found = read_flow(path, environ)
    _check_targets(found)
    _check_key_files(found)
    _check_maps(found)
    return found


def _check_targets(found: FlowFile) -> None:
    document = found.document
    for name, target in found.flow.targets.items():
        place = ("targets", name)
        if target.type not in known_types():
            message = f"target {name} cannot be of type {document.texts.get((*place, 'type'), 'that')}"
            document.wrong((*place, "type"), message, did_you_mean(target.type, known_types()))
            continue
        kind = find_target(target.type)
        try:
            kind.options_class.model_validate(target.options)
        except ValidationError as error:
            explain(document, place, kind.options_class, error)


def _check_key_files(found: FlowFile) -> None:
    """Of the values as written, so that another mistake of the connection hides none of these."""
    for place in [place for place in found.document.texts if place[0] == "connections" and place[2:] == ("auth", "key_file")]:
        path = Path(found.flow.folder) / found.document.texts[place]
        try:
            head = path.read_bytes()[:11]
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no path"
            found.document.wrong(place, f"key_file {path} cannot be read ({why})", "put the private key (PEM) there")
        else:
            if head != b"-----BEGIN ":
                found.document.wrong(place, f"key_file {path} is no key in PEM form", "it begins with -----BEGIN PRIVATE KEY-----")


def _check_vault(found: FlowFile, settings: Settings) -> None:
    for name, connection in found.flow.connections.items():
        if isinstance(connection, Salesforce) and connection.auth.flow == "web_server" and settings.token_keys is None:
            message = f"connection {name} keeps a refresh token, and the environment variable HEADRACE_TOKEN_KEYS is not set"
            found.document.wrong(("connections", name, "auth"), message, "make a key with `openssl rand -hex 32`, and keep it")


def login_notes(found: FlowFile) -> list[str]:
    """Warnings about logins that work today."""
    logins = {name: part.auth.flow for name, part in found.flow.connections.items() if isinstance(part, Salesforce)}
    return [f"warning: {name} {RETIRING}" for name, flow in logins.items() if flow == "password"]


def _check_maps(found: FlowFile) -> None:
    """Maps, filters and keys of the routes whose target is known."""
    try:
        maps = load_maps(*_loadable(found, [name for name in found.flow.routes if found.sound("routes", name, "from")]))
    except MapsError as error:
        for problem in error.problems:
            if problem.file and problem.line:
                found.document.bad.add(problem.place)
                found.document.mistakes.append(Mistake(problem.file, problem.line, problem.message, problem.remedy))
            else:
                message = f"{problem.file}: {problem.message}" if problem.file else problem.message
                found.document.wrong(problem.place, f"route {problem.place[1]}: {message}", problem.remedy)
        sound = [name for name in found.flow.routes if found.sound("routes", name)]
        maps = load_maps(*_loadable(found, sound))
    for source in maps.sources:
        seen: dict[tuple[str, str], str] = {}
        for way in maps.ways(source):
            first = seen.setdefault((way.target, way.object), way.route)
            if first != way.route and ("routes", way.route) not in found.document.bad:
                message = f"routes {first} and {way.route} both write {source} to {way.object} of {way.target}"
                found.document.wrong(("routes", way.route), message, "join them, or give one an object: of its own")
            if "/" in source and not way.query and (dotted := sorted(path for path in way.fields if "." in path)):
                message = f"route {way.route}: {', '.join(dotted)} of {source} change without an event of {source}"
                found.document.wrong(("routes", way.route), message, "add fetch: query")


def _loadable(found: FlowFile, routes: Iterable[str]) -> tuple[Flow, dict[str, Any]]:
    facts = {name: find_target(target.type) for name, target in found.flow.targets.items() if target.type in known_types()}
    chosen = {name: found.flow.routes[name] for name in routes if found.flow.routes[name].to in facts}
    return found.flow.model_copy(update={"routes": chosen}), facts


async def check_online(found: FlowFile, settings: Settings) -> list[str]:
    """What the org and the targets say; notes are worth knowing and no mistakes. Parts that are wrong already are not asked."""
    notes: list[str] = []
    takes: Said = {}
    told: dict[str, Described] = {}
    for name in found.flow.targets:
        if found.sound("targets", name):
            takes |= await _check_reach(found, name, settings)
    for name, connection in found.flow.connections.items():
        if isinstance(connection, Salesforce) and found.sound("connections", name):
            notes += await _check_org(found, name, connection, settings, takes, told)
    if told:
        notes += foretold(*_loadable(found, [route for route in found.flow.routes if found.sound("routes", route)]), told)
    return notes


async def _check_org(
    found: FlowFile, name: str, connection: Salesforce, settings: Settings, takes: Said, told: dict[str, Described]
) -> list[str]:
    """`told`: describes of sources whose fields routes take as the org has them."""
    beyond: list[str] = []
    login = Login.of(settings, found.flow, name, connection)
    rest = Rest(name, connection, login)
    org = Org(name, rest.describe)
    sound = [route for route in found.flow.routes if found.sound("routes", route)]
    maps = load_maps(*_loadable(found, sound))
    try:
        await asyncio.wait_for(login.token(), PATIENCE)
        for source in maps.sources:
            if source.startswith(f"{name}/"):
                if any(found.flow.routes[way.route].fields for way in maps.ways(source)):
                    shown = await asyncio.wait_for(described(rest, source.partition("/")[2], "describe"), PATIENCE)
                    told |= {} if shown is None else {source: shown}
                for way in maps.ways(source):
                    for misfit in await asyncio.wait_for(org.misfits(source.partition("/")[2], sorted(way.fields)), PATIENCE):
                        _tell(found, way, misfit)
                    if not is_event(source):
                        for misfit in await asyncio.wait_for(org.map_misfits(source.partition("/")[2], way.map.written), PATIENCE):
                            _tell(found, way, misfit)
                        said = takes.get((way.target, way.object), {})
                        sole = len(found.flow.routes[way.route].sources) == 1
                        judged = Judged(way.unique.field if way.unique else None, way.key, sole)
                        tight = await asyncio.wait_for(org.beyond(source.partition("/")[2], way.map.written, said, judged), PATIENCE)
                        beyond += [f"route {way.route}, map {way.map.name}, {one}" for one in tight]
        await asyncio.wait_for(_check_sight(found, name, connection, rest), PATIENCE)
        if connection.canary is not None and (wrong := await asyncio.wait_for(canary_misfit(connection.canary, org, rest), PATIENCE)):
            found.document.wrong(("connections", name, "canary"), *wrong)
        for sobject in connection.poll:
            for misfit in await asyncio.wait_for(org.misfits(sobject, ["SystemModstamp", "IsDeleted"]), PATIENCE):
                if misfit.path is not None:  # an sObject that is not there is told at the route
                    message = f"{sobject} cannot be polled: {misfit.message}"
                    found.document.wrong(("connections", name, "poll", sobject), message, "take it out of poll:, or read it by snapshots")
    except (HeadraceError, TimeoutError) as error:
        _unreachable(found, ("connections", name), f"connection {name}", error)
        return []
    if connection.canary is None:
        return [
            f"{name}: nothing shows that a subscription is not deaf; define a platform event, then canary: {{event: Canary__e}}",
            *beyond,
        ]
    return beyond


async def _check_sight(found: FlowFile, name: str, connection: Salesforce, rest: Rest) -> None:
    """Channels withhold without a word what the user may not see."""
    blind: dict[str, str] = {}
    for sobject in found.flow.sobjects(name):
        if not await sees_all(rest, sobject, "describe"):
            blind.setdefault(connection.channel_of(sobject), sobject)
    everything = not blind or (await views_all_data(rest, "describe"))[0]
    for channel in found.flow.channels(name):
        if channel_sobject(channel) is None and not is_event(channel) and not everything:
            message = f"the user of {name} lacks View All Data: {channel} brings him nothing, without a word"
            found.document.wrong(("connections", name), message, "give the integration user the permission View All Data")
        elif channel in blind:
            message = f"the user of {name} lacks View All Records of {blind[channel]}, so {channel} refuses him"
            found.document.wrong(("connections", name), message, "give the integration user View All Records, or View All Data")


def _tell(found: FlowFile, way: Way, misfit: Misfit) -> None:
    """At the line of the map file that reads the field, else at the route's."""
    message = f"route {way.route}: {misfit.message}"
    line = misfit.line or next((leaf.line for leaf in way.map.written if misfit.path in leaf.sources), None)
    if line:
        found.document.mistakes.append(Mistake(way.map.name, line, message, misfit.remedy))
        return
    part = "from" if misfit.path is None else "where" if line is None else "map"  # 0: a built-in map
    found.document.wrong(("routes", way.route, part), message, misfit.remedy)


async def _check_reach(found: FlowFile, name: str, settings: Settings) -> Said:
    """Whether the target answers; what it says that it takes."""
    target = make_target(name, found.flow.targets[name], settings.installation)
    sound = [route for route in found.flow.routes if found.sound("routes", route) and found.flow.routes[route].to == name]
    maps = load_maps(*_loadable(found, sound))
    try:
        await asyncio.wait_for(target.probe(), PATIENCE)
        if isinstance(target, Describing):
            return {(name, one): await asyncio.wait_for(target.describe(one), PATIENCE) for one in maps.columns(name)}
    except (HeadraceError, TimeoutError) as error:
        _unreachable(found, ("targets", name), f"target {name}", error)
    finally:
        await target.close()
    return {}


def _unreachable(found: FlowFile, place: tuple[str, ...], what: str, error: Exception) -> None:
    match error:
        case PausedError() | SettingsError():
            remedy = "mend the login or the rights, then check again"
        case TemporaryError() | TimeoutError():
            remedy = "check its address and the network, or look at the files alone with --offline"
        case _:
            remedy = "see the message"
    said = str(error) or f"no answer within {PATIENCE:.0f} s"
    found.document.wrong(place, f"{what}: {said}", remedy)


def _print(path: Path, mistakes: Sequence[Mistake], notes: Sequence[str]) -> None:
    console = Console(soft_wrap=True)
    for mistake in mistakes:
        console.print(
            Text.assemble(
                (f"{mistake.file}{f':{mistake.line}' if mistake.line else ''}", "bold"), f": {mistake.message}\n    → {mistake.remedy}"
            )
        )
    for note in notes:
        warning = note.startswith("warning: ")
        console.print(Text(note if warning else f"note: {note}", style="yellow" if warning else "dim"))
    count = len(mistakes)
    console.print(
        Text(f"{path}: no mistake found.", "green") if not count else Text(f"{path}: {count} mistake{'s' * (count > 1)}.", "bold red")
    )
