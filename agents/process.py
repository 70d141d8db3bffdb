"""The processing agent: parse, merge, map, check, fan out; one hop from in-topic to `writes.<target>`. Calls nobody outside.

What a record means is decided by agents/rules; here chunks become rules' arguments and rules' answers become Kafka records. A rule that
fails for one record makes that record's dead letter (of one route, where only that failed) and nothing else.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from agents.guard import per_record
from agents.maps import Maps
from agents.rules.emission import Step, forced, next_step
from agents.rules.identity import Keys, move, owe, writes
from agents.rules.merge import Lane, Merged, RecordState, merge
from agents.rules.message import Message, from_event, from_hook, from_platform, from_row
from agents.rules.plan import Plan
from agents.rules.ways import Way
from agents.rules.writes import encode_write
from agents.tables import RECORDS, SEEN, Seen, records_key, seen_key
from models.change_event import ChangeEventError, parse
from models.envelope import ALWAYS_EMITS, Envelope, EnvelopeError, Headers, Kind, Reason
from models.errors import PermanentError, SettingsError
from models.flow import Flow
from models.platform_event import parse_platform_event
from models.settings import Settings
from models.write import Body, Op, Write
from streams import metrics
from streams.engine.stage import Chunk, Output, Partition, Record, Result, Stage
from streams.topics import Inbound, Topics

STAGE = "process"
FLOODS = frozenset({Reason.SNAPSHOT, Reason.POLL, Reason.REPLAY})
"""Writes these cause go through the bulk lane."""


def process_stage(flow: Flow, settings: Settings, maps: Maps) -> Stage:
    """The stage that reads every in-topic the flow's routes need."""
    topics = Topics(settings.installation)
    unknown = [source for source in maps.sources if source.partition("/")[0] not in flow.connections]
    if unknown:
        raise SettingsError(f"routes read from {', '.join(unknown)}, which the flow does not connect to: add the connection")

    async def handle(chunk: Chunk, partition: Partition) -> Result:
        return _Chunk(chunk, partition, topics, maps).run()

    return Stage(
        name=STAGE,
        live=[topics.inbound(source) for source in maps.sources],
        bulk=[topics.inbound(source, bulk=True) for source in maps.sources],
        handler=handle,
        tables=(RECORDS, SEEN),
    )


