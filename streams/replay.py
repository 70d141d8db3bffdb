"""Replay: a range of a route's in-topics once more, through the bulk lane and the same agents, for that route only.

A record keeps its envelope (kind, channel, epoch, position, began), so the merge changes nothing and the route emits; only run, route and
reason are new. The range is fixed before the first record is sent, and what came by replay or redrive is left out: a replay never chases
its own output. Records and progress are one transaction in Kafka: a killed replay goes on exactly where it was.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import structlog
from aiokafka import TopicPartition
from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict

from models.envelope import Envelope, EnvelopeError, Kind, Reason
from models.errors import PermanentError, SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams.bounds import Moment, parse_bound
from streams.consume import close_consumer, read_all, read_committed_consumer
from streams.engine.stage import Output, Record
from streams.held import check_order, check_topics, offsets, partitions
from streams.publish import TransactionalPublisher, batched
from streams.topics import Topics

BATCH_RECORDS = 500
RETRY_SECONDS = 1.0
NOT_AGAIN = frozenset({Reason.REPLAY, Reason.REDRIVE})

log = structlog.get_logger()


class Part(BaseModel):
    """One partition of one in-topic: offsets from `start` up to and without `end`; `next` is the first not yet looked at."""

    model_config = ConfigDict(extra="ignore")

    topic: str
    partition: int
    start: int
    end: int
    next: int

    @property
    def tp(self) -> TopicPartition:
        """As aiokafka wants it."""
        return TopicPartition(self.topic, self.partition)


class Replay(BaseModel):
    """State of a run, kept in the `runs` topic under its id.

    sent      records put into the bulk lane
    skipped   left out because they came by replay or redrive themselves
    left_out  could not be repeated (headers not ours, or too large with the new ones); each is logged
    """

    model_config = ConfigDict(extra="ignore")

    kind: str = "replay"
    run: str
    route: str
    begin: str
    until: str
    fixed: bool
    parts: list[Part]
    sent: int = 0
    skipped: int = 0
    left_out: int = 0
    started: int
    at: int = 0
    done: bool = False

    @property
    def total(self) -> int:
        """Offsets of the range; some hold no record."""
        return sum(part.end - part.start for part in self.parts)

    @property
    def passed(self) -> int:
        """Offsets behind us."""
        return sum(part.next - part.start for part in self.parts)


async def run_replay(
    settings: Settings,
    flow: Flow,
    route: str,
    from_: str,
    to: str = "now",
    *,
    run_id: str | None = None,
    progress: Callable[[Replay], None] = lambda _: None,
    stop: asyncio.Event,
) -> Replay:
    """Replay until done or `stop`; the returned state says which (`done`), and its `run` continues it.

    With `run_id` that run goes on (its range, not the arguments, counts). Without one, an unfinished run of the same route and the same
    fixed bounds goes on, else a new one begins. Raises SettingsError (bounds, route, what Kafka no longer holds), TemporaryError (Kafka
    away at the start), FatalError (another process took the run over).
    """
    if route not in flow.routes:
        raise SettingsError(f"there is no route {route!r}: the flow file has {', '.join(flow.routes) or 'none'}")
    if run_id is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", run_id, re.ASCII):
        raise SettingsError(f"{run_id[:100]!r} is no run id: up to 100 letters, digits, - and _")
    now = int(time.time() * 1000)
    begin, until = parse_bound(from_, now), parse_bound(to, now)
    fixed = all(not isinstance(bound, Moment) or bound.fixed for bound in (begin, until))
    topics = Topics(settings.installation)
    wanted = partitions(settings, topics, flow, route, begin, until)
    check_order(begin, until, now)
    await check_topics(settings, topics, wanted)
    run = run_id or await _unfinished(settings, topics, (route, from_, to), fixed) or _new_id(route)
    async with TransactionalPublisher(settings, f"{settings.installation}.replay.{run}") as publisher:
        # Whoever worked on this run before can no longer write: its state is final now.
        state = (await _stored(settings, topics)).get(run)
        if state is None:
            parts = [
                Part(topic=tp.topic, partition=tp.partition, start=start, end=end, next=start)
                for tp, (start, end) in (await offsets(settings, wanted, begin, until, now)).items()
            ]
            state = Replay(run=run, route=route, begin=from_, until=to, fixed=fixed, parts=parts, started=now, done=not parts)
            if not await _send(publisher, [_record(topics, state)], stop):
                return state
        elif state.route != route:
            raise SettingsError(f"run {run} is one of route {state.route}, not of {route}: leave the run id away to begin a new one")
        log.info("replay", run=state.run, route=route, offsets=state.total, passed=state.passed)
        progress(state)
        if not state.done:
            await _copy(settings, topics, state, publisher, progress, stop)
        return state


async def _copy(
    settings: Settings,
    topics: Topics,
    state: Replay,
    publisher: TransactionalPublisher,
    progress: Callable[[Replay], None],
    stop: asyncio.Event,
) -> None:
    open_ = {part.tp: part for part in state.parts if part.next < part.end}
    consumer = read_committed_consumer(settings)
    try:
        await consumer.start()
        consumer.assign(list(open_))
        for tp, part in open_.items():
            consumer.seek(tp, part.next)
        while open_ and not stop.is_set():
            outputs = []
            for tp, records in (await consumer.getmany(*open_, timeout_ms=200, max_records=BATCH_RECORDS)).items():
                outputs += [out for record in records if record.offset < open_[tp].end and (out := _again(settings, topics, state, record))]
            for tp, part in list(open_.items()):
                part.next = max(part.next, min(await consumer.position(tp), part.end))
                if part.next >= part.end:
                    del open_[tp]
                    consumer.pause(tp)
            state.done = not open_
            if not await _send(publisher, [*outputs, _record(topics, state)], stop):
                state.done = False  # told to stop while Kafka was away: nothing of this batch is in Kafka, the stored state holds
                return
            progress(state)
    finally:
        await close_consumer(consumer)


def _again(settings: Settings, topics: Topics, state: Replay, record: Record) -> Output | None:
    """The record for the bulk lane, or None; counts it."""
    try:
        envelope = Envelope.from_headers(record.headers)
        if envelope.reason in NOT_AGAIN:
            state.skipped += 1
            return None
        if envelope.kind is Kind.HOOK and envelope.position is None:  # its version is its offset: an old body must not become the newest
            envelope = replace(envelope, position=record.offset)
        headers = replace(envelope, reason=Reason.REPLAY, run=state.run, route=state.route).headers()
        bulk = topics.inbound(topics.parse_inbound(record.topic).source, bulk=True)
        output = Output(bulk, record.key, record.value, headers, record.partition)
        batched([output], settings.partitions)
    except (EnvelopeError, PermanentError) as error:
        log.warning("not replayed", topic=record.topic, partition=record.partition, offset=record.offset, reason=str(error))
        state.left_out += 1
        return None
    state.sent += 1
    return output


async def _send(publisher: TransactionalPublisher, outputs: list[Output], stop: asyncio.Event) -> bool:
    """True when Kafka has all of it; False when told to stop before."""
    while True:
        try:
            await publisher.send(outputs)
            return True
        except TemporaryError as error:
            log.warning("replay waits", reason=error.reason)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
        if stop.is_set():
            return False


def _record(topics: Topics, state: Replay) -> Output:
    state.at = int(time.time() * 1000)
    return Output(topics.runs, state.run.encode(), state.model_dump_json().encode())


async def _stored(settings: Settings, topics: Topics) -> dict[str, Replay]:
    """Every replay of the `runs` topic by its id; other runs are not ours."""
    found = {}
    for record in await read_all(settings, topics.runs):
        with suppress(ValueError):
            state = Replay.model_validate_json(record.value or b"")
            found[state.run] = state
    return {run: state for run, state in found.items() if state.kind == "replay"}


async def _unfinished(settings: Settings, topics: Topics, asked: tuple[str, str, str], fixed: bool) -> str | None:
    """The run that a repeated question means; bounds that move with the clock ("-2h", "now") never mean an earlier run."""
    if not fixed:
        return None
    same = [s for s in (await _stored(settings, topics)).values() if (s.route, s.begin, s.until) == asked and not s.done]
    return max(same, key=lambda s: s.at).run if same else None


def _new_id(route: str) -> str:
    return f"replay-{route}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
