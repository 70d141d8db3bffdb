"""What Kafka still holds of in-topics, and which offsets a range means. Reads only; what retention has eaten is refused, never jumped."""

import asyncio
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from models.errors import SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams.bounds import Bound, Moment, Spot, iso
from streams.consume import close_consumer, read_committed_consumer
from streams.kafka import admin
from streams.topics import Topics

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Span:
    """Of a partition: offsets from `first` up to and without `end`, and since when nothing is missing (epoch ms)."""

    first: int
    end: int
    whole_since: int


def partitions(settings: Settings, topics: Topics, flow: Flow, route: str, begin: Bound, until: Bound) -> list[TopicPartition]:
    """Those a range of a route can touch: all of both lanes for times, one of the live lane for offsets. Raises SettingsError."""
    sources = flow.routes[route].sources
    spots = {(_source(spot, sources), spot.partition) for spot in (begin, until) if isinstance(spot, Spot)}
    if not spots:
        names = [topics.inbound(source, bulk=bulk) for source in sources for bulk in (False, True)]
        return [TopicPartition(name, number) for name in names for number in range(settings.partitions)]
    if len(spots) > 1:
        raise SettingsError("--from and --to name different partitions: replay one partition at a time, or use times")
    [(source, number)] = spots
    if number >= settings.partitions:
        raise SettingsError(f"there is no partition {number}: this installation has 0 to {settings.partitions - 1}")
    return [TopicPartition(topics.inbound(source), number)]


def check_order(begin: Bound, until: Bound, now: int) -> None:
    """Raises SettingsError for a range that cannot hold anything."""
    if isinstance(begin, Moment) and begin.ms > now:
        raise SettingsError(f"--from {iso(begin.ms)} lies in the future: nothing came yet")
    if isinstance(begin, Moment) and isinstance(until, Moment) and begin.ms >= until.ms:
        raise SettingsError(f"--from {iso(begin.ms)} is not before --to {iso(until.ms)}: exchange them")
    if isinstance(begin, Spot) and isinstance(until, Spot) and begin.offset >= until.offset:
        raise SettingsError(f"--from {begin.offset} is not before --to {until.offset}: exchange them (--to itself is not replayed)")


async def check_topics(settings: Settings, topics: Topics, wanted: list[TopicPartition]) -> None:
    """Raises SettingsError when an in-topic or `runs` does not exist, TemporaryError when Kafka is away."""
    try:
        async with asyncio.timeout(PATIENCE), admin(settings) as broker:
            there = set(await broker.list_topics())
    except (KafkaError, OSError, TimeoutError) as error:
        raise TemporaryError(f"Kafka at {settings.kafka} is not to be reached ({type(error).__name__}): try again") from error
    if missing := sorted({tp.topic for tp in wanted}.union({topics.runs}) - there):
        raise SettingsError(f"there is nothing to replay: {', '.join(missing)} does not exist; was this installation ever started?")


async def offsets(
    settings: Settings, wanted: list[TopicPartition], begin: Bound, until: Bound, now: int
) -> dict[TopicPartition, tuple[int, int]]:
    """First offset and end (without it) of the partitions that have something between the bounds.

    Raises SettingsError when the range begins before what Kafka holds, TemporaryError when Kafka is away.
    """
    consumer = read_committed_consumer(settings)
    try:
        async with asyncio.timeout(PATIENCE):
            await consumer.start()
            held = await _held(settings, consumer, wanted, now)
            _refuse_what_is_gone(held, begin)
            starts, ends = await _at(consumer, held, begin, now), await _at(consumer, held, until, now)
    except (KafkaError, OSError, TimeoutError) as error:
        raise TemporaryError(f"Kafka at {settings.kafka} did not say what it holds ({type(error).__name__}): try again") from error
    finally:
        await close_consumer(consumer)
    return {tp: (starts[tp], ends[tp]) for tp in wanted if starts[tp] < ends[tp]}


async def _held(settings: Settings, consumer: AIOKafkaConsumer, wanted: list[TopicPartition], now: int) -> dict[TopicPartition, Span]:
    firsts, ends = await consumer.beginning_offsets(wanted), await consumer.end_offsets(wanted)
    cut = [tp for tp in wanted if firsts[tp] > 0]
    kept = await _kept(settings, sorted({tp.topic for tp in cut}), now)
    oldest = await consumer.offsets_for_times(dict.fromkeys(cut, 0)) if cut else {}
    found = {}
    for tp in wanted:
        since = 0
        if tp in cut:
            record = oldest.get(tp)
            since = min(kept[tp.topic], record.timestamp) if record else kept[tp.topic]
        found[tp] = Span(firsts[tp], ends[tp], since)
    return found


async def _kept(settings: Settings, topics: list[str], now: int) -> dict[str, int]:
    """Epoch ms behind which a topic's own rules delete nothing; `now` where they may delete anything (a limit in bytes)."""
    if not topics:
        return {}
    async with admin(settings) as broker:
        answers = await broker.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics])
    found = {}
    for _, _, _, topic, entries in (resource for answer in answers for resource in answer.resources):
        rules: dict[str, Any] = {entry[0]: entry[1] for entry in entries}
        milliseconds, size = int(rules.get("retention.ms") or -1), int(rules.get("retention.bytes") or -1)
        found[topic] = now if size >= 0 else 0 if milliseconds < 0 else now - milliseconds
    return found


def _refuse_what_is_gone(held: dict[TopicPartition, Span], begin: Bound) -> None:
    if isinstance(begin, Moment):
        tp, span = max(held.items(), key=lambda item: item[1].whole_since)
        if begin.ms < span.whole_since:
            raise SettingsError(
                f"--from {iso(begin.ms)} is before what Kafka holds: {tp.topic} partition {tp.partition} is whole only since "
                f"{iso(span.whole_since)} (offset {span.first}). Begin there; what is older comes again only from its source "
                "(`headrace snapshot` for Salesforce)"
            )
        return
    [(tp, span)] = held.items()
    if not span.first <= begin.offset <= span.end:
        raise SettingsError(
            f"--from {begin.partition}:{begin.offset} is not in Kafka: {tp.topic} partition {tp.partition} holds offsets {span.first} to "
            f"{span.end - 1}" + ("" if span.first < span.end else " (nothing)") + ". What is older comes again only from its source"
        )


async def _at(consumer: AIOKafkaConsumer, held: dict[TopicPartition, Span], bound: Bound, now: int) -> dict[TopicPartition, int]:
    if isinstance(bound, Spot):
        return {tp: min(bound.offset, span.end) for tp, span in held.items()}
    if bound.ms > now or (bound.ms == now and not bound.fixed):  # "now" is the end as it is, whatever the clocks of producers say
        return {tp: span.end for tp, span in held.items()}
    answer = await consumer.offsets_for_times(dict.fromkeys(held, bound.ms))
    return {tp: min(answer[tp].offset, span.end) if answer.get(tp) else span.end for tp, span in held.items()}


def _source(spot: Spot, sources: tuple[str, ...]) -> str:
    if spot.source is None and len(sources) > 1:
        raise SettingsError(f"the route reads {', '.join(sources)}: write {sources[0]}:{spot.partition}:{spot.offset}")
    source = spot.source or sources[0]
    if source not in sources:
        raise SettingsError(f"the route does not read {source}: it reads {', '.join(sources)}")
    return source
