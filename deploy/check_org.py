"""Whether the org has what the flow reads: sObjects and fields, by describe. What the user may not see is not in a describe, so hidden and
unknown look alike; the remedy names both. Reads only.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from agents.rules.mapping import Leaf, Step
from agents.rules.takes import Takes
from models.errors import PausedError, PermanentError
from models.flow import is_event
from streams.yaml_lines import did_you_mean

Described = Mapping[str, Any]
Describe = Callable[[str], Awaitable[Described]]


@dataclass(frozen=True, slots=True)
class Misfit:
    """`path` is the field that is not there, None: the sObject itself."""

    path: str | None
    message: str
    remedy: str
    line: int = 0


class Judged(NamedTuple):
    """Of a route: by which field its records are compared, by which they are named, and whether it has a single source."""

    unique: str | None = None
    key: str | None = None
    sole: bool = True


ANY = Judged()
TEXT = frozenset(
    "string textarea picklist multipicklist combobox email phone url id reference encryptedstring".split()  # noqa: SIM905 - one line
)
FRACTION = frozenset({"double", "currency", "percent"})
FITS: Mapping[str, frozenset[str]] = {
    "number": TEXT | FRACTION | {"int", "long"},
    "integer": TEXT | {"int", "long"},
    "boolean": frozenset({"boolean", "string", "picklist"}),
    "date": frozenset({"date", "datetime", "string"}),
    "datetime": frozenset({"datetime", "string"}),
}
"""What a map calls a value, and the org's types that can be that."""
KEEP_TYPE = frozenset({"trim", "lowercase", "uppercase", "truncate"})


def _against(sobject: str, path: str, field: Described, leaf: Leaf) -> list[tuple[str, str]]:
    kind = str(field.get("type"))
    for step in leaf.steps if "type" in field else ():
        name = step.name.partition(" ")[0]
        if name == "pick" and field.get("picklistValues"):
            return _unpicked(sobject, path, field, step)
        if name in KEEP_TYPE:
            continue
        wanted = step.gives
        if wanted is None or name.startswith(("to_", "from_", "unpick")):
            return []  # what a function of one's own takes is not known
        whole = wanted == "integer" and kind in FRACTION and field.get("scale") == 0
        unfit = kind not in FITS[wanted] if wanted in FITS else name != "type" and kind not in TEXT
        if unfit and not whole:
            return [
                (f"{sobject}.{path} is {kind} in the org, and the map makes it {wanted} ({step.name})", "change the type or the transform")
            ]
        return []
    return []


def _unpicked(sobject: str, path: str, field: Described, step: Step) -> list[tuple[str, str]]:
    missing = []
    for value in (str(entry["value"]) for entry in field["picklistValues"] if entry.get("active", True)):
        try:
            step.run(value)
        except ValueError:
            missing.append(value)
    if not missing:
        return []
    told = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return [(f"the picklist {sobject}.{path} has values that the table of {step.name} lacks: {told}", "add them to the table")]


def _beyond(field: Described, leaf: Leaf, takes: Takes, judged: Judged) -> list[str]:
    name, length, told = ".".join(leaf.target), field.get("length"), []
    cut = any(step.name.startswith("truncate") for step in leaf.steps)
    if takes.length is not None and isinstance(length, int) and length > takes.length and field.get("type") in TEXT and not cut:
        told.append(f"has up to {length} characters, {name} takes {takes.length}: {{truncate: {takes.length}}} cuts them")
    if takes.values is not None and not leaf.steps:
        active = [str(entry["value"]) for entry in field.get("picklistValues") or () if entry.get("active", True)]
        if missing := [value for value in active if value not in takes.values]:
            told.append(f"has values that {name} does not take: {', '.join(missing[:5])}; map them by a table ({{pick: …}})")
    if takes.required and field.get("nillable") and not leaf.required and leaf.default is None:
        told.append(f"may be empty, {name} takes no null: say `default:`")
    if takes.unique and name == judged.unique and takes.required:
        told.append(f"takes no null in {name}, so a record that goes cannot give up its value: let it be null there")
    alone = field.get("type") == "id" or (field.get("unique") and judged.sole)
    if takes.unique and name not in (judged.unique, judged.key) and not alone:
        instead = f" (instead of {judged.unique})" if judged.unique else ", and `duplicates` in `quality`"
        told.append(f"may hold the same in two records, {name} takes it once: say `unique: {name}`{instead}")
    return told


