"""The dead letters as a person works with them: what there is and why, and once more through the flow.

The topic is never cleaned. What was redriven is closed by a record with the same key and no value, whose headers name the run; a letter
that fails again has an offset of its own and therefore an id of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import orjson
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from agents.anew import anew, in_topic_source
from agents.writer import STAGE as WRITE
from models.dead_letter import DeadLetter, dead_letter
from models.envelope import Headers, Kind, Reason
from models.errors import SettingsError, TemporaryError
from models.flow import Flow, is_event
from models.settings import Settings
from streams.consume import close_consumer, read_all, read_committed_consumer
from streams.engine.loss import STAGE as LOSS
from streams.engine.stage import Output, Record
from streams.publish import Publisher
from streams.topics import Topics

SUBSCRIBE = "subscribe"
MARK = "redriven"
"""Header of a closing record; its value is the run id."""
CHUNK = 200
READ_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Redriven:
    """`sent`: ids of letters sent once more under `run`. `left`: id and reason of those that could not be."""

    run: str
    sent: Sequence[str]
    left: Mapping[str, str]


async def list_letters(settings: Settings, *, cause: str | None = None) -> list[DeadLetter]:
    """Open letters, oldest first; with `cause` those whose cause begins so. What cannot be read is listed as a letter that says so.

    Raises TemporaryError when Kafka is away, FatalError when the topic was never made.
    """
    letters = open_letters(await read_all(settings, Topics(settings.installation).dead_letters))
    return [letter for letter in letters if cause is None or letter.cause.startswith(cause)]


def open_letters(records: Iterable[Record]) -> list[DeadLetter]:
    """The letters that no later record closes, oldest first. The last of an id counts. Never raises."""
    found: dict[bytes, DeadLetter] = {}
    for record in records:
        key = record.key if record.key is not None else f"{record.topic}/{record.partition}/{record.offset}".encode()
        found.pop(key, None)
        if record.value is not None:
            found[key] = _letter(key, record)
    return sorted(found.values(), key=lambda letter: letter.at)


async def redrive(settings: Settings, flow: Flow, what: str) -> Redriven:
    """Send the letter of this id, or all of this cause (its first 6 characters do), once more through its in-topic, and close it.

    Repeating after an interruption is harmless. Raises SettingsError when no open letter is meant, TemporaryError when Kafka is away.
    """
    letters = [letter for letter in await list_letters(settings) if letter.id == what or (len(what) >= 6 and letter.cause.startswith(what))]
    if not letters:
        raise SettingsError(f"no open dead letter has the id or cause {what!r}; `headrace dead-letters` lists them")
    run = f"redrive-{uuid4().hex[:12]}"
    topics = Topics(settings.installation)
    known = {topic.name for topic in topics.all(flow, settings)}
    sent: list[str] = []
    left: dict[str, str] = {}
    async with Publisher(settings) as publisher:
        letters.sort(key=lambda letter: (letter.topic, letter.partition, letter.offset))
        for start in range(0, len(letters), CHUNK):
            outputs: dict[str, Output] = {}
            for letter in letters[start : start + CHUNK]:
                if letter.stage == LOSS:
                    left[letter.id] = "its records are gone from Kafka: `headrace accept-loss` says how to fetch them again"
                elif letter.stage == SUBSCRIBE and not one_record(letter):
                    left[letter.id] = "it does not name one record: read the whole object anew (`headrace snapshot`)"
                elif letter.redrive_to not in known:
                    left[letter.id] = f"topic {letter.redrive_to or '(none)'} is not in the flow any longer: restore its source or route"
                elif (output := again(letter, flow, topics, run) or await _from_kafka(settings, letter, run)) is None:
                    left[letter.id] = (
                        "the letter is too large to hold the original, and Kafka no longer has it: change the record in its source"
                    )
                else:
                    outputs[letter.id] = output
            await publisher.send(list(outputs.values()))
            await publisher.send([Output(topics.dead_letters, id.encode(), None, [(MARK, run.encode())]) for id in outputs])
            sent += outputs
    return Redriven(run, sent, left)


def one_record(letter: DeadLetter) -> bool:
    """Whether a letter's key is the id of one Salesforce record; not so for a wildcard, an overflow, or what cannot be read."""
    key = (letter.original_key or b"").decode(errors="replace")
    return re.fullmatch("[A-Za-z0-9]{18}", key) is not None and not key.startswith("0" * 15)


