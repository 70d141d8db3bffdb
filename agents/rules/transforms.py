"""Transforms of single values, by name: what a map may ask for. Pure.

A value that does not fit raises ValueError naming the class of the value, never the value.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlsplit

Transform = Callable[[Any], Any]
"""Takes a value that is not None; may give None."""

_SPACE = " \t\r\n\f\v\u00a0\u200b\ufeff"


def text(value: Any) -> Any:
    """Trimmed, no-break and zero-width blanks too; empty becomes null. What is not text stays as it is."""
    return value.strip(_SPACE) or None if isinstance(value, str) else value


def mail(value: Any) -> Any:
    """Lower-case and trimmed."""
    if not isinstance(value, str):
        raise ValueError(f"{kind(value)} is not a mail address")
    return value.strip(_SPACE).lower() or None


def domain(value: Any) -> Any:
    """Host of a URL without www and port; the scheme may be missing."""
    if not isinstance(value, str):
        raise ValueError(f"{kind(value)} is not a URL")
    if not (plain := value.strip(_SPACE)):
        return None
    try:
        host = urlsplit(plain if "//" in plain else f"//{plain}").hostname or ""
    except ValueError:
        raise ValueError("text is not a URL") from None
    host = host.rstrip(".").removeprefix("www.")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise ValueError("text is not a URL") from None
    if not host or any(sign.isspace() for sign in host):
        raise ValueError("text is not a URL")
    return host


def number(value: Any) -> Any:
    """A number stays what it is; "1,200", "1e6", "$1,000.50" become numbers; empty becomes null."""
    if isinstance(value, bool):
        raise ValueError("boolean is not a number")
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{kind(value)} is not a number")
    plain = value.strip(_SPACE).replace("\u00a0", "").replace(" ", "").lstrip("$€£").replace(",", "")
    if not plain:
        return None
    try:
        found = Decimal(plain)
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or abs(found.adjusted()) > 60:
        raise ValueError("text is not a number")
    if found == found.to_integral_value() and -(2**63) <= found < 2**63:
        return int(found)
    return float(found)


def integer(value: Any) -> Any:
    """A whole number."""
    found = number(value)
    if found is None or (isinstance(found, float) and not found.is_integer()):
        if found is None:
            return None
        raise ValueError("number is not whole")
    return int(found)


def boolean(value: Any) -> Any:
    """true and false, also as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (plain := value.strip(_SPACE).lower()) in ("true", "false"):
        return plain == "true"
    raise ValueError(f"{kind(value)} is not true or false")


def day(value: Any) -> Any:
    """An ISO date; of a date-time its date."""
    plain = text(value)
    if plain is None:
        return None
    try:
        return date.fromisoformat(plain[:10]).isoformat() if len(plain) == 10 else datetime.fromisoformat(plain).date().isoformat()
    except (TypeError, ValueError):
        raise ValueError(f"{kind(value)} is not a date") from None


def moment(value: Any) -> Any:
    """An ISO date-time with a zone, in UTC."""
    plain = text(value)
    if plain is None:
        return None
    try:
        found = datetime.fromisoformat(plain)
    except (TypeError, ValueError):
        raise ValueError(f"{kind(value)} is not a date-time") from None
    found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def lowercase(value: Any) -> Any:
    """Lower-case (of Turkish İ, i and a dot above)."""
    return value.lower() if isinstance(value, str) else value


def uppercase(value: Any) -> Any:
    """Upper-case (ß becomes SS)."""
    return value.upper() if isinstance(value, str) else value


def kind(value: Any) -> str:
    """Class of a value, for reasons: never the value itself."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text" if value.strip(_SPACE) else "blank text"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, list) else "object"


TRANSFORMS: dict[str, Transform | None] = {
    "none": None,
    "trim": text,
    "lowercase": lowercase,
    "uppercase": uppercase,
    "mail": mail,
    "domain": domain,
    "number": number,
    "integer": integer,
    "boolean": boolean,
    "date": day,
    "datetime": moment,
}
