"""The flow file, read: YAML text to models/flow.py, with every mistake told by file, line and remedy.

What a file alone can show is found here. Whether target options, maps, filters and the org fit is known further up: deploy/check.py goes
on with the parts that are right. Nothing is connected to, nothing is logged.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from models.flow import NAME, Auth, Canary, Connection, Flow, Route, Salesforce, Target, Webhook, is_event
from streams.flow_channels import check_canaries, check_channels, check_polls
from streams.yaml_lines import Document, Path_, read_yaml
from streams.yaml_lines import FlowError as FlowError
from streams.yaml_lines import Mistake as Mistake
from streams.yaml_lines import did_you_mean as did_you_mean

P = TypeVar("P", bound=BaseModel)
SECTIONS = ("connections", "targets", "routes")
TYPES: dict[str, type[BaseModel]] = {"salesforce": Salesforce, "webhook": Webhook}
SOBJECT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
EXAMPLE = "deploy/examples/demo.yaml shows one"
LOGIN_URLS = ("https://login.salesforce.com", "https://test.salesforce.com")
ADDRESS = re.compile(r"(https?)://([^/\s:@\[\]]+|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?/?")
NEEDED = {
    "jwt": ("username", "key_file"),
    "client_credentials": ("client_secret",),
    "password": ("client_secret", "username", "password"),
}
"""By login flow, beside client_id. web_server needs nothing more: `headrace login` brings its refresh token."""
OLD_VERSION = re.compile(r"v?([0-9]{2})\.0")
RETIRED_VERSION = 30
WORDS = {"string": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list: [a, b]"}


class FlowFile:
    """A file read as far as it goes: `flow` holds the parts that are right in themselves, `document` the mistakes and the lines."""

    def __init__(self, document: Document, flow: Flow) -> None:
        self.document, self.flow = document, flow

    def sound(self, *path: str) -> bool:
        """No mistake was found at or below this place."""
        return not any(bad[: len(path)] == path for bad in self.document.bad)


def load_flow(path: Path, environ: Mapping[str, str]) -> Flow:
    """The flow of a file, or FlowError with all its mistakes. Paths inside are relative to `Flow.folder`, the file's own."""
    found = read_flow(path, environ)
    if found.document.mistakes:
        raise FlowError(found.document.mistakes)
    return found.flow


def read_flow(path: Path, environ: Mapping[str, str]) -> FlowFile:
    """The same for one who wants to go on in spite of mistakes."""
    document = read_yaml(path, environ, f"name the file with --flow or HEADRACE_FLOW; {EXAMPLE}")
    connections: dict[str, Connection] = {}
    targets: dict[str, Target] = {}
    routes: dict[str, Route] = {}
    if not document.mistakes or document.value is not None:  # one that cannot be read has said so already
        sections = _sections(document)
        for name, value in sections["connections"].items():
            if (connection := _connection(document, name, value)) is not None:
                connections[name] = connection
        for name, value in sections["targets"].items():
            if (target := _part(document, ("targets", name), Target, value)) is not None:
                targets[name] = target
        for name, value in sections["routes"].items():
            if (route := _route(document, name, value, sections)) is not None:
                routes[name] = route
        _check_overlaps(document, routes)
        check_channels(document, sections["connections"], routes)
        check_polls(document, connections, routes)
    flow = Flow(connections=connections, targets=targets, routes=routes, folder=str(path.parent))
    check_canaries(document, flow)
    return FlowFile(document, flow)


def explain(document: Document, path: Path_, part: type[BaseModel], error: ValidationError) -> None:
    """Note pydantic's findings about the value at `path` as mistakes. No message repeats a value, except of words from a closed set."""
    for fault in error.errors(include_url=False, include_input=False):
        place = (*path, *fault["loc"])
        if any(place[:end] in document.bad for end in range(len(path) + 1, len(place) + 1)):
            continue
        name, context = str(place[-1]), fault.get("ctx", {})
        shown = document.texts.get(place, "this")
        match fault["type"]:
            case "missing":
                if path in document.bad:
                    continue
                document.bad.add(place)
                document.wrong(place[:-1], f"{_named(place[:-1])} has no {name}", f"add `{name}: …`")
                document.bad.discard(place[:-1])
            case "extra_forbidden":
                known = _fields(part, fault["loc"][:-1])
                document.wrong(place, f"{_named(place[:-1])} knows no {name}", did_you_mean(name, known, "remove it"))
            case "literal_error":
                known_words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
                document.wrong(place, f"{name} cannot be {shown}", did_you_mean(shown, known_words))
            case "string_pattern_mismatch":
                document.wrong(place, f"{name} cannot be {shown}", f"it must match {context.get('pattern')}")
            case "too_short":
                document.wrong(place, f"{name} is empty", "name at least one")
            case "string_type" if document.texts.get(place):
                document.wrong(place, f"{name} must be text", f'put it in quotes: {name}: "{shown}"')
            case kind if (word := WORDS.get(kind.split("_")[0])) and kind.endswith(("_type", "_parsing", "from_float")):
                document.wrong(place, f"{name} must be {word}", f"write {name}: {_example(kind)}")
            case "model_type" | "model_attributes_type" | "dict_type":
                document.wrong(place, f"{name} must be a mapping", f"write {name}: {{key: value}}")
            case _:
                text = fault["msg"].removeprefix("Value error, ")
                document.wrong(place, f"{name}: {text[:1].lower()}{text[1:]}", "change it so")