def again(letter: DeadLetter, flow: Flow, topics: Topics, run: str) -> Output | None:
    """What a letter is sent as; None when it does not hold its original.

    What the subscriber could not pass on (a gap, an event too large) is asked for by id: its event would say no more the second time.
    A failed write goes back as news that says nothing but an id (for a hook: an empty body older than all): the record is emitted as it is
    now, so no old write is repeated. That of a platform event, which is kept nowhere and never changes, is sent itself.
    """
    if letter.stage == SUBSCRIBE:
        inbound = topics.parse_inbound(letter.redrive_to)
        id = (letter.original_key or b"").decode()
        headers = [("reason", Reason.REDRIVE.value.encode()), ("run", run.encode())]
        return Output(topics.fetch(inbound.connection), id.encode(), orjson.dumps({"sobject": inbound.sobject, "id": id}), headers)
    if letter.stage == WRITE and letter.source is not None:
        source, _ = in_topic_source(letter.source, flow)
        if is_event(source):
            writes = topics.writes(flow.routes[letter.route].to) if letter.route in flow.routes else ""
            return Output(writes, letter.original_key, letter.original_value) if writes and letter.value is not None else None
        return anew(letter.source, letter.route, flow, topics, reason=Reason.REDRIVE, run=run)
    if letter.value is None:
        return None
    return Output(letter.redrive_to, letter.original_key, letter.original_value, _headers(letter, letter.original_headers, run))


def _headers(letter: DeadLetter, headers: Iterable[tuple[str, bytes]], run: str) -> Headers:
    """The original's, with reason, run and route of the redrive. A hook, whose version is its offset, keeps that of its first coming."""
    kept = [(name, value) for name, value in headers if name not in ("reason", "run", "route")]
    kept += [("reason", Reason.REDRIVE.value.encode()), ("run", run.encode())]
    if ("kind", Kind.HOOK.value.encode()) in kept and all(name != "position" for name, _ in kept):
        kept.append(("position", str(letter.offset).encode()))
    return kept + ([("route", letter.route.encode())] if letter.route is not None else [])


async def _from_kafka(settings: Settings, letter: DeadLetter, run: str) -> Output | None:
    """The original of a letter that was too large to hold it, from where it came, while Kafka keeps it."""
    part = TopicPartition(letter.topic, letter.partition)
    consumer = read_committed_consumer(settings, auto_offset_reset="none")
    try:
        await consumer.start()
        consumer.assign([part])
        if (await consumer.beginning_offsets([part]))[part] > letter.offset or (await consumer.end_offsets([part]))[part] <= letter.offset:
            return None
        consumer.seek(part, letter.offset)
        found = await consumer.getmany(part, timeout_ms=int(READ_SECONDS * 1000), max_records=1)
    except KafkaError as error:
        raise TemporaryError(f"reading {letter.topic}: {type(error).__name__}; try again") from None
    finally:
        await close_consumer(consumer)
    for record in found.get(part, ()):
        if record.offset == letter.offset and record.value is not None:
            return Output(letter.redrive_to, record.key, record.value, _headers(letter, record.headers, run))
    return None


def _letter(key: bytes, record: Record) -> DeadLetter:
    """The letter in a record, or one that says that it cannot be read."""
    try:
        return DeadLetter.model_validate_json(record.value or b"")
    except ValidationError as error:
        unreadable = dead_letter(
            stage="dead-letters",
            reason=f"this dead letter cannot be read ({error.error_count()} faults); its bytes stand in the topic",
            error="unreadable",
            at=record.timestamp,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
            redrive_to="",
        )
        return unreadable.model_copy(update={"id": key.decode(errors="replace")})
