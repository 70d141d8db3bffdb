"""What differs between a source and what we know of it: ranges of ids, stamps, whole rows. Pure.

A stamp only raises suspicion; a difference is one of values, seen in a whole row. Of one record and second two changes look alike: where
the first came and the second was lost, only a whole read would tell.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from agents.rules.merge import RecordState
from agents.rules.message import from_row
from agents.rules.plan import ROW_ONLY, Plan
from agents.rules.versions import TOLERANCE
from models.envelope import Envelope, Kind, Reason

RANGE = 2000
"""Ids in a range: as many rows as one page of a query holds."""
WIDE = 10 * RANGE
"""Ids in a range that is only counted: one call in place of ten."""
What = Literal["missing", "changed", "extra", "deleted"]
_ABSENT = object()


class Known(NamedTuple):
    """Of one record: the newest second (epoch) of anything we know of it, and whether it is deleted."""

    second: int
    deleted: bool


class Range(NamedTuple):
    """Ids from `begin` to below `end`; None: open, so that ids we never saw lie in a range too. `ids`: those we know, in order."""

    begin: str | None
    end: str | None
    ids: Sequence[str]

    def where(self) -> str:
        """As a condition of SOQL, "" for all."""
        terms = [f"Id >= '{self.begin}'"] if self.begin else []
        terms += [f"Id < '{self.end}'"] if self.end else []
        return f" WHERE {' AND '.join(terms)}" if terms else ""


@dataclass(frozen=True, slots=True)
class Difference:
    """One record or target key that is not as it should be. `fields`: paths that differ, never values."""

    id: str
    kind: What
    fields: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Compared:
    """What a check counts: of one side compared with another."""

    compared: int = 0
    repaired: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def kinds(self) -> Counter[str]:
        """How many of each kind."""
        return Counter(found.kind for found in self.differences)


def known(state: RecordState) -> Known:
    """What a state says of its age."""
    versions = (state.base, state.deleted_version, *state.exceptions.values())
    seconds = [version[3] for version in versions if version is not None]
    return Known(max(*seconds, (state.committed or 0) // 1000, 0), state.deleted)


def ranges(ids: Sequence[str], size: int) -> Iterator[Range]:
    """Sorted ids in ranges that together hold every id there can be."""
    for start in range(0, max(len(ids), 1), size):
        end = start + size
        yield Range(ids[start] if start else None, ids[end] if end < len(ids) else None, ids[start:end])


def narrower(part: Range) -> Iterator[Range]:
    """The same ids in ranges of a page each."""
    for some in ranges(part.ids, RANGE):
        yield Range(some.begin or part.begin, some.end or part.end, some.ids)


def differs(stamp: int, known_second: int) -> bool:
    """Whether a source's stamp can belong to something else than the newest we know. A commit is never before its stamp, hence one side."""
    return stamp > known_second or stamp < known_second - TOLERANCE


def range_agrees(part: Range, held: Mapping[str, Known], count: int, newest: int | None) -> bool:
    """Whether COUNT and MAX of a range say what we know. A change lost behind a later one of its range is not seen by that alone."""
    live = [held[id].second for id in part.ids if not held[id].deleted]
    return len(live) == count and (not live or (newest is not None and not differs(newest, max(live))))


def changed_since(held: dict[str, Known], rows: Iterable[tuple[str, int, bool]]) -> set[str]:
    """Ids that must be read whole, of all records that the source stamped since a time (id, stamp's second, whether deleted).

    Takes what they say into `held`, so that afterwards COUNT and MAX of a range tell of what is left: records that are no more.
    """
    found = set()
    for id, stamp, deleted in rows:
        ours = held.get(id)
        if (ours is None or ours.deleted) is not deleted or (ours and not deleted and differs(stamp, ours.second)):
            found.add(id)
        if ours is not None or not deleted:
            held[id] = Known(stamp, deleted)
    return found


def suspects(part: Range, held: Mapping[str, Known], stamps: Mapping[str, int]) -> set[str]:
    """Ids of a range that must be read whole; `stamps` of all live records that the source has there."""
    found = {id for id in part.ids if not held[id].deleted and id not in stamps}
    for id, stamp in stamps.items():
        ours = held.get(id)
        if ours is None or ours.deleted or differs(stamp, ours.second):
            found.add(id)
    return found


def difference(id: str, state: RecordState | None, row: Mapping[str, Any] | None, plan: Plan) -> Difference | None:
    """A record against its whole row, None where the source has none, not even a deleted one. Raises PermanentError for what is no row."""
    if row is None or row.get("IsDeleted") is True:
        gone = state is None or state.deleted
        return None if gone else Difference(id, "extra" if row is None else "deleted")
    if state is None or state.deleted:
        return Difference(id, "missing")
    told = from_row(row, Envelope(kind=Kind.ROW, reason=Reason.REPAIR, received=0, began=-1), plan).values
    fields = [path for path, value in told.items() if path not in ROW_ONLY and state.values.get(path, _ABSENT) != value]
    return Difference(id, "changed", tuple(sorted(fields))) if fields else None


def second_of(stamp: Any) -> int:
    """Epoch second of a SystemModstamp; 0 for what is none, which then raises suspicion."""
    try:
        found = datetime.fromisoformat(stamp)
    except (TypeError, ValueError):
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
