"""Where a range of the in-topics begins and ends, as a person writes it. Pure: the clock is an argument."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from models.errors import SettingsError

UNITS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
FORMS = (
    "write a time (2026-11-25T08:00Z; without a zone it is UTC), a distance from now (-2h, -30m, -7d), an epoch (seconds or ms), "
    "now, or partition:offset (3:1200; with several sources acme/Contact:3:1200)"
)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in epoch ms. `fixed` False: it depends on when it was asked."""

    ms: int
    fixed: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """An offset in a partition of the live in-topic of a source (None: the route's only one)."""

    source: str | None
    partition: int
    offset: int


Bound = Moment | Spot


def parse_bound(text: str, now: int) -> Bound:
    """`now` in epoch ms. Raises SettingsError that says what can be written."""
    text = text.strip()
    if text == "now":
        return Moment(now, fixed=False)
    if found := re.fullmatch(r"-([0-9]{1,9})([smhd])", text, re.ASCII):
        return Moment(_past(now - int(found[1]) * UNITS[found[2]], text), fixed=False)
    if re.fullmatch(r"[0-9]{9,10}|[0-9]{12,13}", text, re.ASCII):
        return Moment(int(text) * (1000 if len(text) < 11 else 1), fixed=True)
    if found := re.fullmatch(r"(?:([A-Za-z][\w/-]*):)?([0-9]{1,4}):([0-9]{1,18})", text, re.ASCII):
        return Spot(found[1], int(found[2]), int(found[3]))
    try:
        moment = datetime.fromisoformat(text)
        return Moment(_past(round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000), text), fixed=True)
    except (ValueError, OverflowError):
        raise SettingsError(f"{text[:80]!r} is neither a time nor an offset: {FORMS}") from None


def iso(ms: int) -> str:
    """For messages."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _past(ms: int, text: str) -> int:
    if ms < 0:
        raise SettingsError(f"{text!r} lies before 1970: {FORMS}")
    return ms
