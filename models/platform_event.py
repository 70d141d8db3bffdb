"""Salesforce's platform event as it comes over CometD: published by somebody, heard once, never kept. It is no record and has no changes.

Checked by hand, as change events are. What its fields mean is the publisher's matter.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.change_event import ChangeEventError

CHANNEL = "/event/"
UUID = re.compile(r"[0-9A-Za-z-]{8,64}")


@dataclass(slots=True)
class PlatformEvent:
    """One event.

    uuid        EventUuid; "" where there is none (older orgs): the position names it then
    name        of the event, "" where the message does not say: one that carries several does
    position    Salesforce's replay id
    committed   epoch ms of its CreatedDate, 0 where it has none
    values      its fields, and EventUuid and ReplayId
    """

    uuid: str
    name: str
    position: int
    committed: int
    values: dict[str, Any]

    @property
    def second(self) -> int:
        """Epoch second at which it was published."""
        return self.committed // 1000

    @property
    def ids(self) -> tuple[str, ...]:
        """As a change event's: who it is about."""
        return (self.uuid,)


def parse_platform_event(message: Any) -> PlatformEvent:
    """Read {"data": {"payload", "event": {"EventUuid", "EventApiName", "replayId"}}}. Raises ChangeEventError, the same as for changes."""
    data = message.get("data") if isinstance(message, Mapping) else None
    payload, event = (data.get("payload"), data.get("event")) if isinstance(data, Mapping) else (None, None)
    if not isinstance(payload, dict) or not isinstance(event, Mapping):
        raise ChangeEventError("data.payload and data.event must be objects: not a platform event as CometD delivers it")
    position = event.get("replayId")
    if type(position) is not int or position < 0:
        raise ChangeEventError("data.event.replayId must be a whole number")
    named = event.get("EventUuid")
    uuid = named if isinstance(named, str) and UUID.fullmatch(named) else ""
    name = told if isinstance(told := event.get("EventApiName"), str) else ""
    return PlatformEvent(
        uuid, name, position, _millis(payload.get("CreatedDate")), {**payload, "EventUuid": uuid or None, "ReplayId": position}
    )


def _millis(text: Any) -> int:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
