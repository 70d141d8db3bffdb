"""The processing agent: parse, merge, map, check, fan out; one hop from in-topic to `writes.<target>`. Calls nobody outside.

What a record means is decided by agents/rules; here chunks become rules' arguments and rules' answers become Kafka records. A rule that
fails for one record makes that record's dead letter (of one route, where only that failed) and nothing else.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, TypeVarTuple

from msgspec import Struct
from msgspec.structs import replace

from agents.applied import caught_up
from agents.asked import Asked
from agents.duplicates import group_key
from agents.gates import HeldRoutes, Swarm, Watch, marks, none_held
from agents.guard import per_record
from agents.inbox import AsLastSeen, delivery_of, read, text_of
from agents.maps import InUse, Maps
from agents.parked import park
from agents.rejections import GatesOf, no_gates
from agents.rules.emission import Step, forced, lacking, next_step, not_found, outcome_of
from agents.rules.identity import OWED, Keys, move, owe, writes
from agents.rules.merge import Lane, RecordState, merge
from agents.rules.message import Message
from agents.rules.plan import Plan
from agents.rules.quality import UNTOLD, Fault, faults_of
from agents.rules.refused import tell
from agents.rules.ways import Way
from agents.rules.writes import encode_write
from agents.states import States
from agents.tables import RECORDS, SEEN, Seen, records_key, seen_key
from agents.tally import Last, Once, Tally, counted, failed
from models.envelope import ALWAYS_EMITS, Envelope, Kind, Reason
from models.errors import PermanentError, SettingsError
from models.flow import Flow
from models.settings import Settings
from models.write import Body, Op, Write
from streams.engine.stage import Chunk, Output, Partition, Record, Result, Stage
from streams.topics import Inbound, Topics

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
STAGE = "process"
WRITE, EMIT, QUERY, READ = Op.WRITE, Step.EMIT, Step.QUERY, Step.READ  # an enum looks its members up in Python
CHANGE, FETCH = Kind.CHANGE, Reason.FETCH
FLOODS = (Reason.SNAPSHOT, Reason.POLL, Reason.REPLAY, Reason.REFILL)
"""Writes these cause go through the bulk lane."""


def process_stage(flow: Flow, settings: Settings, maps: InUse, held: HeldRoutes = none_held, gates: GatesOf = no_gates) -> Stage:
    """The stage that reads every in-topic the flow's routes need. `held`: which of these routes are paused now; `gates`: what targets take.

    A chunk uses the maps that are in use when it begins, to its end.
    """
    topics, states, missed = Topics(settings.installation), States(), set[int | str]((0,))
    watch = Watch(flow, topics)
    unknown = [source for source in maps.now.sources if source.partition("/")[0] not in flow.connections]
    if unknown:
        raise SettingsError(f"routes read from {', '.join(unknown)}, which the flow does not connect to: add the connection")

    async def handle(chunk: Chunk, partition: Partition) -> Result:
        work = Processing(chunk, partition, topics, maps.now, states)
        if (version := work.load()) not in missed:
            # A worker that is ahead of us had the partition: what its maps follow, ours would pass over.
            await caught_up(maps, partition)
            missed.add(version)  # if we still have not got it, a route was taken out of the flow since
            work = Processing(chunk, partition, topics, maps.now, states)
        work.ways, work.gated = gates(work.ways), watch.gated
        work.paused = watch.paused(await held([way.route for way in work.ways], partition))
        result = work.run()
        if work.strange - missed:  # rows that were read by other maps: those of ours that are older would pass their new fields over
            await caught_up(maps, partition)
            missed.update(work.strange)
            return await handle(chunk, partition)
        if work.swarm and (why := watch.passed(work.swarm, partition.share(), work.now())):
            work = work.anew()
            work.paused |= why.keys()
            result = watch.hold(work.run(), why)
        counted(work.inbound, work.outcomes, work.emitted, work.tally)
        return result

    return Stage(
        name=STAGE,
        live=[topics.inbound(source) for source in maps.now.sources],
        bulk=[topics.inbound(source, bulk=True) for source in maps.now.sources],
        handler=handle,
        tables=(RECORDS, SEEN),
    )


Went = Literal["passed", "joined", "gone"]
"""What became of an emission: written, handed to its group of duplicates, or only taken back."""
_GROUP = "duplicates|"
"""Before a route's name, in a state's keys: the groups that the record stood in. No route's name holds the sign."""


class _Held(Struct):
    """A record id of the chunk: its key in the table, and what is known of it."""

    id: str
    key: bytes
    state: RecordState
    touched: bool = False


