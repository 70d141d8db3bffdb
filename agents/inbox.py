"""One record of an in-topic as what it says: its headers and its news. The only place that knows which kind of value is parsed how."""

from collections.abc import Sequence
from typing import Any

import orjson

from agents.rules.message import Message, from_event, from_hook, from_platform, from_row
from agents.rules.plan import Plan
from models.change_event import ChangeEventError, parse
from models.envelope import Envelope, EnvelopeError, Kind
from models.errors import PermanentError
from models.platform_event import parse_platform_event
from streams.engine.stage import Record

CHANGE = Kind.CHANGE  # an enum looks its members up in Python


def read(record: Record, plan: Plan) -> tuple[Envelope, Message]:
    """Headers and news of one record of an in-topic. Raises PermanentError."""
    try:
        envelope = Envelope.from_headers(record.headers)
    except EnvelopeError as error:
        raise PermanentError(str(error)) from None
    if not record.key:
        raise PermanentError("the record has no key: this record was not written by Headrace; redrive it from its source")
    record_id = text_of(record.key)
    if record.value is None:
        raise PermanentError("the record has no value: redrive it from its source")
    try:
        found = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise PermanentError(f"the value is not JSON ({error.msg} at character {error.pos}): see the original bytes") from None
    if envelope.kind is CHANGE and not plan.hook and not plan.event:
        try:
            return envelope, from_event(parse(found), record_id, plan, envelope.epoch)
        except ChangeEventError as error:
            raise PermanentError(str(error)) from None
    if (envelope.kind is Kind.HOOK) != plan.hook or (envelope.kind is Kind.EVENT) != plan.event:
        raise PermanentError(
            f"a record of kind {envelope.kind} in the topic of {plan.sobject or 'a webhook'}: it was put there by somebody else"
        )
    if envelope.kind is Kind.ROW:
        return envelope, from_row(found, envelope, plan)
    if envelope.kind is Kind.HOOK:
        return envelope, from_hook(found, envelope, plan, record.offset)
    return envelope, _platform(found, plan)


def _platform(found: Any, plan: Plan) -> Message:
    try:
        return from_platform(parse_platform_event(found), plan)
    except ChangeEventError as error:
        raise PermanentError(str(error)) from None


def text_of(raw: bytes | None) -> str:
    """For people and keys: what is no UTF-8 stands as escapes."""
    try:
        return (raw or b"").decode()
    except UnicodeDecodeError:
        return (raw or b"").decode(errors="backslashreplace")


def delivery_of(record: Record) -> str:
    """What names a delivery or a published event; "" for other records."""
    found = dict(record.headers)
    raw, index = found.get("delivery"), found.get("index")
    return f"{text_of(raw)}|{text_of(index)}" if raw else ""


class AsLastSeen:
    """In the place of a record from Kafka, for the dead letter of a known one: redriven, it tells nothing new and is emitted as it is."""

    def __init__(self, topic: str, partition: int, offset: int, id: str, envelope: Envelope) -> None:
        self.topic, self.partition, self.offset, self.timestamp = topic, partition, offset, envelope.received
        self.key: bytes | None = id.encode()
        self.value: bytes | None = b"{}" if envelope.kind is Kind.HOOK else orjson.dumps({"Id": id})
        self.headers: Sequence[tuple[str, bytes]] = envelope.headers()
