"""An event on its way: what Headrace knows of a record in an in-topic, beside the source's own bytes.

The value of a Kafka record in an in-topic is the source's message as received; everything of ours is in its headers, and this file is
the only one that writes or reads them. The wire format cannot be changed later: add headers, never give one a second meaning.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

from msgspec import Struct

Headers = list[tuple[str, bytes]]


class Kind(StrEnum):
    """How the value is parsed."""

    CHANGE = "change"  # the CometD message {"data": {"schema", "payload", "event"}, "channel"}
    ROW = "row"  # a REST record {"attributes": {"type", "url"}, "Id", fields flat, relationships nested}
    HOOK = "hook"  # the body of a webhook
    EVENT = "event"  # a platform event: the CometD message {"data": {"schema", "payload", "event": {"EventUuid", "replayId"}}, "channel"}


class Reason(StrEnum):
    """Why it is here."""

    LIVE = "live"
    FETCH = "fetch"
    REPAIR = "repair"
    REDRIVE = "redrive"
    SNAPSHOT = "snapshot"
    POLL = "poll"
    REPLAY = "replay"
    REFILL = "refill"  # from what is known already
    PARENT = "parent"  # read again because a parent changed


ALWAYS_EMITS = (Reason.SNAPSHOT, Reason.REPAIR, Reason.REPLAY, Reason.REDRIVE, Reason.REFILL)  # no set: an enum's hash is made in Python
"""Reasons that come with a run id."""


class EnvelopeError(ValueError):
    """The headers are not ours or are damaged: the record is a dead letter of the stage that read it."""


class Envelope(Struct, kw_only=True):
    """Headers of one record in an in-topic; `key` is the record's id (18 characters for Salesforce).

    kind, reason   see above
    received       epoch ms when Headrace took it from the source
    channel        CometD channel of a change event ("/data/ChangeEvents"); for rows the channel whose position `began` is
    epoch          of the channel, rises when positions start anew; 0 for hooks
    position       Salesforce's replay id of a change event
    index          place of this record within a merged event, or of this body within a delivery
    began          of a row: durable position of the channel when the read began (-1: no position existed yet)
    gone           of a row: epoch second at the source when the id was found not to exist (the value is then {"attributes","Id"} only)
    delivery       delivery id of a hook, id of a platform event
    run            run id of a snapshot, repair, replay, redrive or refill
    route          limits the output to this route when the merge changes nothing
    plan           of a fetched row, or one that fills a new field: print of the plan (agents/rules/plan.py) by which it was read
    """

    kind: Kind
    reason: Reason
    received: int
    channel: str = ""
    epoch: int = 0
    position: int | None = None
    index: int = 0
    began: int | None = None
    gone: int | None = None
    delivery: str | None = None
    run: str | None = None
    route: str | None = None
    plan: str | None = None

    def headers(self) -> Headers:
        """As Kafka headers: UTF-8 text, absent when None."""
        pairs: list[tuple[str, object]] = [
            ("kind", self.kind.value),
            ("reason", self.reason.value),
            ("received", self.received),
            ("channel", self.channel or None),
            ("epoch", self.epoch),
            ("position", self.position),
            ("index", self.index or None),
            ("began", self.began),
            ("gone", self.gone),
            ("delivery", self.delivery),
            ("run", self.run),
            ("route", self.route),
            ("plan", self.plan),
        ]
        return [(name, str(value).encode()) for name, value in pairs if value is not None]

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes]]) -> "Envelope":
        """Read back; headers of others are ignored, the last of a name counts. Raises EnvelopeError."""
        try:
            return cls(**{name: read(raw) for name, raw in headers if raw is not None and (read := _READ.get(name)) is not None})
        except TypeError:
            missing = next(name for name in ("kind", "reason", "received") if name not in dict(headers))
            raise EnvelopeError(
                f"header {missing} is missing: this record was not written by Headrace; redrive it from its source"
            ) from None
        except (KeyError, ValueError) as error:
            raise EnvelopeError(f"a header cannot be read ({error}): redrive the record from its source") from None


_READ: dict[str, Callable[[bytes], Any]] = {
    "kind": {kind.value.encode(): kind for kind in Kind}.__getitem__,
    "reason": {reason.value.encode(): reason for reason in Reason}.__getitem__,
    "received": int,
    "channel": bytes.decode,
    "epoch": int,
    "position": int,
    "index": int,
    "began": int,
    "gone": int,
    "delivery": bytes.decode,
    "run": bytes.decode,
    "route": bytes.decode,
    "plan": bytes.decode,
}
"""How the value of each header is read."""
