"""From the messages of one poll to records for Kafka: split, checked against the position, refused with a reason. Pure.

It looks at a message's header only; what the fields mean is the processing agent's matter. Nothing vanishes here: a message becomes
records, an incident (it says that something changed, not what), dead letters, or a counted drop (a repeat; an sObject that no route reads).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from models.change_event import ChangeEvent, ChangeEventError, next_epoch, parse
from models.dead_letter import dead_letter
from models.envelope import Envelope, Headers, Kind, Reason
from models.platform_event import CHANNEL as PLATFORM
from models.platform_event import PlatformEvent, parse_platform_event
from models.record_id import id18
from models.scrub import scrub
from streams.engine.stage import Output
from streams.publish import MAX_RECORD
from streams.salesforce.incidents import Cause, Incident
from streams.salesforce.positions import Position
from streams.salesforce.rest import ID
from streams.topics import Topics

KEPT_BYTES = 700_000
"""Of a dead letter's original: base64 of more would not fit a Kafka record."""
SHARED_IDS = 25
"""Above so many record ids of a merged event each record's copy of the message names its own id only: copies would grow with the square."""
BUFFER_SECONDS = 300
"""So much before the event's commit a re-scan begins: stamps are set before a transaction commits, and it may take long."""
Message = dict[str, Any]


@dataclass(slots=True)
class Plan:
    """What one transaction holds, and what is counted once it is committed."""

    outputs: list[Output] = field(default_factory=list)
    received: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    incidents: list[Incident] = field(default_factory=list)
    repeats: int = 0
    old: int = 0
    unrouted: int = 0
    last_millis: int = 0
    epoch_rose: bool = False
    reshaped: bool = False


def dump(message: Any) -> bytes:
    """The message as bytes again. What orjson refuses (half a surrogate pair, numbers beyond 64 bits) the slow way."""
    try:
        return orjson.dumps(message)
    except TypeError:
        return json.dumps(message).encode()


def replay_of(message: Any) -> int | None:
    """The replay id of a message, however damaged the rest is."""
    data = message.get("data") if isinstance(message, dict) else None
    event = data.get("event") if isinstance(data, dict) else None
    found = event.get("replayId") if isinstance(event, dict) else None
    return found if type(found) is int and found >= 0 else None


def in_order(messages: Sequence[Any]) -> list[Any]:
    """By position; what has none comes first."""
    return sorted(messages, key=lambda m: -1 if (p := replay_of(m)) is None else p)


def parts(messages: Sequence[Any], most: int) -> Iterator[list[Any]]:
    """A poll in order of position, cut into parts of at most `most` messages.

    Ordered before it is cut: a long reply out of order once moved the position with its first part, and the rest was taken for repeats.
    """
    ordered = in_order(messages)
    for start in range(0, len(ordered), most):
        yield ordered[start : start + most]


