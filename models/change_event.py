"""Salesforce's change event as it comes over CometD: header and body, gap, overflow, wildcard, merged. And when positions start anew.

Takes the message already parsed from JSON; msgspec checks it: this runs for every event, where pydantic would cost ten times as much.
Tolerates header keys it does not know, missing `changedFields` (before API 47) and both ways of writing dates.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct, ValidationError, convert

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


_COMPLETE = (Change.UPDATE, Change.CREATE, Change.DELETE, Change.UNDELETE)  # no set: an enum's hash is made in Python
"""What says all of a record's change, unless an id stands for more than a record."""


class ChangeEvent(Struct):
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
        if self.change in _COMPLETE and OVERFLOW_ID not in self.ids and "*" not in "".join(self.ids):
            return None
        if self.overflow:
            return f"needs re-read: {self.change} of {self.sobject}, its transaction had more changes than are delivered one by one"
        if self.wildcard:
            return f"needs re-read: a field of every {self.sobject} was converted ({self.ids[0]})"
        if self.gap or self.change is Change.SNAPSHOT:
            return f"needs re-read: {self.change} of {self.sobject} says that it changed, not what"
        return None


class _Header(Struct, rename="camel"):
    entity_name: str
    record_ids: tuple[str, ...]
    change_type: Change
    commit_timestamp: int
    changed_fields: tuple[str, ...] | None = None


class _Event(Struct, rename="camel"):
    replay_id: int


class _Data(Struct):
    payload: dict[str, Any]
    event: _Event


class _Message(Struct):
    data: _Data
    channel: Any = None


def parse(message: Any) -> ChangeEvent:
    """Read the CometD message {"data": {"schema", "payload", "event": {"replayId"}}, "channel"}. Raises ChangeEventError."""
    try:
        found = convert(message, _Message)
        body = found.data.payload  # a copy
        header = convert(body.pop(HEADER, None), _Header)
        if not header.record_ids or "" in header.record_ids or not header.entity_name:
            raise ValidationError
    except (ValidationError, UnicodeEncodeError) as error:  # the other one of half a character in the header's texts
        _explain(message)
        raise ChangeEventError(str(error)) from None
    return ChangeEvent(
        found.channel if isinstance(found.channel, str) else "",
        header.entity_name,
        header.record_ids,
        header.change_type,
        found.data.event.replay_id,
        header.commit_timestamp,
        header.changed_fields,
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


def _explain(message: Any) -> None:
    """Say of a message that is no change event what is missing, for people. Raises ChangeEventError."""
    data = _object(_object(message, "the message").get("data"), "data")
    header = _object(_object(data.get("payload"), "data.payload").get(HEADER), f"data.payload.{HEADER}")
    position = _object(data.get("event"), "data.event").get("replayId")
    ids, kind, changed = header.get("recordIds"), header.get("changeType"), header.get("changedFields")
    if not isinstance(ids, list) or not ids or "" in ids or not _texts(ids):
        raise ChangeEventError(f"header recordIds must list at least one id, found {_kind(ids)}")
    if kind not in list(Change):
        raise ChangeEventError(f"header changeType is {str(kind)[:40]!r}: not one of {', '.join(Change)}")
    if changed is not None and not (isinstance(changed, list) and _texts(changed)):
        raise ChangeEventError(f"header changedFields must list names, found {_kind(changed)}")
    if not isinstance(name := header.get("entityName"), str) or not name:
        raise ChangeEventError(f"header entityName must be a text, found {_kind(name)}")
    for found, where in ((position, "data.event.replayId"), (header.get("commitTimestamp"), "header commitTimestamp")):
        if type(found) is not int:
            raise ChangeEventError(f"{where} must be a whole number, found {_kind(found)}")


def _texts(found: list[Any]) -> bool:
    return all(isinstance(one, str) for one in found)


def _object(found: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise ChangeEventError(f"{where} must be an object, found {_kind(found)}: not a change event as CometD delivers it")
    return found


def _kind(found: Any) -> str:
    return "nothing" if found is None else "an empty list" if found == [] else type(found).__name__