def _example(kind: str) -> str:
    return {"string": "a word", "int": "10", "float": "10.0", "bool": "true", "tuple": "[a, b]"}[kind.split("_")[0]]


def _named(path: Path_) -> str:
    kind = {"connections": "connection", "targets": "target", "routes": "route"}.get(str(path[0]) if path else "", "")
    return " ".join([kind, ".".join(map(str, path[1:]))]).strip() if path else "the file"


def _fields(part: type[BaseModel], inner: tuple[str | int, ...]) -> list[str]:
    within: dict[object, type[BaseModel]] = {"auth": Auth, "canary": Canary}
    model = within.get(inner[0], part) if inner else part
    return [field.alias or name for name, field in model.model_fields.items()]


def _sections(document: Document) -> dict[str, dict[str, Any]]:
    """The three mappings of name to raw part; what is not so is a mistake and empty."""
    whole = document.value
    if whole is None or whole == {}:
        document.wrong((), "is empty", f"begin with connections:, targets: and routes:; {EXAMPLE}")
        return {section: {} for section in SECTIONS}
    if not isinstance(whole, dict):
        document.wrong((), "is not a mapping", "begin with connections:, targets: and routes:")
        return {section: {} for section in SECTIONS}
    for name in whole:
        if name not in SECTIONS:
            document.wrong((name,), f"the file knows no {name}", did_you_mean(name, SECTIONS))
    found: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        value, found[section] = whole.get(section), {}
        if section not in whole:
            document.wrong((), f"{section}: is missing", f"add {section}: with a name and its settings below")
        elif not isinstance(value, dict) or not value:
            document.wrong((section,), f"{section} holds no names", f"write each of the {section} as `name: {{…}}` below {section}:")
        else:
            found[section] = value
        for name in found[section]:
            if not re.fullmatch(NAME, name):
                remedy = "a letter first, then letters, digits, _ or -, at most 41: it becomes part of a topic's name"
                document.wrong((section, name), f"{name!r} is no name", remedy)
    return found


def _part(document: Document, path: Path_, part: type[P], value: Any) -> P | None:
    if not isinstance(value, dict):
        document.wrong(path, f"{_named(path)} must be a mapping", f"write {path[-1]}: {{key: value}}")
        return None
    for name in value:
        if name in part.model_fields and (alias := part.model_fields[name].alias):
            document.wrong((*path, name), f"{_named(path)} knows no {name}", f"did you mean {alias}?")
    try:
        return part.model_validate(value)
    except ValidationError as error:
        explain(document, path, part, error)
        return None


def _connection(document: Document, name: str, value: Any) -> Connection | None:
    path = ("connections", name)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind is not None and str(kind) not in TYPES:
        document.wrong(
            (*path, "type"),
            f"{_named(path)} cannot be of type {document.texts.get((*path, 'type'), 'that')}",
            did_you_mean(kind, list(TYPES)),
        )
        return None
    found = _part(document, path, TYPES.get(str(kind), Salesforce), value)
    if kind == "salesforce":
        _check_login(document, path, value)
    return found  # type: ignore[return-value]  # a class of TYPES


def _check_login(document: Document, path: Path_, raw: Mapping[str, Any]) -> None:
    """Of the values as written, so that another mistake of the same connection hides none of these."""
    url, auth, version = raw.get("url", LOGIN_URLS[0]), raw.get("auth"), str(raw.get("version", ""))
    if (found := OLD_VERSION.fullmatch(version)) and int(found[1]) <= RETIRED_VERSION:
        document.wrong((*path, "version"), f"Salesforce retired its API {version}", 'leave version out, or write version: "67.0"')
    if isinstance(url, str) and (*path, "url") not in document.bad and (wrong := _url_mistake(url)):
        document.wrong((*path, "url"), *wrong)
    if not isinstance(auth, dict):
        return
    for key in NEEDED.get(str(auth.get("flow")), ()):
        if not auth.get(key):
            document.wrong((*path, "auth"), f"{_named(path)}: the login flow {auth['flow']} needs {key}", f"add `{key}: …` to auth")
    if auth.get("flow") == "client_credentials" and str(url).rstrip("/") in LOGIN_URLS:
        remedy = "add url: https://<my-domain>.my.salesforce.com"
        document.wrong(path, f"{_named(path)}: client_credentials logs in at the org's own address only", remedy)


