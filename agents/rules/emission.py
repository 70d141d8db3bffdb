"""What follows from a merge for one way: the record is emitted, asked for by query, read because it is incomplete, or nothing. Pure."""

from enum import Enum

from agents.rules.merge import Merged, RecordState
from agents.rules.message import Message
from agents.rules.ways import Way
from models.envelope import Envelope, Kind


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
