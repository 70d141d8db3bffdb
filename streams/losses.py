"""The operator's step after a log lost what was not read (engine/loss.py): accept it, so that the partition goes on with what is there.

A worker may run meanwhile; it sees the new offset within seconds. Numbers that only grow (revision, turn, a hook's version) come from
offsets, so a log that was made anew, or may have been, is first filled up to where the old one was read, and what it holds is moved above
that: read again under a higher offset, it acts as any repetition does.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.errors import KafkaError

from models.dead_letter import DeadLetter
from models.errors import SettingsError, TemporaryError
from models.flow import Flow, Webhook, is_event
from models.settings import Settings
from streams.consume import close_consumer, read_committed_consumer, read_last
from streams.engine.loss import told
from streams.engine.stage import Output
from streams.kafka import admin
from streams.publish import TransactionalPublisher
from streams.salesforce.incidents import Incident
from streams.topics import Topics

FILL = 50_000
FILLER = ("filler", b"")
RECEIVER_SECONDS = 15.0
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A loss that was accepted: it goes on at `offset`; `todo` says how to fetch what is gone."""

    id: str
    reason: str
    offset: int
    todo: str


async def losses(settings: Settings, what: str | None = None) -> list[DeadLetter]:
    """Open losses; with `what` the one of this id, those of this topic, or "all". Raises TemporaryError, FatalError, SettingsError."""
    found = sorted((await told(settings)).values(), key=lambda letter: (letter.topic, letter.partition))
    if what is None or what == "all":
        return found
    if not (meant := [letter for letter in found if what in (letter.id, letter.topic)]):
        raise SettingsError(f"no loss of {what!r} is open; `headrace accept-loss` lists them")
    return meant


async def accept(settings: Settings, flow: Flow, letters: Sequence[DeadLetter], by: str = "accept-loss") -> list[Accepted]:
    """Let each partition go on, and close its letter in the same transaction, with an incident for each sObject that its subscriber can
    read again. Repeating after an interruption is harmless.

    Raises SettingsError (a receiver runs and must not), TemporaryError (Kafka away).
    """
    try:
        async with _reader(settings) as reader, TransactionalPublisher(settings, f"{settings.installation}.{by}") as publisher:
            return [await _accept(settings, flow, publisher, reader, letter) for letter in letters]
    except KafkaError as error:
        raise TemporaryError(f"Kafka at {settings.kafka} did not answer ({type(error).__name__}); try again") from None


async def accept_removed(settings: Settings, flow: Flow, sources: Sequence[str]) -> list[Accepted]:
    """Accept what nobody need decide about: records that retention removed, where every source can be read again and the first is one of
    these. Raises TemporaryError, FatalError.
    """
    topics = Topics(settings.installation)
    mine = [letter for letter in (await told(settings)).values() if set(affected(letter.topic, flow, topics)[:1]) & set(sources)]
    mine = [letter for letter in mine if not _others(letter.topic, flow, topics)]
    if not mine:
        return []
    try:
        async with _reader(settings) as reader:
            begins = await reader.beginning_offsets([TopicPartition(letter.topic, letter.partition) for letter in mine])
    except KafkaError as error:
        raise TemporaryError(f"Kafka at {settings.kafka} did not answer ({type(error).__name__})") from None
    removed = [letter for letter in mine if 0 <= letter.offset < begins[TopicPartition(letter.topic, letter.partition)]]
    return await accept(settings, flow, removed, f"accept-removed.{sources[0].replace('/', '.')}") if removed else []


def affected(topic: str, flow: Flow, topics: Topics) -> tuple[str, ...]:
    """Sources whose records a topic carried and Salesforce can show again, in the order of the flow."""
    return tuple(source for source in _carried(topic, flow, topics) if _again(source))


def _others(topic: str, flow: Flow, topics: Topics) -> tuple[str, ...]:
    """Those that nobody can read again."""
    return tuple(source for source in _carried(topic, flow, topics) if not _again(source))


def _again(source: str) -> bool:
    return "/" in source and not is_event(source)


def _carried(topic: str, flow: Flow, topics: Topics) -> tuple[str, ...]:
    kind, _, name = topic.removeprefix(f"{topics.installation}.").removesuffix(".bulk").partition(".")
    if kind == "in":
        return (topics.parse_inbound(topic).source,)
    if kind == "writes":
        return tuple(dict.fromkeys(source for route in flow.routes.values() if route.to == name for source in route.sources))
    return tuple(f"{name}/{sobject}" for sobject in flow.sobjects(name))


