"""The text that PostgreSQL gives for a value it was sent as JSON: so that rows can be compared by a hash, without sending them. Pure.

Nothing is decided by it: where the text is another one (a column of an odd type, a value that cannot be converted) the hash differs, and
the row is compared by PostgreSQL itself.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal
from hashlib import md5
from typing import Any

import orjson

BETWEEN, NULL = "\x1f", "\x1e"
EXACT = Context(prec=2000)
EPOCH = datetime.fromtimestamp(0, UTC)

READ: Mapping[str, str] = {
    "numeric": "trim_scale({0})::text",
    "date": "to_char({0}, 'YYYY-MM-DD')",
    "timestamptz": "(extract(epoch FROM {0}) * 1000000)::bigint::text",
}
"""How PostgreSQL reads a column of a type, {0}, as text; others by a cast."""


def is_name(text: str) -> bool:
    """PostgreSQL can have a table or column of this name, and cuts nothing off."""
    return bool(text) and "\0" not in text and len(text.encode()) <= 63


def retype(schema: str, table: str, column: str, kind: str) -> str:
    """What a person may type to give a column another type."""
    where, name = ".".join(map(_quoted, (schema, table))), _quoted(column)
    return f"ALTER TABLE {where} ALTER {name} TYPE {kind} USING {name}::text::{kind}"


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def hash_of(key: str, body: Mapping[str, Any], types: Iterable[tuple[str, str]]) -> int:
    """60 bits of the md5 of a row's key and columns, as the target's SQL computes it."""
    parts = [key]
    for name, kind in types:
        value = body.get(name)
        parts.append(value if kind == "text" and type(value) is str else NULL if value is None else _text(value, kind))
    return int.from_bytes(md5(BETWEEN.join(parts).encode(errors="replace"), usedforsecurity=False).digest()[:8]) >> 4


def _text(value: Any, kind: str) -> str:
    try:
        return WRITTEN.get(kind, _plain)(value)
    except (ValueError, ArithmeticError, TypeError):
        return NULL


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _number(value: Any) -> str:
    return f"{EXACT.normalize(Decimal(_plain(value))) + 0:f}"


def _date(value: Any) -> str:
    return datetime.fromisoformat(value).strftime("%Y-%m-%d").zfill(10)


def _moment(value: Any) -> str:
    since = datetime.fromisoformat(value).astimezone(UTC) - EPOCH
    return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _json(value: Any) -> str:
    """As jsonb shows it: keys by their length, then their bytes; numbers without an exponent."""
    if isinstance(value, dict):
        pairs = sorted(((name.encode(), name, inner) for name, inner in value.items()), key=lambda pair: (len(pair[0]), pair[0]))
        return "{" + ", ".join(f"{_json(name)}: {_json(inner)}" for _, name, inner in pairs) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return orjson.dumps(value).decode()


WRITTEN: Mapping[str, Callable[[Any], str]] = {
    "numeric": _number,
    "date": _date,
    "timestamptz": _moment,
    "jsonb": _json,
}