class Org:
    """Describes of one org, each asked for once. `ask` raises what Rest.describe raises."""

    def __init__(self, connection: str, ask: Describe) -> None:
        self._connection, self._ask = connection, ask
        self._known: dict[str, Described | None] = {}

    async def misfits(self, sobject: str, paths: Iterable[str]) -> list[Misfit]:
        """What of the sObject's paths ("Email", "Owner.Email") is not there for this user. Raises TemporaryError, PausedError."""
        found = await self._describe(sobject)
        if found is None:
            remedy = f"check its API name, or give the user of {self._connection} Read on the object"
            return [Misfit(None, f"the org knows no sObject {sobject}, or hides it from the user", remedy)]
        if is_event(sobject):
            names = [*(str(field["name"]) for field in found.get("fields", ())), "EventUuid", "ReplayId"]
            hint = "map the event's own fields, EventUuid or ReplayId"
            return [
                Misfit(path, f"the event {sobject} has no field {path}", did_you_mean(path, names, hint))
                for path in paths
                if path not in names
            ]
        if not found.get("queryable", True):
            return [Misfit(None, f"{sobject} cannot be queried", "read another sObject: this one sends no rows")]
        return [misfit for path in paths if (misfit := await self._misfit(found, sobject, path)) is not None]

    async def map_misfits(self, sobject: str, leaves: Iterable[Leaf]) -> list[Misfit]:
        """Where the type or the picklist of a field does not go with its line in the map. Of fields that are not there nothing is said."""
        found = []
        for leaf in leaves:
            for path in leaf.sources:
                if (field := await self._field(sobject, path)) is not None:
                    found += [Misfit(path, *told, leaf.line) for told in _against(sobject, path, field, leaf)]
        return found

    async def beyond(self, sobject: str, leaves: Iterable[Leaf], takes: Mapping[str, Takes], judged: Judged = ANY) -> list[str]:
        """What the org may hold in a field and the target does not take: nothing is wrong until it comes. Raises as `misfits`."""
        found = []
        for leaf in leaves:
            if (said := takes.get(".".join(leaf.target))) is not None and (field := await self._field(sobject, leaf.source)) is not None:
                at = f"line {leaf.line}: " if leaf.line else ""
                found += [f"{at}{sobject}.{leaf.source} {told}" for told in _beyond(field, leaf, said, judged)]
        return found

    async def _field(self, sobject: str, path: str) -> Described | None:
        described = await self._describe(sobject)
        head, _, rest = path.partition(".")
        for field in described.get("fields", ()) if described else ():
            if not rest and field["name"] == path:
                return dict(field)
            if rest and field.get("relationshipName") == head:
                for parent in field.get("referenceTo") or ():
                    if (deeper := await self._field(parent, rest)) is not None:
                        return deeper
        return None

    async def _misfit(self, found: Described, sobject: str, path: str) -> Misfit | None:
        head, _, rest = path.partition(".")
        if not rest:
            names = [str(field["name"]) for field in found.get("fields", ())]
            if path in names:
                return None
            if path.lower() in map(str.lower, names):
                return Misfit(path, f"{sobject} has no field {path}, in this spelling", did_you_mean(path, names))
            near = did_you_mean(path, names) if len(names) else ""
            hint = near if near.startswith("did you mean") else "check its API name"
            return Misfit(path, f"{sobject} has no field {path}, or hides it from the user", f"{hint}; or grant the field to the user")
        links = {str(field["relationshipName"]): field for field in found.get("fields", ()) if field.get("relationshipName")}
        if head not in links:
            return Misfit(path, f"{sobject} has no relationship {head}", did_you_mean(head, links, "check its name"))
        misfit = None
        for parent in links[head].get("referenceTo") or ():  # of several parents (User, Group) one that has the field is enough
            described = await self._describe(parent)
            misfit = None if described is None else await self._misfit(described, parent, rest)
            if described is not None and misfit is None:
                return None
        if misfit is None:
            return Misfit(path, f"{sobject}.{head} leads to nothing the user may see", f"give the user Read on what {head} names")
        return Misfit(path, misfit.message, misfit.remedy)

    async def _describe(self, sobject: str) -> Described | None:
        if sobject not in self._known:
            try:
                self._known[sobject] = await self._ask(sobject)
            except PermanentError:
                self._known[sobject] = None
            except PausedError as error:
                if "INSUFFICIENT_ACCESS" not in error.reason:
                    raise
                self._known[sobject] = None
        return self._known[sobject]
