"""Salesforce's change event as it comes over CometD: header and body, gap, overflow, wildcard, merged. And when positions start anew.

Takes the message already parsed from JSON and checks it by hand: this runs for every event, where pydantic would cost ten times as much.
Tolerates header keys it does not know, missing `changedFields` (before API 47) and both ways of writing dates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

HEADER = "ChangeEventHeader"
OVERFLOW_ID = "000000000000000AAA"


class ChangeEventError(ValueError):
    """The message is not a change event: says what is missing, and what stood there instead."""


class Change(StrEnum):
    """`changeType` of the header."""

    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    UNDELETE = "UNDELETE"
    GAP_CREATE = "GAP_CREATE"
    GAP_UPDATE = "GAP_UPDATE"
    GAP_DELETE = "GAP_DELETE"
    GAP_UNDELETE = "GAP_UNDELETE"
    GAP_OVERFLOW = "GAP_OVERFLOW"
    SNAPSHOT = "SNAPSHOT"


_CHANGES = {change.value: change for change in Change}
_COMPLETE = frozenset({Change.CREATE, Change.UPDATE, Change.DELETE, Change.UNDELETE})
"""What says all of a record's change, unless an id stands for more than a record."""


@dataclass(slots=True)
class ChangeEvent:
    """One message; several records when it was merged.

    sobject, ids       object API name; 18-character ids as sent
    position           Salesforce's replay id
    committed          epoch ms of the commit
    changed_fields     names as sent ("BillingAddress.Street"); None when the header has no such key
    body               field values without the header: absent key = not sent, None = null
    """

    channel: str
    sobject: str
    ids: tuple[str, ...]
    change: Change
    position: int
    committed: int
    changed_fields: tuple[str, ...] | None
    body: dict[str, Any]

    @property
    def second(self) -> int:
        """Epoch second of the commit: what versions compare."""
        return self.committed // 1000

    @property
    def overflow(self) -> bool:
        """Stands for all further changes of the object in its transaction."""
        return self.change is Change.GAP_OVERFLOW or OVERFLOW_ID in self.ids

    @property
    def wildcard(self) -> bool:
        """Concerns every record of the object ("001*"): a field was converted and emptied."""
        return any(id.endswith("*") for id in self.ids)

    @property
    def gap(self) -> bool:
        """Says that something changed, not what."""
        return self.change.value.startswith("GAP_")

    @property
    def merged(self) -> bool:
        """The same change of several records."""
        return len(self.ids) > 1

    @property
    def needs_reread(self) -> str | None:
        """Why the records must be read again, None when the event says all."""
        if self.change in _COMPLETE and not any(id == OVERFLOW_ID or id.endswith("*") for id in self.ids):
            return None
        if self.overflow:
            return f"needs re-read: {self.change} of {self.sobject}, its transaction had more changes than are delivered one by one"
        if self.wildcard:
            return f"needs re-read: a field of every {self.sobject} was converted ({self.ids[0]})"
        if self.gap or self.change is Change.SNAPSHOT:
            return f"needs re-read: {self.change} of {self.sobject} says that it changed, not what"
        return None


def parse(message: Any) -> ChangeEvent:
    """Read the CometD message {"data": {"schema", "payload", "event": {"replayId"}}, "channel"}. Raises ChangeEventError."""
    data = _object(_object(message, "the message").get("data"), "data")
    payload = _object(data.get("payload"), "data.payload")
    header = _object(payload.get(HEADER), f"data.payload.{HEADER}")
    position = _object(data.get("event"), "data.event").get("replayId")
    ids = header.get("recordIds")
    if type(ids) is not list or not ids or "" in ids or not _texts(ids):
        raise ChangeEventError(f"header recordIds must list at least one id, found {_kind(ids)}")
    kind = header.get("changeType")
    if (change := _CHANGES.get(kind) if type(kind) is str else None) is None:
        raise ChangeEventError(f"header changeType is {str(kind)[:40]!r}: not one of {', '.join(_CHANGES)}")
    changed = header.get("changedFields")
    if changed is not None and (type(changed) is not list or not _texts(changed)):
        raise ChangeEventError(f"header changedFields must list names, found {_kind(changed)}")
    channel = message.get("channel")
    body = {name: value for name, value in payload.items() if name != HEADER}
    return ChangeEvent(
        channel if isinstance(channel, str) else "",
        _text(header, "entityName"),
        tuple(ids),
        change,
        _whole(position, "data.event.replayId"),
        _whole(header.get("commitTimestamp"), "header commitTimestamp"),
        None if changed is None else tuple(changed),
        body,
    )


class Place(NamedTuple):
    """Where a channel stands: its last position and that event's commit second, in an epoch, of an org and instance."""

    epoch: int
    position: int | None
    second: int | None
    org: str
    instance: str


FIRST_EPOCH = 1


def next_epoch(place: Place | None, *, org: str, instance: str, position: int, second: int) -> tuple[int, bool]:
    """Epoch of an event that comes next at `place`, and whether it is a repeat of something at or below the stored position.

    The epoch rises when the org or instance is another one, or when an id at or below the stored position was committed later than the
    stored one: ids then start anew. A repeat is no reason to drop an event (one position can carry several records), only no progress.
    """
    if place is None:
        return FIRST_EPOCH, False
    if (place.org, place.instance) != (org, instance):
        return place.epoch + 1, False
    if place.position is None or position > place.position:
        return place.epoch, False
    if place.second is not None and second > place.second:
        return place.epoch + 1, False
    return place.epoch, True


def _texts(found: list[Any]) -> bool:
    return all(type(one) is str for one in found) if len(found) != 1 else type(found[0]) is str


def _object(found: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise ChangeEventError(f"{where} must be an object, found {_kind(found)}: not a change event as CometD delivers it")
    return found


def _text(header: Mapping[str, Any], name: str) -> str:
    found = header.get(name)
    if not isinstance(found, str) or not found:
        raise ChangeEventError(f"header {name} must be a text, found {_kind(found)}")
    return found


def _whole(found: Any, where: str) -> int:
    if type(found) is not int:
        raise ChangeEventError(f"{where} must be a whole number, found {_kind(found)}")
    return found


def _kind(found: Any) -> str:
    return "nothing" if found is None else "an empty list" if found == [] else type(found).__name__