class _Chunk:
    """One chunk's work. Each record is seen once; states are read together and written once per record id."""

    def __init__(self, chunk: Chunk, partition: Partition, topics: Topics, maps: Maps) -> None:
        self.chunk, self.partition, self.topics = chunk, partition, topics
        self.inbound: Inbound = topics.parse_inbound(chunk.topic)
        self.source = self.inbound.source
        self.lane: Lane = "bulk" if self.inbound.bulk else "live"
        self.plan: Plan | None = maps.plan(self.source)
        self.ways = maps.ways(self.source)
        self.redrive_to = topics.inbound(self.source)
        self.outputs: list[Output] = []
        self.states: dict[bytes, RecordState] = {}
        self.seen: dict[bytes, Seen] = {}
        self.touched: dict[bytes, None] = {}
        self.noted: dict[bytes, None] = {}
        self.asked: set[tuple[str, tuple[tuple[str, bytes], ...]]] = set()
        self.outcomes: Counter[str] = Counter()
        self.emitted: Counter[tuple[str, str]] = Counter()
        self._through: dict[Lane, int] | None = None

    def run(self) -> Result:
        """Outputs and state of the chunk."""
        if self.plan is None:  # a route was taken out of the flow while its topic still held records
            self.outcomes["unrouted"] += len(self.chunk.records)
        else:
            self._load(self.chunk.records)
            for record in self.chunk.records:
                dead: list[Output] = []
                outcome = per_record(
                    STAGE, record, partial(self._one, record, self.plan), topics=self.topics, redrive_to=self.redrive_to, dead=dead
                )
                self.outputs += dead
                self.outcomes[outcome or "dead"] += 1
        for name, count in self.outcomes.items():
            metrics.PROCESSED.labels(self.inbound.connection, self.inbound.sobject, name).inc(count)
        for (route, target), count in self.emitted.items():
            metrics.EMITTED.labels(route, target).inc(count)
        state: dict[str, list[tuple[bytes, bytes | None]]] = {}
        if self.touched:
            state[RECORDS] = [(key, self.states[key].encode()) for key in self.touched]
        if self.noted:
            state[SEEN] = [(key, self.seen[key].encode()) for key in self.noted]
        return Result(self.outputs, state)

    def _load(self, records: Any) -> None:
        ids = {record.key: _text(record.key) for record in records if record.key}
        keys = {records_key(self.source, record_id): record_id for record_id in ids.values()}
        for (key, record_id), raw in zip(keys.items(), self.partition.store(RECORDS).get_many(list(keys)), strict=True):
            self.states[key] = RecordState.decode(raw, record_id)
        if self.plan is not None and (self.plan.hook or self.plan.event):
            slots = list({seen_key(self.source, _delivery(record)) for record in records if _delivery(record)})
            for slot, raw in zip(slots, self.partition.store(SEEN).get_many(slots), strict=True):
                self.seen[slot] = Seen.decode(raw)

    def _one(self, record: Record, plan: Plan) -> str:
        """One record: its outcome. Raises what makes it a dead letter, before anything of it is kept."""
        envelope, message = read(record, plan)
        if (plan.hook or plan.event) and envelope.run is None and envelope.route is None and self._repeated(record):
            return "duplicate"
        if plan.event:
            return self._every(record, envelope, message)
        record_id = _text(record.key)
        key = records_key(self.source, record_id)
        state = self.states[key].fork()
        asked = envelope.gone is not None and envelope.reason is Reason.FETCH
        nowhere = asked and not state.deleted and not any(keys.last or keys.left for keys in state.keys.values())
        merged = merge(state, message, plan, self.lane, record.offset)
        if merged.moved or merged.advanced:
            state.received = envelope.received
        self.states[key] = state
        self.touched[key] = None
        incomplete = merged.late
        for way in self.ways:
            step = next_step(way, state, merged, message, envelope)
            if merged.redelivery and (keys := state.keys.get(way.route)) and keys.left:
                state.keys[way.route] = owe(keys)
            if step is Step.EMIT:
                self._guarded(record, partial(self._emit, way, state, envelope, record), way.route)
            elif step is Step.QUERY:
                self._ask(record_id, plan, envelope if forced(way, envelope) else None)
            elif step is Step.READ:
                incomplete = True
        if nowhere:
            self._guarded(record, partial(_nowhere, record_id, plan.sobject))
        if incomplete:
            missing = [path for path in message.lacks if path not in state.values]
            if missing and envelope.reason is Reason.FETCH:
                self._guarded(record, partial(_lacking, missing, plan.sobject))
            else:
                self._ask(record_id, plan, None)
        return _outcome(merged, incomplete)

    def _every(self, record: Record, envelope: Envelope, message: Message) -> str:
        """A platform event: every one is emitted, none is merged or kept. Several under one target key: the one published last speaks."""
        emitted = self.emitted.total()
        for way in self.ways:
            if envelope.route in (None, way.route):
                self._guarded(record, partial(self._emit_event, way, message, envelope, _text(record.key)), way.route)
        return "changed" if self.emitted.total() > emitted else "unchanged"

    def _emit_event(self, way: Way, message: Message, envelope: Envelope, name: str) -> None:
        if (shaped := way.shape(message.values, name)) is None:
            return
        write = Write(
            op=Op.WRITE,
            route=way.route,
            object=way.object,
            key=shaped[0],
            source=f"{self.source}/{name if way.key is None else shaped[0]}",
            order=way.order,
            revision=message.committed or 1,
            body=shaped[1],
            on_delete=way.on_delete,
            reason=envelope.reason.value,
            run=envelope.run,
            always=envelope.reason in ALWAYS_EMITS,
            position=message.position,
            committed=message.committed,
            received=envelope.received,
        )
        topic = self.topics.writes(way.target, bulk=envelope.reason in FLOODS)
        self.outputs.append(Output(topic, write.kafka_key, encode_write(write)))
        self.emitted[way.route, way.target] += 1

    def _guarded(self, record: Record, rule: Callable[[], None], route: str | None = None) -> None:
        dead: list[Output] = []
        per_record(STAGE, record, rule, topics=self.topics, redrive_to=self.redrive_to, route=route, dead=dead)
        self.outputs += dead

    def _repeated(self, record: Record) -> bool:
        """A delivery that was seen before, at another offset: the sender repeated it."""
        delivery = _delivery(record)
        if not delivery:
            return False
        slot = seen_key(self.source, delivery)
        first = self.seen[slot].first(delivery, record.offset, record.timestamp)
        if first == record.offset:
            self.noted[slot] = None
        return first < record.offset

    def _emit(self, way: Way, state: RecordState, envelope: Envelope, record: Record) -> None:
        record_id = _text(record.key)
        shaped = None if state.deleted else way.shape(state.values, record_id)
        held = state.keys.get(way.route)
        keys = Keys(held.last, held.left) if held else Keys()
        released = move(keys, shaped[0] if shaped else None, self.lane, record.offset, self._committed() if keys.left else _NONE)

        def make(op: Op, key: str, body: Body | None) -> Write:
            return Write(
                op=op,
                route=way.route,
                object=way.object,
                key=key,
                source=f"{self.source}/{record_id}",
                order=way.order,
                revision=state.revision,
                body=body,
                on_delete=way.on_delete,
                reason=envelope.reason.value,
                run=envelope.run,
                always=envelope.reason in ALWAYS_EMITS,
                position=state.position,
                committed=state.committed,
                received=state.received,
            )

        write = make(Op.WRITE, *shaped) if shaped else None
        gone = [make(Op.RELEASE, key, None) for key in released]
        topic = self.topics.writes(way.target, bulk=envelope.reason in FLOODS)
        out = [Output(topic, each.kafka_key, encode_write(each)) for each in writes(write, gone, renames=way.renames)]
        state.keys[way.route] = keys
        self.outputs += out
        self.emitted[way.route, way.target] += len(out)

    def _ask(self, record_id: str, plan: Plan, envelope: Envelope | None) -> None:
        """One request per record and chunk; with `envelope` it carries why the row shall be emitted."""
        headers: Headers = []
        if envelope is not None:
            told = (("reason", envelope.reason.value), ("run", envelope.run), ("route", envelope.route))
            headers = [(name, value.encode()) for name, value in told if value is not None]
        if (mark := (record_id, tuple(headers))) not in self.asked:
            self.asked.add(mark)
            value = orjson.dumps({"sobject": plan.sobject, "id": record_id})
            self.outputs.append(Output(self.topics.fetch(self.inbound.connection), record_id.encode(), value, headers))

    def _committed(self) -> dict[Lane, int]:
        if self._through is None:
            committed = self.partition.committed
            self._through = {
                "live": committed(self.topics.inbound(self.source)),
                "bulk": committed(self.topics.inbound(self.source, bulk=True)),
            }
        return self._through


