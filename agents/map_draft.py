"""A first map of an sObject, from its describe: every field that events can carry, for a person to cut down. Pure."""

from collections.abc import Mapping
from typing import Any

from agents.rules.mapping import MapType

TYPES: dict[str, MapType] = {
    **dict.fromkeys(("double", "currency", "percent"), "number"),
    **dict.fromkeys(("int", "long"), "integer"),
    "boolean": "boolean",
    "date": "date",
    "datetime": "datetime",
    "anyType": "json",
}
LEFT_OUT = {"address", "location", "base64", "complexvalue"}
NEVER = {"IsDeleted", "SystemModstamp", "LastViewedDate", "LastReferencedDate"}
"""What Headrace writes itself, and what only a row has."""


def draft(source: str, target: str, described: Mapping[str, Any], nested: bool) -> str:
    """Text of a map file; `nested`: fields stand below dataFields, beside the e-mail address that names the record."""
    fields = [field for field in described.get("fields", ()) if field.get("type") not in LEFT_OUT and field["name"] not in NEVER]
    compound = {field.get("compoundFieldName") for field in fields if field.get("compoundFieldName") != field["name"]}
    fields = [field for field in fields if field["name"] not in compound]
    fields.sort(key=lambda field: (bool(field.get("custom")), str(field.get("label", "")).casefold(), field["name"]))
    names = {str(field["name"]) for field in fields}
    lines = [f"# {source} to {target}: a first map, from the org's describe. Remove what nobody needs.", "version: 1", "fields:"]
    taken: set[str] = set()
    for field in fields:
        name, kind = str(field["name"]), TYPES.get(str(field.get("type")), "text")
        path = _path(name, names, nested, taken)
        transform = ", transform: mail" if field.get("type") == "email" else ""
        label = "".join(sign if sign.isprintable() else " " for sign in str(field.get("label") or name))
        lines.append(f"  {name}: {{to: {path}, type: {kind}{transform}}}  # {label}")
    return "\n".join(lines) + "\n"


def _path(name: str, names: set[str], nested: bool, taken: set[str]) -> str:
    short = name.removesuffix("__c")
    if short != name and short in names:
        short = name
    short = "externalId" if name == "Id" else short[:1].lower() + short[1:]
    if nested:
        short = "email" if short == "email" else f"dataFields.{short}"
    while short in taken:
        short += "_"
    taken.add(short)
    return short
