"""What a map makes of one record, field by field, with the reason: for a person who tries a map. Pure; what it says agrees with `apply`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.rules.mapping import Leaf, Map, compile_map

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Told:
    """`written` False: no key. `fault`: the record is refused for this."""

    source: str
    before: Any
    target: str
    after: Any
    why: str
    written: bool = True
    fault: bool = False


def values_of(record: Mapping[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """The paths a map reads, of a record as REST or a webhook gives it, or with dotted names: as a row is read, null parents too."""
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = record
        for step in (path,) if path in record else path.split("."):
            value = None if value is None else value.get(step, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is not _MISSING:
            found[path] = value
    return found


def explain(found: Map, sobject: str, values: Mapping[str, Any]) -> list[Told]:
    """One line per line of the map, for a record of `sobject` ("" when that is not known, or a webhook's)."""
    others = ("Contact", "Lead") if sobject in ("Contact", "Lead") else ()
    read = {leaf.target for leaf in compile_map(found, sobject, others).written} if sobject else {leaf.target for leaf in found.leaves}
    return [_told(leaf, values) if leaf.target in read else _absent(leaf, sobject) for leaf in found.leaves]


def _absent(leaf: Leaf, sobject: str) -> Told:
    why = f"only of {' and '.join(leaf.sobjects)}" if leaf.sobjects else f"a {sobject} has no such field"
    return Told(leaf.source, None, ".".join(leaf.target), None, f"{why}: left out", written=False)


def _told(leaf: Leaf, values: Mapping[str, Any]) -> Told:
    target, notes = ".".join(leaf.target), list[str]()
    source, before, after = leaf.source, values.get(leaf.source), _MISSING
    for path in leaf.sources:
        if path not in values:
            notes.append("not in the record" if path == leaf.source else f"{path}: not in the record")
            continue
        source, before, after = path, values[path], values[path]
        steps = []
        for step in leaf.steps:
            if after is None:
                break
            try:
                after = step.run(after)
            except ValueError as error:
                return Told(
                    source, before, target, None, f"{step.name}: {error}; the record becomes a dead letter", written=False, fault=True
                )
            steps.append(step.name)
        if after is not None:
            return Told(source, before, target, after, "; ".join((*notes, ", ".join(steps) or "as it is")))
        notes.append("null" if before is None else f"null after {', '.join(steps)}")
    if leaf.default is not None:
        return Told(source, before, target, leaf.default, "; ".join((*notes, "default")))
    if leaf.required:
        return Told(source, before, target, None, "; ".join((*notes, "required: the record becomes a dead letter")), False, fault=True)
    if after is _MISSING:
        return Told(source, None, target, None, "; ".join((*notes, "left out")), written=False)
    if leaf.nulls == "keep":
        return Told(source, before, target, None, "; ".join((*notes, "nulls: keep, what was written last stays")), written=False)
    if leaf.nulls == "skip":
        return Told(source, before, target, None, "; ".join((*notes, "nulls: skip, left out")), written=False)
    return Told(source, before, target, None, "; ".join((*notes, "clears the target")))


def body_of(told: list[Told]) -> dict[str, Any] | None:
    """The record the target gets; None when it is refused."""
    if any(line.fault for line in told):
        return None
    body: dict[str, Any] = {}
    for line in told:
        if line.written:
            into = body
            *parents, name = line.target.split(".")
            for parent in parents:
                into = into.setdefault(parent, {})
            into[name] = line.after
    return body


def sobject_of(record_id: str) -> str | None:
    """By the first three characters of an id: a standard object, None for others."""
    return PREFIXES.get(record_id[:3])


PREFIXES = {"001": "Account", "003": "Contact", "005": "User", "006": "Opportunity", "00Q": "Lead", "00T": "Task", "500": "Case"}
