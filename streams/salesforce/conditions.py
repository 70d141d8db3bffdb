"""Conditions that may stand in SOQL. Pure: a person's is only held together here, what it means Salesforce says."""

from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import quote

from models.errors import SettingsError
from models.scrub import scrub

LONGEST = 4_000
"""Bytes of a condition in a URI; the columns need the rest."""


def check_condition(raw: str) -> str:
    """A person's condition as it may stand between brackets: it cannot end the WHERE it stands in. Raises SettingsError."""
    text = raw.strip()
    if len(quote(text)) > LONGEST:
        raise SettingsError(f"--where is too long: SOQL has room for {LONGEST:,} bytes of it")
    if not text or not text.isprintable():
        raise SettingsError(
            "--where needs a condition as SOQL has it behind WHERE, in one line, such as: CreatedDate >= 2026-01-01T00:00:00Z"
        )
    depth, quoted, escaped = 0, False, False
    for sign in text:
        if quoted:
            quoted, escaped = sign != "'" or escaped, sign == "\\" and not escaped
        elif sign == "'":
            quoted = True
        else:
            depth += (sign == "(") - (sign == ")")
            if depth < 0:
                break
    if quoted or depth:
        raise SettingsError(f"--where {scrub(text, 100)!r} is no whole condition: a quote or bracket is left open, or closes too much")
    return text


def changed_since(second: int) -> str:
    """Changed at this epoch second or later."""
    return f"SystemModstamp >= {literal(second)}"


def literal(second: float) -> str:
    """An epoch second as SOQL writes a time."""
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}"


def all_of(conditions: Iterable[str]) -> str:
    """Those that say something, each in brackets; "" where none does."""
    return " AND ".join(f"({one})" for one in conditions if one)