class Intake:
    """Turns polls of one channel into plans. Holds the position as of the last plan made; the caller restores it when a plan is given up.

    routed       sObjects and platform events that a route reads
    not_before   commit second below which events are dropped (restart before a first position was stored), None: keep all
    """

    def __init__(
        self,
        connection: str,
        channel: str,
        topics: Topics,
        routed: Collection[str],
        position: Position,
        asks: Callable[[ChangeEvent], list[Output]] | None = None,
    ) -> None:
        self._asks = asks or (lambda _: [])
        self.connection, self.channel, self._topics, self._routed = connection, channel, topics, frozenset(routed)
        self._platform, self._custom = channel.startswith(PLATFORM), channel.endswith("__chn")
        self.position = position
        self.not_before: int | None = None
        self._siblings: set[tuple[str, ...]] = set()
        self._schemas: dict[str, set[str]] = {}
        self._now = 0

    def plan(self, messages: Sequence[Any], now_ms: int) -> Plan:
        """Outputs of one part of a poll, in order of position; moves `position`."""
        plan, self._now = Plan(), now_ms
        for message in in_order(messages):
            self._one(plan, message)
        return plan

    def _one(self, plan: Plan, message: Any) -> None:
        if self._platform:
            self._platform_event(plan, message)
            return
        try:
            event = parse(message)
            if event.position < 0:
                raise ChangeEventError(f"data.event.replayId is {event.position}: no position")
        except ChangeEventError as error:
            self._undecodable(plan, message, error)
            return
        if self._dropped(plan, event):
            return
        plan.last_millis = max(plan.last_millis, event.committed)
        plan.reshaped |= self._new_schema(event.sobject, message["data"].get("schema"))
        plan.outputs += (asked := self._asks(event))
        if event.sobject not in self._routed:
            plan.unrouted += not asked
            return
        raw = dump(message)
        if event.needs_reread:
            self._withheld(plan, event, event.needs_reread, raw)
            return
        for index, name in enumerate(event.ids):
            value = raw if len(event.ids) <= SHARED_IDS else dump(_narrowed(message, name))
            self._record(plan, event, index, name, value)

    def _platform_event(self, plan: Plan, message: Any) -> None:
        """Each is a record of its own. One too large for Kafka is a dead letter: nothing can be read again."""
        try:
            event = parse_platform_event(message)
            if self._custom and not event.name:
                raise ChangeEventError("data.event has no EventApiName: on a channel of several events nothing else tells which it is")
        except ChangeEventError as error:
            self._undecodable(plan, message, error)
            return
        if self._dropped(plan, event):
            return
        plan.last_millis = max(plan.last_millis, event.committed)
        sobject, value = event.name if self._custom else self.channel.removeprefix(PLATFORM), dump(message)
        if sobject not in self._routed:
            plan.unrouted += 1
            return
        name = event.uuid or f"{self.position.epoch}-{event.position}"
        headers = Envelope(
            kind=Kind.EVENT,
            reason=Reason.LIVE,
            received=self._now,
            channel=self.channel,
            epoch=self.position.epoch,
            position=event.position,
            delivery=name,
        ).headers()
        topic = self._topics.inbound(f"{self.connection}/{sobject}")
        if len(value) + 2_000 > MAX_RECORD:
            reason = f"the platform event is too large for Kafka ({len(value):,} bytes): publish less in one event"
            letter_id = f"{self.connection}{self.channel}@{self.position.epoch}/{event.position}"
            self._letter(plan, letter_id, "TooLarge", reason, event.position, name.encode(), value, headers, topic)
        else:
            plan.outputs.append(Output(topic, name.encode(), value, headers))
            plan.received[sobject] += 1

    def _new_schema(self, sobject: str, schema: Any) -> bool:
        """Whether the event was made by other fields than any before it; of the first one nobody knows, so it is taken for such."""
        known = self._schemas.setdefault(sobject, set())
        fresh = isinstance(schema, str) and schema not in known
        if fresh:
            known.add(schema)
        return fresh

    def _dropped(self, plan: Plan, event: ChangeEvent | PlatformEvent) -> bool:
        """Whether the event is a repeat, or older than the first start; else the position moves to it."""
        at = self.position
        if at.position is None and self.not_before is not None and event.second < self.not_before:
            plan.old += 1
            return True
        epoch, repeat = next_epoch(at.place, org=at.org, instance=at.instance, position=event.position, second=event.second)
        if not repeat:
            plan.epoch_rose |= epoch > at.epoch
            rise = at.risen if epoch > at.epoch else at.moved
            self.position, self._siblings = rise(event.position, event.second), {event.ids}
            return False
        if event.position == at.position and self._siblings and event.ids not in self._siblings:
            self._siblings.add(event.ids)  # an enriched channel splits a merged event: same replay id, another record
            return False
        plan.repeats += 1
        return True

    def _withheld(self, plan: Plan, event: ChangeEvent, why: str, raw: bytes) -> None:
        """What an event does not say becomes an incident: its ids, or everything of the object that changed about then."""
        cause, since, ids = _scope(event)
        if cause == "gap":
            for index, name in enumerate(event.ids):
                if not ID.fullmatch(name):
                    self._record(plan, event, index, name, raw)
        if cause != "gap" or ids:
            self._incident(plan, event, cause, why, ids, since)

    def _incident(
        self, plan: Plan, event: ChangeEvent, cause: Cause, why: str, ids: tuple[str, ...] = (), since: int = 0, index: int = 0
    ) -> None:
        name = f"{self.connection}{self.channel}@{self.position.epoch}/{event.position}/{index}/{event.sobject}/{cause}"
        incident = Incident(name, f"{self.connection}/{event.sobject}", cause, scrub(why, 200), ids, since, opened=self._now)
        plan.incidents.append(incident)
        plan.outputs.append(incident.output(self._topics))

    def _record(self, plan: Plan, event: ChangeEvent, index: int, name: str, value: bytes) -> None:
        envelope = Envelope(
            kind=Kind.CHANGE,
            reason=Reason.LIVE,
            received=self._now,
            channel=self.channel,
            epoch=self.position.epoch,
            position=event.position,
            index=index,
        )
        topic = self._topics.inbound(f"{self.connection}/{event.sobject}")
        if not ID.fullmatch(name):
            key = name.encode(errors="replace")
            letter_id = (
                f"{self.connection}{self.channel}@{self.position.epoch}/{event.position}/{index}/{key.decode(errors='replace')[:40]}"
            )
            reason = (
                f"record id '{scrub(name, 40)}' of a {event.change} of {event.sobject} is no id: read the object anew (`headrace snapshot`)"
            )
            self._letter(plan, letter_id, "ChangeEventError", reason, event.position, key, value, envelope.headers(), topic)
        elif len(value) + 2_000 > MAX_RECORD:
            why = f"the event is too large for Kafka ({len(value):,} bytes)"
            self._incident(plan, event, "too large", why, (id18(name),), index=index)
        else:
            plan.outputs.append(Output(topic, id18(name).encode(), value, envelope.headers()))
            plan.received[event.sobject] += 1

    def _undecodable(self, plan: Plan, message: Any, error: ChangeEventError) -> None:
        position, value = replay_of(message), dump(message)
        if position is not None:
            if self.position.position is None or position > self.position.position:
                self.position, self._siblings = replace(self.position, position=position, refused=False), set()
            elif position == self.position.position:
                plan.repeats += 1
                return
        digest = hashlib.sha256(value).hexdigest()[:16]
        letter_id = f"{self.connection}{self.channel}@{self.position.epoch}/{position}/{digest}"
        reason = f"a message of Salesforce cannot be read: {error}; look at its bytes, then read its record anew (`headrace snapshot`)"
        headers = Envelope(kind=Kind.CHANGE, reason=Reason.LIVE, received=self._now, channel=self.channel, position=position).headers()
        self._letter(plan, letter_id, "ChangeEventError", reason, position or 0, None, value, headers, "")

    def _letter(
        self, plan: Plan, name: str, error: str, reason: str, offset: int, key: bytes | None, value: bytes, headers: Headers, to: str
    ) -> None:
        kept: bytes | None = value
        if len(value) > KEPT_BYTES:
            kept, reason = None, f"{reason}; its {len(value):,} bytes are too many to be kept here"
        letter = dead_letter(
            stage="subscribe",
            reason=reason.encode(errors="replace").decode(),
            error=error,
            at=self._now,
            topic=f"{self.connection}{self.channel}",
            partition=0,
            offset=offset,
            key=key,
            value=kept,
            headers=headers,
            redrive_to=to,
        ).model_copy(update={"id": name})
        plan.outputs.append(Output(self._topics.dead_letters, name.encode(), orjson.dumps(letter.model_dump(exclude_none=True))))
        plan.dead[error] += 1


def _scope(event: ChangeEvent) -> tuple[Cause, int, tuple[str, ...]]:
    """Cause of the incident, from when on the object is to be read again, and the records where they are known.

    A converted field (wildcard) leaves no stamp on the records: all of them are read.
    """
    if event.overflow:
        return "overflow", max(0, event.second - BUFFER_SECONDS), ()
    if event.wildcard:
        return "wildcard", 0, ()
    return "gap", 0, tuple(dict.fromkeys(id18(name) for name in event.ids if ID.fullmatch(name)))


def _narrowed(message: Message, record_id: str) -> Message:
    """A copy for one record of a large merged event."""
    data = message["data"]
    header = data["payload"]["ChangeEventHeader"] | {"recordIds": [record_id]}
    return message | {"data": data | {"payload": data["payload"] | {"ChangeEventHeader": header}}}