def todo(topic: str, flow: Flow, topics: Topics) -> str:
    """How what a topic lost is fetched again."""
    said = []
    if found := affected(topic, flow, topics):
        said.append(f"{', '.join(found)}: read again by the subscriber, `headrace incidents` shows when")
    for source in _others(topic, flow, topics):
        what = "sent" if isinstance(flow.connections.get(source), Webhook) else "published"
        if topic.startswith(topics.inbound("")):
            said.append(f"ask the sender of {source} to deliver again what it {what} in that time")
        else:
            routes = [
                name
                for name, route in flow.routes.items()
                if source in route.sources and topics.writes(route.to) == topic.removesuffix(".bulk")
            ]
            said.append(", ".join(f"`headrace replay {name} --from …`" for name in routes) + f" for {source}")
    return "; ".join(said)


async def _accept(
    settings: Settings, flow: Flow, publisher: TransactionalPublisher, reader: AIOKafkaConsumer, letter: DeadLetter
) -> Accepted:
    topics = Topics(settings.installation)
    part = TopicPartition(letter.topic, letter.partition)
    begin, end = (await reader.beginning_offsets([part]))[part], (await reader.end_offsets([part]))[part]
    async with admin(settings) as broker:
        group = await broker.list_consumer_group_offsets(settings.installation, partitions=[part])
        committed = group[part].offset if part in group else -1
        stands = not begin <= committed <= end or end < letter.offset
        start = begin
        if stands and begin < letter.offset:
            await _alone(settings, flow, letter.topic, topics)
            start = await _fill(publisher, reader, part, letter.offset)
            await _move(publisher, reader, part, begin, start)
        closing = Output(topics.dead_letters, letter.id.encode(), None, [("redriven", b"accept-loss")])
        opened = [incident.output(topics) for incident in _incidents(letter, flow, topics)]
        await publisher.send([closing, *opened], offsets={part: start} if stands else None, group=settings.installation)
        if start > begin:  # neither what was filled in nor what was moved may meet a replay
            await broker.delete_records({part: RecordsToDelete(before_offset=start)})
    log.info("loss accepted", topic=part.topic, partition=part.partition, offset=start if stands else committed)
    return Accepted(letter.id, letter.reason, start if stands else committed, todo(letter.topic, flow, topics))


def _incidents(letter: DeadLetter, flow: Flow, topics: Topics) -> list[Incident]:
    """When the lost records were written is not known any more: everything is read again."""
    now = int(time.time() * 1000)
    why = f"Kafka lost records of {letter.topic} partition {letter.partition} before they were read"
    return [Incident(f"{letter.id}/{source}", source, "log lost", why, opened=now) for source in affected(letter.topic, flow, topics)]


async def _alone(settings: Settings, flow: Flow, topic: str, topics: Topics) -> None:
    """A hook's version is its offset: what is moved must not come after what is received meanwhile."""
    if not topic.startswith(topics.inbound("")) or not isinstance(flow.connections.get(topics.parse_inbound(topic).source), Webhook):
        return
    last = (await read_last(settings, topics.processes)).values()
    said = [orjson.loads(record.value or b"{}") for record in last]
    if any(one.get("role") == "receive" and one.get("at", 0) / 1000 > time.time() - RECEIVER_SECONDS for one in said):
        raise SettingsError(
            f"{topic} was made anew and a receiver still writes to it: stop the receivers (`headrace status`), then repeat this"
        )


async def _fill(publisher: TransactionalPublisher, reader: AIOKafkaConsumer, part: TopicPartition, least: int) -> int:
    """Append empty records until the log ends at `least` or above; where it ends.

    What a consumer of committed records says of the end trails our own transactions by a moment: asked again, it had more appended.
    """
    end = (await reader.end_offsets([part]))[part]
    while end < least:
        sent = await publisher.send([Output(part.topic, None, None, [FILLER], part.partition)] * min(FILL, least - end))
        end = sent[part] + 1  # the mark of the transaction's end
    return int(end)


async def _move(publisher: TransactionalPublisher, reader: AIOKafkaConsumer, part: TopicPartition, begin: int, end: int) -> None:
    """Append what stands from `begin` to below `end` once more, in order."""
    reader.assign([part])
    reader.seek(part, begin)
    while await reader.position(part) < end:
        for records in (await reader.getmany(part, timeout_ms=200)).values():
            await publisher.send([
                Output(r.topic, r.key, r.value, list(r.headers), r.partition) for r in records if r.offset < end and FILLER not in r.headers
            ])  # fmt: skip


@asynccontextmanager
async def _reader(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = read_committed_consumer(settings, auto_offset_reset="none")
    try:
        await consumer.start()
        yield consumer
    finally:
        await close_consumer(consumer)