_NONE: dict[Lane, int] = {"live": 0, "bulk": 0}


def read(record: Record, plan: Plan) -> tuple[Envelope, Message]:
    """Headers and news of one record of an in-topic. Raises PermanentError."""
    try:
        envelope = Envelope.from_headers(record.headers)
    except EnvelopeError as error:
        raise PermanentError(str(error)) from None
    if not record.key:
        raise PermanentError("the record has no key: this record was not written by Headrace; redrive it from its source")
    record_id = _text(record.key)
    if record.value is None:
        raise PermanentError("the record has no value: redrive it from its source")
    try:
        found = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise PermanentError(f"the value is not JSON ({error.msg} at character {error.pos}): see the original bytes") from None
    if (envelope.kind is Kind.HOOK) != plan.hook or (envelope.kind is Kind.EVENT) != plan.event:
        raise PermanentError(
            f"a record of kind {envelope.kind} in the topic of {plan.sobject or 'a webhook'}: it was put there by somebody else"
        )
    if envelope.kind is Kind.ROW:
        return envelope, from_row(found, envelope, plan)
    if envelope.kind is Kind.HOOK:
        return envelope, from_hook(found, envelope, plan, record.offset)
    if envelope.kind is Kind.EVENT:
        return envelope, _platform(found, plan)
    try:
        event = parse(found)
    except ChangeEventError as error:
        raise PermanentError(str(error)) from None
    return envelope, from_event(event, record_id, plan, envelope.epoch)


def _platform(found: Any, plan: Plan) -> Message:
    try:
        return from_platform(parse_platform_event(found), plan)
    except ChangeEventError as error:
        raise PermanentError(str(error)) from None


def _nowhere(record_id: str, sobject: str) -> None:
    """An event told of a record that no target holds and that Salesforce does not show: nothing else would tell of it."""
    raise PermanentError(
        f"{sobject} {record_id} is not found in Salesforce, not in the recycle bin either: it was erased before it could be read, or the "
        "connection's user may not see it; give the user View All Data and redrive",
        field="Id",
    )


def _lacking(missing: list[str], sobject: str) -> None:
    raise PermanentError(
        f"the row read for {sobject} does not hold {', '.join(missing)}, which maps or filters need: give the user the right to see "
        "the field, or take it out of the map",
        field=missing[0],
    )


def _outcome(merged: Merged, incomplete: bool) -> str:
    if merged.redelivery:
        return "redelivered"
    if incomplete:
        return "incomplete"
    return "changed" if merged.changed or merged.moved else "unchanged"


def _text(raw: bytes | None) -> str:
    try:
        return (raw or b"").decode()
    except UnicodeDecodeError:
        return (raw or b"").decode(errors="backslashreplace")


def _delivery(record: Record) -> str:
    found = dict(record.headers)
    raw, index = found.get("delivery"), found.get("index")
    return f"{_text(raw)}|{_text(index)}" if raw else ""
