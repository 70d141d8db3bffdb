"""Transforms of single values, by name: what a map may ask for. Pure.

A value that does not fit raises ValueError naming the class of the value, never the value.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Context, Decimal
from typing import Any
from urllib.parse import urlsplit

Transform = Callable[[Any], Any]
"""Takes a value that is not None; may give None."""

_SPACE = " \t\r\n\f\v\u00a0\u200b\ufeff"
_BLANKS = re.compile(r"[\s\u200b\ufeff]+")
_MONEY = r"(?:[A-Z]{3}|[$€£¥₹₩₽₺])?"
_NUMBER = re.compile(rf"([+-]?){_MONEY}([+-]?)([0-9][0-9.,'\u2019]*|\.[0-9]+)([eE][+-]?[0-9]{{1,9}})?{_MONEY}")
_GROUP = re.compile(r"[.,'\u2019]")
_GROUPED = re.compile(r"[0-9]{1,3}([.,'\u2019])(?:[0-9]{2,3}\1)*[0-9]{3}")
"""Thousands; also of India: 12,34,567."""
EXACT = Context(prec=200)
EPOCH = datetime.fromtimestamp(0, UTC)


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


def number(value: Any, decimal: str | None = None) -> Any:
    """A number stays what it is; "1,200", "1e6", "$1,000.50", "1.234,5" become numbers; empty becomes null.

    Never rounded: what a JSON number would round (more than 15 to 17 digits) stays text, in plain digits. `decimal` is the decimal sign,
    None: the last of the two signs where both stand there, a comma in front of three digits parts thousands, and "1,5" is refused.
    """
    if isinstance(value, bool):
        raise ValueError("boolean is not a number")
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{kind(value)} is not a number")
    if (found := _decimal(value, decimal)) is None:
        return None
    if found == found.to_integral_value() and -(2**63) <= found < 2**63:
        return int(found)
    near = float(found)
    return near if Decimal(repr(near)) == found else f"{found:f}"


def _decimal(value: str, sign: str | None) -> Decimal | None:
    plain = _BLANKS.sub("", value).replace("\u2212", "-")
    if not plain:
        return None
    parts = _NUMBER.fullmatch(plain)
    if parts is None or (parts[1] and parts[2]) or len(plain) > 100:
        raise ValueError("text is not a number")
    digits = parts[3]
    if sign is None:
        comma, dot = digits.rfind(","), digits.rfind(".")
        one_dot = dot >= 0 and digits.count(".") == 1
        sign = "," if comma > dot >= 0 else "." if comma >= 0 or one_dot else ","
    whole, _, rest = digits.partition(sign)
    if not (whole.isdigit() or not whole or _GROUPED.fullmatch(whole)) or (rest and not rest.isdigit()) or not (whole or rest):
        raise ValueError("text is not a number")
    found = EXACT.create_decimal(f"{parts[1]}{parts[2]}{_GROUP.sub('', whole) or '0'}.{rest or '0'}{parts[4] or ''}")
    if abs(found.adjusted()) > 60:
        raise ValueError("text is not a number")
    return found


def integer(value: Any) -> Any:
    """A whole number of at most 64 bits."""
    found = number(value)
    if isinstance(found, str) or (isinstance(found, float) and not found.is_integer()):
        raise ValueError("number is not whole, or too large")
    return None if found is None else int(found)


def boolean(value: Any) -> Any:
    """true and false, also as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (plain := value.strip(_SPACE).lower()) in ("true", "false"):
        return plain == "true"
    raise ValueError(f"{kind(value)} is not true or false")


def day(value: Any, zone: tzinfo | None = None) -> Any:
    """An ISO date; of a date-time its date, as written or in `zone`."""
    plain = text(value)
    if plain is None:
        return None
    try:
        if len(plain) == 10:
            return date.fromisoformat(plain).isoformat()
        found = datetime.fromisoformat(plain)
        return (found.astimezone(zone) if zone and found.tzinfo else found).date().isoformat()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{kind(value)} is not a date") from None


def moment(value: Any, zone: tzinfo = UTC) -> Any:
    """An ISO date-time in UTC; one without a zone is in `zone`."""
    plain = text(value)
    if plain is None:
        return None
    try:
        found = datetime.fromisoformat(plain)
        if found.tzinfo is UTC and len(plain) == 24 and plain[10] == "T" and plain[19] == "." and plain[23] == "Z":
            return plain  # the form that it would get
        found = (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{kind(value)} is not a date-time") from None
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_millis(value: Any) -> Any:
    """A date-time from milliseconds since 1970."""
    if isinstance(value, bool) or not isinstance(found := number(value), int):
        if isinstance(value, str) and found is None:
            return None
        raise ValueError(f"{kind(value)} is not a time in whole milliseconds")
    try:
        return moment((EPOCH + timedelta(milliseconds=found)).isoformat())
    except OverflowError:
        raise ValueError(f"{kind(value)} is not a time in whole milliseconds") from None


def to_millis(value: Any) -> Any:
    """Milliseconds since 1970 of a date-time."""
    found = moment(value)
    return None if found is None else (datetime.fromisoformat(found) - EPOCH) // timedelta(milliseconds=1)


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
    if isinstance(value, (int, float)):
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
    "from_millis": from_millis,
    "to_millis": to_millis,
}
