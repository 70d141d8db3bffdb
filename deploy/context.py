"""What every command begins with: the settings of the environment and the flow of the file. The only reader of os.environ but the demo."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from models.errors import SettingsError
from models.flow import Flow, Salesforce, is_event
from models.settings import Settings
from streams.flow_file import did_you_mean, load_flow
from streams.salesforce.auth import Login
from streams.salesforce.rest import Rest

DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*(ms|s|m|h|d)?")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def read_settings(flow: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings of the environment; `flow` stands before HEADRACE_FLOW. SettingsError names each wrong variable, and no value."""
    given = {str(field.alias): environ[str(field.alias)] for field in Settings.model_fields.values() if field.alias in environ}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        fields = {key: field for name, field in Settings.model_fields.items() for key in (name, str(field.alias))}  # a default has no alias
        faults = [(fields[str(fault["loc"][0])], fault["msg"]) for fault in error.errors(include_url=False, include_input=False)]
        told = [(field, text.removeprefix("Value error, ")) for field, text in faults]
        lines = [f"environment variable {field.alias}: {text[:1].lower()}{text[1:]} ({field.description})" for field, text in told]
        raise SettingsError("\n".join(lines)) from None
    return settings if flow is None else settings.model_copy(update={"flow": flow})


def read_all(flow: Path | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Settings, Flow]:
    """Settings and flow. Raises SettingsError (FlowError with every mistake of the file)."""
    settings = read_settings(flow, environ)
    return settings, load_flow(settings.flow, environ)


def choose_connection(flow: Flow, name: str | None) -> str:
    """The Salesforce connection that is meant: the one named, else the only one. Raises SettingsError."""
    names = [key for key, connection in flow.connections.items() if isinstance(connection, Salesforce)]
    if name is None and len(names) == 1:
        return names[0]
    if not names:
        raise SettingsError("the flow file has no Salesforce connection: add one below connections:")
    if name is None:
        raise SettingsError(f"which connection? The flow file has {', '.join(names)}: name one of them")
    if name not in names:
        raise SettingsError(f"there is no Salesforce connection {name!r}: {did_you_mean(name, names)}")
    return name


def rest_of(settings: Settings, flow: Flow, connection: str) -> Rest:
    """The REST client of a Salesforce connection, logged in by itself; to be closed. Raises SettingsError."""
    config = flow.connections[choose_connection(flow, connection)]
    assert isinstance(config, Salesforce)  # noqa: S101 - it was chosen among these
    return Rest(connection, config, Login.of(settings, flow, connection, config))


def choose_connections(flow: Flow, name: str | None) -> list[str]:
    """The one that is meant, or all of them for "all". Raises SettingsError."""
    names = [key for key, connection in flow.connections.items() if isinstance(connection, Salesforce)]
    return names if name == "all" and names and name not in names else [choose_connection(flow, name)]


def choose_source(flow: Flow, source: str) -> str:
    """A "<connection>/<sObject>" that a route of the flow reads. Raises SettingsError."""
    known = [
        f"{name}/{sobject}" for name, part in flow.connections.items() if isinstance(part, Salesforce) for sobject in flow.sobjects(name)
    ]
    if is_event(source) and source.partition("/")[2] in flow.read_from(source.partition("/")[0]):
        raise SettingsError(f"{source} is a platform event: Salesforce keeps no records of it that could be read (replay a route instead)")
    if source not in known:
        raise SettingsError(f"no route reads {source!r} from Salesforce: {did_you_mean(source, known, 'add a route first')}")
    return source


def choose_route(flow: Flow, route: str) -> str:
    """The name of a route. Raises SettingsError."""
    if route not in flow.routes:
        raise SettingsError(f"there is no route {route!r}: {did_you_mean(route, flow.routes, 'add it to the flow file')}")
    return route


def duration(text: str) -> float:
    """Seconds of "90", "90s", "5m", "1.5h". Raises SettingsError."""
    if (found := DURATION.fullmatch(text.strip())) is None or (seconds := float(found[1]) * SECONDS[found[2]]) <= 0:
        raise SettingsError(f"{text!r} is no length of time: write 90s, 5m or 2h")
    return seconds
