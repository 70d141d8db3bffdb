"""What a target should hold (Write), and what became of it (WriteResult).

A Write is the whole target record, never a delta. It is the value of a record in `writes.<target>`; the Kafka key is
`<object>|<target key>`, so that everything that concerns one target record meets in one partition. Nobody changes one that is made; they
are not frozen because that makes each dearer, and one is made for every event: that is also why it is msgspec's kind of a dataclass.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import StrEnum
from typing import Any, Literal

from msgspec import Struct

from models.learned import Rule

OnDelete = Literal["tombstone", "delete", "mark", "ignore"]
Body = dict[str, Any]


def at_path(body: Body, steps: Iterable[str]) -> Any:
    """The value at a path of a body, None where there is none."""
    found: Any = body
    for step in steps:
        found = found.get(step) if isinstance(found, dict) else None
    return found


class Op(StrEnum):
    """WRITE: the target holds `body` under `key`. RELEASE: this source record no longer speaks for `key`."""

    WRITE = "write"
    RELEASE = "release"


class Write(Struct, kw_only=True):
    """One record of `writes.<target>` (JSON).

    route, object, key   object is the target's own word (table, "users"), key the target key inside it
    source               source record: "<connection>/<sObject>/<id>"
    order                place of the source in the route's `from:`; decides between several sources of one key, then the lowest source
    revision             of the source record; grows
    body                 whole record for WRITE, None for RELEASE; under one key others say what it does not (agents/rules/delivery.py)
    on_delete            what the target does when nobody speaks for the key any longer
    successor            of a RELEASE: the key the source record has now, None when it was deleted or left the filter
    then                 of a RELEASE in a target that can rename: the WRITE under the new key, sent on by the writer after the rename
    renamed_from         of a WRITE that follows such a rename: the key left. What stands under the new key is not known then, so the
                         winner is written even when this write itself is stale or equal
    left                 of such a WRITE: what the renamed record may still hold of ours, to be cleared where nobody says it
    reason, run          of the event that caused it
    election             of the group of duplicates that decided this; of one source and revision the later speaks. 0: nobody had to decide
    unique               field of which the members of that group have the same value; "": email
    version              of the route's map that shaped it; 0: made by a Headrace that knew of no versions
    keeps                paths of the body where a missing value means: as this source record was written last under the same key
    always               snapshot, repair, replay, redrive: written even when equal to what `delivered` holds
    position, committed, received   of the last event merged: Salesforce's position, its commit and our receipt in epoch ms; for people
    """

    op: Op
    route: str
    object: str
    key: str
    source: str
    order: int
    revision: int
    body: Body | None = None
    on_delete: OnDelete
    successor: str | None = None
    then: "Write | None" = None
    renamed_from: str | None = None
    left: Body | None = None
    reason: str = "live"
    run: str | None = None
    version: int = 0
    keeps: tuple[str, ...] = ()
    always: bool = False
    election: int = 0
    unique: str = ""
    position: int | None = None
    committed: int | None = None
    received: int | None = None

    @property
    def kafka_key(self) -> bytes:
        """Key of the Kafka record: the target record's name."""
        return f"{self.object}|{self.key}".encode()


class Outcome(StrEnum):
    """What became of a write. A closed set: it is a metric label."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"  # equal to what the target holds: no call made, or the target said so
    STALE = "stale"  # a later one stands: dropped
    DELETED = "deleted"
    SUPPRESSED = "suppressed"  # the target forbids it (forgotten person): dropped and counted
    RESHAPED = "reshaped"  # shaped by an older map: its source record was sent back, to be shaped by the one in use
    DEAD = "dead"


@dataclass(slots=True)
class WriteResult:
    """One per effect, in the order of the effects. `reason`, `field`, `rule` and `retryable` are for DEAD; `id` is the target's own id.

    rule   what the target refuses of the value at `field`, a path of the body, where it says so or names the field alone ("value")
    """

    outcome: Outcome
    reason: str = ""
    field: str | None = None
    retryable: bool = False
    rule: Rule | None = None
    id: str | None = None
    facts: Body = dataclass_field(default_factory=dict)
