"""What follows from a merge for one way: the record is emitted, asked for by query, read because it is incomplete, or nothing. Pure."""

from enum import Enum

from agents.rules.merge import Merged, RecordState
from agents.rules.message import Message
from agents.rules.ways import Way
from models.envelope import Envelope, Kind
from models.errors import PermanentError


class Step(Enum):
    """EMIT as the record is now; QUERY: the row with its relationships, carrying run and route; READ: it lacks something."""

    NOTHING = "nothing"
    EMIT = "emit"
    QUERY = "query"
    READ = "read"


ROW, EMIT = Kind.ROW, Step.EMIT  # an enum looks its members up in Python


def forced(way: Way, envelope: Envelope) -> bool:
    """A run or a route header makes this way emit whatever the merge did."""
    if envelope.route is not None:
        return envelope.route == way.route
    return envelope.run is not None


def next_step(way: Way, state: RecordState, merged: Merged, message: Message, envelope: Envelope) -> Step:
    """Decide for one way, after the merge.

    A duplicate (nothing changed, above the recorded offset) does nothing; a redelivery does again what its first delivery may not have
    brought through. A way by event emits when one of its own paths changed; a way by query when a row confirmed anything anew. A record
    of which nothing is known yet is read, whatever its first event touched.
    """
    row = envelope.kind is ROW and message.version is not None
    if way.query:
        told = bool(merged.changed) or merged.moved or (merged.advanced and not row)
    else:
        told = "" in merged.changed or not merged.changed.isdisjoint(way.fields)
    complete = state.knows(way.fields) or envelope.kind is Kind.HOOK
    if not (told or merged.redelivery or forced(way, envelope)):
        return Step.READ if (row or state.base is None) and not complete and not state.deleted else Step.NOTHING
    if state.deleted:
        return Step.EMIT
    if way.query and envelope.kind is Kind.CHANGE:
        return Step.QUERY
    return EMIT if complete else Step.READ


def outcome_of(merged: Merged, incomplete: bool) -> str:
    """What became of a message, as the metrics name it."""
    if merged.redelivery:
        return "redelivered"
    if incomplete:
        return "incomplete"
    return "changed" if merged.changed or merged.moved else "unchanged"


def not_found(record_id: str, sobject: str) -> None:
    """An event told of a record that no target holds and that Salesforce does not show: nothing else would tell of it."""
    raise PermanentError(
        f"{sobject} {record_id} is not found in Salesforce, not in the recycle bin either: it was erased before it could be read, or the "
        "connection's user may not see it; give the user View All Data and redrive",
        field="Id",
    )


def lacking(missing: list[str], sobject: str) -> None:
    """A row that was read for the record lacks fields: another one would lack them too."""
    raise PermanentError(
        f"the row read for {sobject} does not hold {', '.join(missing)}, which maps or filters need: give the user the right to see "
        "the field, or take it out of the map",
        field=missing[0],
    )
