"""Field types of a project, learnt from the first value written and held against every later one. Pure but for what it has learnt."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d{1,9})? ?(Z|[+-]\d\d:?\d\d))?")
_MAX_TEXT = 32_766  # bytes of one value
RESERVED = {
    "email": "string",
    "userId": "string",
    "signupDate": "date",
    "profileUpdatedAt": "date",
    "signupSource": "string",
    "phoneNumber": "string",
}


def moment(text: str) -> datetime | None:
    """The moment that a date in text stands for; None where it is no date here. `2020-04-13 14:04:09.000` is none: it has no zone."""
    if not _DATE.fullmatch(text):
        return None
    try:
        read = datetime.fromisoformat(text.replace(" +", "+").replace(" -", "-"))
    except ValueError:
        return None
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def incoming(value: Any) -> list[str]:
    """The types a value may stand for, the one it would be learnt as first. Nothing for null and for empty lists."""
    if isinstance(value, list):
        kinds = [incoming(v) for v in value if v is not None]
        return kinds[0] if kinds else []
    if value is None:
        return []
    if isinstance(value, bool):
        return ["boolean"]
    if isinstance(value, int):
        return ["long", "double"]
    if isinstance(value, float):
        return ["double", "long"] if value.is_integer() else ["double"]
    if isinstance(value, dict):
        return ["object"]
    return ["date", "string", "keyword"] if moment(value) else ["string", "keyword"]


def flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its dotted path, objects before what is in them."""
    for name, value in fields.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


def unusable(fields: dict[str, Any]) -> bool:
    """Whether a value cannot be kept: an empty field name, or text above the size of one value."""
    return any(not path.rsplit(".", 1)[-1] or (isinstance(v, str) and len(v.encode()) > _MAX_TEXT) for path, v in flat(fields))


class FieldTypes:
    def __init__(self) -> None:
        self.known = dict(RESERVED)

    def copy(self) -> "FieldTypes":
        other = FieldTypes()
        other.known = dict(self.known)
        return other

    def mismatches(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Field → what is wrong, in the form of `params.validationErrors`."""
        wrong = {}
        for path, value in flat(fields):
            kinds = incoming(value)
            expected = self.known.get(path)
            if kinds and expected and expected not in kinds:
                detail = {"incomingTypes": kinds, "expectedType": expected, "category": "user", "offendingValue": value}
                wrong[path] = detail | {"_type": "UnexpectedType"}
        return wrong

    def learn(self, fields: dict[str, Any]) -> list[str]:
        """Take over the types of new fields; their paths."""
        new = []
        for path, value in flat(fields):
            if path not in self.known and (kinds := incoming(value)):
                self.known[path] = kinds[0]
                new.append(path)
        return new