class Processing:
    """One chunk's work. Each record is seen once; states are read together and written once per record id.

    Nothing of it counts before `run` returns. So states are changed in place; should a merge fail half-way (it raises nothing), all is
    thrown away and done again, `careful`: each merge into a copy.
    """

    def __init__(self, chunk: Chunk, partition: Partition, topics: Topics, maps: Maps, states: States, careful: bool = False) -> None:
        self.chunk, self.partition, self.topics, self.maps, self.known, self.careful = chunk, partition, topics, maps, states, careful
        self.inbound: Inbound = topics.parse_inbound(chunk.topic)
        self.source = self.inbound.source
        self.lane: Lane = "bulk" if self.inbound.bulk else "live"
        self.plan: Plan | None = maps.plan(self.source)
        self.ways = maps.ways(self.source)
        self.redrive_to = topics.inbound(self.source)
        self.outputs: list[Output] = []
        self.held: dict[bytes, _Held] = {}  # by the key of the in-topic
        self.merging = False
        self.seen: dict[bytes, Seen] = {}
        self.noted: dict[bytes, None] = {}
        self.asked = Asked(topics.fetch(self.inbound.connection), self.inbound.sobject, self.plan.print if self.plan else "")
        self.outcomes: Counter[str] = Counter()
        self.emitted: Counter[tuple[str, str]] = Counter()
        self.paused: frozenset[str] = frozenset()
        self.strange = set[str]()
        self.parked: dict[tuple[str, str], list[str]] = {}
        self.tally = Tally(STAGE, self.source)
        self.faults: tuple[Fault, ...] = ()
        self.once = Once(self.tally)
        self.gated, self.swarm = frozenset[str](), Swarm()
        self._through: dict[Lane, int] | None = None

    def run(self) -> Result:
        """Outputs and state of the chunk."""
        if self.plan is None:  # a route was taken out of the flow while its topic still held records
            self.outcomes["unrouted"] += len(self.chunk.records)
        else:
            if not self.held:
                self.load()
            for record in self.chunk.records:
                outcome = self._guarded(record, None, self._one, record, self.plan)
                if self.merging:
                    again = self.anew(careful=True)
                    again.strange, self.swarm, self.tally = self.strange, again.swarm, again.tally
                    self.outcomes, self.emitted = again.outcomes, again.emitted
                    return again.run()
                self.outcomes[outcome or "dead"] += 1
        return self.result()

    def anew(self, *, careful: bool = False) -> "Processing":
        """The same chunk from its beginning, by the same maps, gates and pauses."""
        again = Processing(self.chunk, self.partition, self.topics, self.maps, self.known, careful)
        again.ways, again.paused, again.gated = self.ways, self.paused, self.gated
        return again

    def result(self) -> Result:
        """What was made so far."""
        self.outputs += self.asked.outputs()
        state: dict[str, list[tuple[bytes, bytes | None]]] = {}
        if touched := {held.key: held.state for held in self.held.values() if held.touched}:
            state[RECORDS] = [(key, self.known.put(known)) for key, known in touched.items()]
        if self.parked:
            changes, told = park(self.partition, self.topics, self.source, self.parked)
            state[RECORDS] = [*state.get(RECORDS, ()), *changes]
            self.outputs += told
        changes, results = self.tally.close(RECORDS, self.partition, self.topics, self.now())
        if results:
            state[RECORDS] = [*state.get(RECORDS, ()), *changes]
            self.outputs = [*self.once.left(self.outputs), *results]
        if self.noted:
            state[SEEN] = [(key, self.seen[key].encode()) for key in self.noted]
        return Result(self.outputs, state)

    def now(self) -> int:
        """Epoch ms by Kafka's clock; by ours where nothing was read from Kafka."""
        return self.chunk.records[0].timestamp if self.chunk.records else int(time.time() * 1000)

    def load(self) -> int:
        """Read the states. If one was merged by later maps than ours: the version of those, else 0."""
        records = self.chunk.records
        ids = {record.key: text_of(record.key) for record in records if record.key}
        keys = {records_key(self.source, record_id): record_id for record_id in ids.values()}
        found = zip(keys.items(), self.partition.store(RECORDS).get_many(list(keys)), strict=True)
        held = {record_id: _Held(record_id, key, self.known.pop(raw, record_id)) for (key, record_id), raw in found}
        self.held = {key: held[record_id] for key, record_id in ids.items()}
        if self.plan is not None and (self.plan.hook or self.plan.event):
            slots = list({seen_key(self.source, name) for record in records if (name := delivery_of(record))})
            for slot, raw in zip(slots, self.partition.store(SEEN).get_many(slots), strict=True):
                self.seen[slot] = Seen.decode(raw)
        met = max((held.state.maps for held in self.held.values()), default=0)
        return met if self.plan is not None and met > self.plan.version else 0

    def _one(self, record: Record, plan: Plan) -> str:
        """One record: its outcome. Raises what makes it a dead letter, before anything of it is kept."""
        envelope, message = read(record, plan)
        if envelope.plan is not None and envelope.plan != plan.print:
            self.strange.add(envelope.plan)
        filling = envelope.plan is not None and envelope.reason is Reason.POLL  # a new field, which is no news of the record
        if (plan.hook or plan.event) and envelope.run is None and envelope.route is None and self._repeated(record):
            return "duplicate"
        if plan.event:
            return self._every(record, envelope, message)
        held = self.held[record.key or b""]
        record_id, state = held.id, held.state.fork() if self.careful else held.state
        asked = envelope.gone is not None and envelope.reason is FETCH
        nowhere = asked and not state.deleted and not any(keys.last or keys.left for keys in state.keys.values())
        self.merging = not self.careful
        merged = merge(state, message, plan, self.lane, record.offset)
        self.merging = False
        if merged.moved or merged.advanced:
            state.received = envelope.received
        held.state, held.touched = state, True
        incomplete = merged.late
        after = (envelope.epoch, envelope.position) if envelope.kind is CHANGE and envelope.position is not None else None
        for way in self.ways:
            step = next_step(way, state, merged, message, envelope)
            if merged.redelivery:
                for name in (way.route, _GROUP + way.route):
                    if (keys := state.keys.get(name)) and keys.left:
                        state.keys[name] = owe(keys)
            if step is EMIT and way.route in self.paused:
                found = marks(way, state, merged.changed) if way.route in self.gated and not filling else []
                self.parked.setdefault((way.route, record_id), []).extend(found)
            elif step is EMIT:
                if way.route in self.gated and not filling:
                    self.swarm.update((way.route, mark) for mark in marks(way, state, merged.changed))
                self._told(record, way, envelope, record_id, self._emit, way, state, envelope, record_id, record.offset)
            elif step is QUERY:
                told = envelope if forced(way, envelope) else None
                self.asked.add(record_id, told, None if told else after)
            elif step is READ:
                incomplete = True
        if nowhere:
            self._guarded(record, None, not_found, record_id, plan.sobject)
        if incomplete:
            missing = [path for path in message.lacks if path not in state.values]
            # A row that was read by another plan (a map was changed meanwhile) is asked for again.
            if missing and envelope.reason is FETCH and envelope.plan in (None, plan.print):
                self._guarded(record, None, lacking, missing, plan.sobject)
            else:
                self.asked.add(record_id, None, after)
        return outcome_of(merged, incomplete)

    def again(self, id: str, raw: bytes, route: str, run: str) -> bool:
        """A record as it is known, once more to one route; False where it lacks something: then it is asked for, and comes by itself."""
        way = next((way for way in self.ways if way.route == route), None)
        if self.plan is None or way is None:
            return True
        held = _Held(id, records_key(self.source, id), self.known.pop(raw, id))
        self.held[id.encode()] = held
        state, before = held.state, held.state.keys.copy()
        tell(state, way)
        kind = Kind.HOOK if self.plan.hook else Kind.ROW
        now = int(time.time() * 1000)
        envelope = Envelope(kind=kind, reason=Reason.REFILL, received=now, run=run, route=route, position=0 if self.plan.hook else None)
        if not (state.deleted or self.plan.hook or state.knows(way.fields)):
            self.asked.add(id, envelope, None)
            return False
        if not state.deleted or any(keys.last or keys.left for keys in before.values()):
            last = AsLastSeen(self.redrive_to, self.partition.number, max(state.live, state.bulk), id, envelope)
            self._told(last, way, envelope, id, self._emit, way, state, envelope, id, OWED)
            held.touched = state.keys != before
        return True

    def _every(self, record: Record, envelope: Envelope, message: Message) -> str:
        """A platform event: every one is emitted, none is merged or kept. Several under one target key: the one published last speaks."""
        emitted = self.emitted.total()
        for way in self.ways:
            if envelope.route in (None, way.route):
                name = text_of(record.key)
                self._told(record, way, envelope, name, self._emit_event, way, message, envelope, name)
        return "changed" if self.emitted.total() > emitted else "unchanged"

    def _told(self, record: Record, way: Way, envelope: Envelope, record_id: str, emit: Callable[[*Ts], Went], *args: *Ts) -> None:
        """Emit to one route, and count what becomes of the record: one that goes, or that the filter keeps out, is none for quality."""
        self.faults = UNTOLD
        went = self._guarded(record, way.route, emit, *args)
        if went is None:
            failed(self.tally.of(envelope.run, way.route), record_id, self.faults)
        elif went == "passed":
            result = self.tally.of(envelope.run, way.route)
            result.came += 1
            result.passed += 1

    def _shape(self, way: Way, values: Mapping[str, Any], record_id: str, reason: Reason) -> tuple[str, Body] | None:
        try:
            return way.shape(values, record_id, asks=reason is not Reason.REDRIVE)
        except PermanentError as error:
            self.faults = faults_of(error)
            raise

    def _emit_event(self, way: Way, message: Message, envelope: Envelope, name: str) -> Went:
        if (shaped := self._shape(way, message.values, name, envelope.reason)) is None:
            return "gone"
        told = RecordState(position=message.position, committed=message.committed, received=envelope.received)
        write = self._write(way, told, envelope, name if way.key is None else shaped[0], WRITE, *shaped)
        write = replace(write, revision=message.committed or 1)
        topic = self.topics.writes(way.target, bulk=envelope.reason in FLOODS)
        self.outputs.append(Output(topic, write.kafka_key, encode_write(write)))
        self.emitted[way.route, way.target] += 1
        return "passed"

    def _guarded(self, record: Record, route: str | None, rule: Callable[[*Ts], T], *args: *Ts) -> T | None:
        return per_record(STAGE, record, rule, *args, topics=self.topics, redrive_to=self.redrive_to, route=route, dead=self.outputs)

    def _repeated(self, record: Record) -> bool:
        """A delivery that was seen before, at another offset: the sender repeated it."""
        delivery = delivery_of(record)
        if not delivery:
            return False
        slot = seen_key(self.source, delivery)
        first = self.seen[slot].first(delivery, record.offset, record.timestamp)
        if first == record.offset:
            self.noted[slot] = None
        return first < record.offset

    def _emit(self, way: Way, state: RecordState, envelope: Envelope, record_id: str, offset: int) -> Went:
        shaped = None if state.deleted else self._shape(way, state.values, record_id, envelope.reason)
        write = self._write(way, state, envelope, record_id, WRITE, *shaped) if shaped else None
        held = state.keys.get(way.route)
        if write is not None and held is not None and held.last == write.key and not held.left:  # as nearly always
            out = [write]
        else:
            keys = Keys(held.last, held.left) if held else Keys()
            released = move(keys, shaped[0] if shaped else None, self.lane, offset, self._committed() if keys.left else _NONE)
            gone = [self._write(way, state, envelope, record_id, Op.RELEASE, key) for key in released]
            out, held = writes(write, gone, renames=way.renames), keys
        topic = self.topics.writes(way.target, bulk=envelope.reason in FLOODS)
        made = [Output(topic, each.kafka_key, encode_write(each)) for each in out]
        grouped = way.unique is not None or _GROUP + way.route in state.keys
        joins = grouped and self._compare(way, state, envelope, record_id, write, offset, made)
        if way.once:
            last = Last(len(self.outputs), made[0], envelope.reason in ALWAYS_EMITS, envelope.run) if write and len(made) == 1 else None
            self.emitted[way.route, way.target] -= self.once.replaces(way.route, record_id, last, joins=joins)
        self.outputs += made
        state.keys[way.route] = held
        self.emitted[way.route, way.target] += len(out)
        return "gone" if write is None else "joined" if joins else "passed"

    def _compare(
        self, way: Way, state: RecordState, envelope: Envelope, record_id: str, write: Write | None, offset: int, made: list[Output]
    ) -> bool:
        """A record with a value that is unique joins its group, which decides; it leaves that of a value it had. Whether it joins."""
        name = _GROUP + way.route
        held = state.keys.get(name)
        group = way.unique.group(write.body or {}) if write and way.unique else None
        if group is None and held is None:
            return False
        topic, keys = self.topics.duplicates(bulk=envelope.reason in FLOODS), Keys(held.last, held.left) if held else Keys()
        if group is not None:
            made[-1] = replace(made[-1], topic=topic, key=group_key(way.target, way.route, group))
        for left in move(keys, group, self.lane, offset, self._committed() if keys.left else _NONE):
            leave = self._write(way, state, envelope, record_id, Op.RELEASE, write.key if write else "")
            made.append(Output(topic, group_key(way.target, way.route, left), encode_write(leave)))
        state.keys[name] = keys
        return group is not None

    def _write(self, way: Way, state: RecordState, envelope: Envelope, record_id: str, op: Op, key: str, body: Body | None = None) -> Write:
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
            reason=envelope.reason,
            run=envelope.run,
            version=way.version,
            keeps=way.map.keeps,
            always=envelope.reason in ALWAYS_EMITS,
            position=state.position,
            committed=state.committed,
            received=state.received,
        )

    def _committed(self) -> dict[Lane, int]:
        if self._through is None:
            committed = self.partition.committed
            self._through = {
                "live": committed(self.topics.inbound(self.source)),
                "bulk": committed(self.topics.inbound(self.source, bulk=True)),
            }
        return self._through


_NONE: dict[Lane, int] = {"live": 0, "bulk": 0}
