"""The CSV of a Bulk result as the rows that REST gives: the types are those of describe. Pure but for `kinds_of`, which asks for them.

Numbers go over as Salesforce wrote them, digit for digit. An empty cell is null, as nothing tells the two apart in a Bulk result.
"""

import csv
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from models.errors import PermanentError, TemporaryError
from streams.salesforce.rest import Row

csv.field_size_limit(1 << 24)  # a long text area may have more than csv's default

Convert = Callable[[str], Any]
Encode = Callable[[Sequence[str]], tuple[bytes, bytes]]

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")


def _decimal(text: str) -> Any:
    if NUMBER.fullmatch(text) is None:
        return text  # the map says what is wrong with it
    return orjson.Fragment(f"{text}.0" if WHOLE.fullmatch(text) else text)


def _whole(text: str) -> Any:
    return orjson.Fragment(text) if WHOLE.fullmatch(text) else _decimal(text)


def _moment(text: str) -> str:
    """REST writes +0000 where Bulk may write Z."""
    return f"{text[:-1]}+0000" if text.endswith("Z") else text


CONVERT: Mapping[str, Convert] = {
    "boolean": "true".__eq__,
    "int": _whole,
    "long": _whole,
    "double": _decimal,
    "currency": _decimal,
    "percent": _decimal,
    "datetime": _moment,
}
"""By describe's type; every other one is text."""


async def kinds_of(sobject: str, fields: Sequence[str], describe: Callable[[str], Awaitable[Row]]) -> dict[str, str]:
    """Describe's type of each path, text where it is not told."""
    return {path: kind or "string" for path, kind in (await types_of(sobject, fields, describe)).items()}


async def types_of(sobject: str, fields: Sequence[str], describe: Callable[[str], Awaitable[Row | None]]) -> dict[str, str | None]:
    """Describe's type of each path, None where the user sees no such field. A relationship that leads to several sObjects is followed
    to the first that has the field.
    """
    told: dict[str, Row] = {}

    async def look(name: str, steps: Sequence[str]) -> str | None:
        if name not in told:
            try:
                told[name] = await describe(name) or {}
            except PermanentError:  # the user may not see that sObject; another one may have the field
                told[name] = {}
        parts = [f for f in told[name].get("fields") or () if isinstance(f, dict)]
        first, *others = steps
        for part in parts:
            if not others and str(part.get("name")).lower() == first.lower():
                return str(part.get("type"))
            if others and str(part.get("relationshipName")).lower() == first.lower():
                for target in part.get("referenceTo") or ():
                    if (found := await look(str(target), others)) is not None:
                        return found
        return None

    return {path: await look(sobject, path.split(".")) for path in fields}


def encoder(sobject: str, header: Sequence[str], kinds: Mapping[str, str]) -> Encode:
    """What makes a line of CSV the key and JSON of a row. `kinds`: type by path. Raises PermanentError for a header without them all."""
    at = {name.lower(): place for place, name in enumerate(header)}
    if missing := [path for path in kinds if path.lower() not in at]:
        raise PermanentError(f"the result of the Bulk job has no column {', '.join(missing[:5])}: read it by REST (--via rest)")
    tree: dict[str, Any] = {}
    for path, kind in kinds.items():
        *parents, name = path.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = (at[path.lower()], CONVERT.get(kind))
    make, key = _maker(tree), at["id"]
    attributes, width, dumps = {"type": sobject}, len(header), orjson.dumps

    def encode(line: Sequence[str]) -> tuple[bytes, bytes]:
        if len(line) != width:
            raise TemporaryError(f"a line of a Bulk result has {len(line)} columns, not {width}")
        row = make(line)
        row["attributes"] = attributes
        return line[key].encode(), dumps(row)

    return encode


def _maker(tree: Mapping[str, Any]) -> Callable[[Sequence[str]], Row]:
    flat = [(name, *found) for name, found in tree.items() if isinstance(found, tuple)]
    nested = [(name, partial(_parent, _maker(found))) for name, found in tree.items() if isinstance(found, dict)]

    def make(line: Sequence[str]) -> Row:
        row = {name: (convert(text) if convert else text) if (text := line[place]) else None for name, place, convert in flat}
        for name, parent in nested:
            row[name] = parent(line)
        return row

    return make


def _parent(make: Callable[[Sequence[str]], Row], line: Sequence[str]) -> Row | None:
    """None where nothing of it is there: no parent, or one whose selected fields are all empty."""
    found = make(line)
    return found if any(value is not None for value in found.values()) else None