def _url_mistake(url: str) -> tuple[str, str] | None:
    """Message and remedy. An address without https is for sandboxes at one's desk: tokens go there in clear text."""
    found = ADDRESS.fullmatch(url)
    if not found:
        return "url is no address of an org", "write https://<my-domain>.my.salesforce.com without a path"
    host = found[2].lower()
    if host.endswith(".lightning.force.com"):
        remedy = f"write https://{host.removesuffix('.lightning.force.com')}.my.salesforce.com"
        return "url is the address of the pages, where no login is answered", remedy
    if found[1] == "http" and host.endswith(("salesforce.com", "force.com", "salesforce.mil")):
        return "url is an address without encryption", f"write https://{host}"
    return None


def _route(document: Document, name: str, value: Any, sections: Mapping[str, Mapping[str, Any]]) -> Route | None:
    path = ("routes", name)
    if isinstance(value, dict) and isinstance(value.get("from"), str):
        document.lines.setdefault((*path, "from", 0), document.line((*path, "from")))
        value = {**value, "from": [value["from"]]}
    route = _part(document, path, Route, value)
    raw = value if isinstance(value, dict) else {}
    target = raw.get("to")
    if isinstance(target, str) and target not in sections["targets"]:
        document.wrong((*path, "to"), f"{_named(path)}: there is no target {target}", did_you_mean(target, sections["targets"], "add it"))
    sources = given if isinstance(given := raw.get("from"), list) else []
    kinds = {key: part.get("type") for key, part in sections["connections"].items() if isinstance(part, dict)}
    for index, source in enumerate(sources):
        if isinstance(source, str):
            _check_source(document, (*path, "from", index), source, kinds, sources.index(source) < index)
            if raw.get("fetch") == "query" and (kinds.get(source) == "webhook" or is_event(source)):
                what = "a platform event, which is never kept" if is_event(source) else "a webhook"
                remedy = "use fetch: event, or leave it out"
                document.wrong((*path, "fetch"), f"{_named(path)}: fetch: query reads records from Salesforce, {source} is {what}", remedy)
    if raw.get("unique") is not None:
        _check_unique(document, path, raw, sources)
    if "verify" in raw and sources and all(isinstance(s, str) and (kinds.get(s) == "webhook" or is_event(s)) for s in sources):
        said = f"{_named(path)}: verify compares with records in Salesforce, and {', '.join(sources)} keeps none"
        document.wrong((*path, "verify"), said, "leave it out")
    return route


def _check_unique(document: Document, path: Path_, raw: Mapping[str, Any], sources: Sequence[Any]) -> None:
    place, told = (*path, "unique"), f"{_named(path)}: unique: "
    stages = named if isinstance(named := raw.get("quality", ["required"]), list) else None
    if stages is not None and "duplicates" not in stages:
        document.wrong(place, f"{told}needs the stage duplicates", f"write quality: [{', '.join(map(str, [*stages, 'duplicates']))}]")
    elif raw.get("on_delete") == "ignore":
        message = "on_delete: ignore keeps what was deleted in the source, beside the record that has its value then"
        document.wrong(place, f"{told}{message}", "write on_delete: tombstone, mark or delete")
    elif event := next((source for source in sources if isinstance(source, str) and is_event(source)), None):
        document.wrong(place, f"{told}compares records, and {event} is a platform event, which is never kept", "leave it out")


def _check_source(document: Document, place: Path_, source: str, kinds: Mapping[str, Any], twice: bool) -> None:
    route = _named(place[:2])
    connection, slash, sobject = source.partition("/")
    if twice:
        document.wrong(place, f"{route} names {source} twice", "remove one")
    elif connection not in kinds:
        document.wrong(place, f"{route}: there is no connection {connection}", did_you_mean(connection, kinds, "add it"))
    elif kinds[connection] == "webhook" and slash:
        document.wrong(place, f"{route}: {connection} is a webhook and has no sObjects", f"write from: {connection}")
    elif kinds[connection] == "salesforce" and not sobject:
        document.wrong(place, f"{route}: {source} names no sObject", f"write from: {connection}/Contact, or another sObject")
    elif kinds[connection] == "salesforce" and not SOBJECT.fullmatch(sobject):
        document.wrong(place, f"{route}: {sobject!r} is no sObject's name", f"write {connection}/<API name>, such as {connection}/Contact")


def _check_overlaps(document: Document, routes: Mapping[str, Route]) -> None:
    """Two routes that bring one source to one kind of record of one target would overwrite each other."""
    seen: dict[tuple[str, str, str], str] = {}
    for name, route in routes.items():
        for source in dict.fromkeys(route.sources):
            first = seen.setdefault((source, route.to, route.object or route.map), name)
            if first != name:
                message = f"routes {first} and {name} both write {source} to the same records of {route.to}"
                document.wrong(("routes", name), message, "join them, or give one an object: of its own")
                break
