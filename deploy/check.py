"""`headrace check`: every mistake in a flow file, its maps and filters, and all in which it does not fit the org and the targets.

It changes nothing anywhere: it logs in, describes, probes. Each finding names a file, a line and a remedy, or it is not worth telling.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from agents.targets import find_target, known_types, make_target
from deploy.context import read_settings
from models.errors import HeadraceError, PausedError, SettingsError, TemporaryError
from models.flow import Salesforce
from models.settings import Settings
from streams.flow_file import FlowFile, Mistake, did_you_mean, explain, read_flow
from streams.log import set_up_logging
from streams.salesforce.auth import Login

PATIENCE = 30.0


def run_check(flow_path: Path | None, *, offline: bool, as_json: bool, environ: Mapping[str, str] = os.environ) -> int:
    """Print what was found; 0 when nothing is wrong, 1 when something is."""
    settings = read_settings(flow_path, environ)
    set_up_logging(settings.log_format, level="CRITICAL")
    found = check_files(settings.flow, environ)
    notes = [] if offline else asyncio.run(check_online(found, settings))
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


async def check_online(found: FlowFile, settings: Settings) -> list[str]:
    """What the org and the targets say; notes are worth knowing and no mistakes. Parts that are wrong already are not asked."""
    notes: list[str] = []
    for name, connection in found.flow.connections.items():
        if isinstance(connection, Salesforce) and found.sound("connections", name):
            notes += await _check_org(found, name, connection)
    for name in found.flow.targets:
        if found.sound("targets", name):
            await _check_reach(found, name, settings)
    return notes


async def _check_org(found: FlowFile, name: str, connection: Salesforce) -> list[str]:
    place = ("connections", name)
    login = Login(name, connection, found.flow.folder)
    try:
        await asyncio.wait_for(login.token(), PATIENCE)
    except (HeadraceError, TimeoutError) as error:
        _unreachable(found, place, f"connection {name}", error)
        return []
    return []


async def _check_reach(found: FlowFile, name: str, settings: Settings) -> None:
    target = make_target(name, found.flow.targets[name], settings.installation)
    try:
        await asyncio.wait_for(target.probe(), PATIENCE)
    except (HeadraceError, TimeoutError) as error:
        _unreachable(found, ("targets", name), f"target {name}", error)
    finally:
        await target.close()


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
        console.print(Text(f"note: {note}", style="dim"))
    count = len(mistakes)
    console.print(
        Text(f"{path}: no mistake found.", "green") if not count else Text(f"{path}: {count} mistake{'s' * (count > 1)}.", "bold red")
    )
