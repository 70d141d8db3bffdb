"""One writer agent per target: decides what the target is to be told, tells it in batches, and records what became of it.

What it decides is in agents/rules/delivery.py, what an error means in agents/guard.py, what goes over the wire in agents/targets. It holds
nothing between chunks but the target: its state is the table `delivered`, its acknowledgement the chunk's transaction.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog
from msgspec.structs import replace

from agents.anew import anew, in_topic_source
from agents.applied import Applied, Shapes
from agents.calls import Calls
from agents.guard import Guard, each_record, split
from agents.rejections import Rejections
from agents.rules.delivery import Decision, Delivered, Lane, apply, outdated
from agents.rules.takes import Refusal
from agents.rules.writes import NULL, WireWrite, decode_write, encode_write, read_json
from agents.targets.base import Effect, TargetLike
from models.envelope import Reason
from models.errors import HeadraceError, PermanentError, TemporaryError
from models.flow import Flow, is_event
from models.settings import Settings
from models.write import Outcome, WriteResult, at_path
from streams import metrics
from streams.engine.stage import Changes, Chunk, Output, Partition, Record, Result, Stage
from streams.letters import dead_letter_output
from streams.topics import Topics

log = structlog.get_logger()

STAGE = "write"
TABLE = "delivered"
BULK_RECORDS = 500
LARGE, LARGEST_STATE = 200_000, 900_000
"""Bytes of a write from which the size of its state is looked at, and the most it may have (Kafka's limit is 1 MB a record)."""
WATCHED = ("live", "fetch")
"""Reasons whose way from the source counts as latency; what comes later on purpose would hide it."""


OtherRoutes = Callable[[float], Awaitable[frozenset[str]]]
HEARD_SECONDS, HOLD_SECONDS = 30.0, 2.0


async def _nowhere(_seconds: float) -> frozenset[str]:
    return frozenset()


def writer_stage(
    name: str,
    target: TargetLike,
    flow: Flow,
    settings: Settings,
    maps: Shapes,
    *,
    guard: Guard | None = None,
    elsewhere: OtherRoutes = _nowhere,
    held: Callable[[], str] = str,
    rejections: Rejections | None = None,
) -> Stage:
    """The stage that writes to one target. The target is started at the first chunk.

    elsewhere   routes of the other workers, as heard at most so many seconds ago: a write of one of them waits
    held        why people do not want the target to be called now, "" when it may be
    rejections  learns from what the target refuses and takes
    """
    topics = Topics(settings.installation)
    writer = Writer(name, target, flow, settings, maps, guard or Guard(STAGE, name, held=held), elsewhere, rejections)
    scarce = target.requests_per_second is not None  # then calls are filled by several partitions (calls.py), and none of them waits long
    return Stage(
        name=f"write-{name}",
        word=STAGE,
        live=[topics.writes(name)],
        bulk=[topics.writes(name, bulk=True)],
        handler=writer.handle,
        tables=[TABLE],
        live_records=min(target.batch_records, 1000),
        bulk_records=max(1, target.batch_records // 4) if scarce else min(target.batch_records, BULK_RECORDS),
        max_bytes=target.batch_bytes,
        bulk_chunks=8 if scarce else 1,  # two calls' worth
        depth=1 if scarce else 2,  # what comes while a call waits for its turn goes into the next one, all of it
    )


@dataclass(slots=True)
class Key:
    """One target key within a chunk: its state, the last record that asked for a call, and whether one must be made."""

    raw: bytes | None
    state: Delivered
    record: Record | None = None
    write: WireWrite | None = None
    decision: Decision | None = None
    forced: bool = False


@dataclass(slots=True)
class Work:
    """What a chunk becomes. `waited`: by route and where from, the seconds of those written."""

    keys: dict[bytes, Key] = field(default_factory=dict)
    dead: list[Output] = field(default_factory=list)
    forwards: list[Output] = field(default_factory=list)
    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    waited: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Item:
    """One effect and where it came from."""

    effect: Effect
    key: Key
    record: Record
    write: WireWrite
    bytes: int


class Writer:
    """Handler of one target's stage; see `handle`."""

    def __init__(
        self,
        name: str,
        target: TargetLike,
        flow: Flow,
        settings: Settings,
        maps: Shapes,
        guard: Guard,
        elsewhere: OtherRoutes = _nowhere,
        rejections: Rejections | None = None,
    ) -> None:
        self.name, self.target, self.guard, self._elsewhere, self._rejections = name, target, guard, elsewhere, rejections
        self._flow = flow
        self._topics = Topics(settings.installation)
        self._routes = frozenset(route for route, what in flow.routes.items() if what.to == name)
        self._calls = Calls(name, target, partial(maps.columns, name), guard, settings.drain_seconds * 0.8)
        self._applied = Applied(name, self._routes, maps, guard, self._calls.extend)
        self._prefix = f"{name}|".encode()

    async def handle(self, chunk: Chunk, partition: Partition) -> Result:
        """Decide for every record, call the target for what is left, give state, dead letters and forwarded writes for one transaction."""
        work = Work()
        decoded = list(self._decode(chunk, work))
        await self._hold({write.route for _, write in decoded} - self._routes, partition)
        writes = [(record, write) for record, write in decoded if write.route in self._routes]
        if gone := len(decoded) - len(writes):
            work.outcomes["", Outcome.STALE] += gone  # of routes that the flow no longer has
        self._load(work, writes, partition)
        held = ((held.route, held.version) for key in work.keys.values() for held in key.state.held)
        await self._applied.reach({*held, *((write.route, write.version) for _, write in writes)}, partition)
        speaking = await self._speaking(work, partition)
        lane = self._topics.lane(chunk.topic)
        for record, write in writes:
            key = work.keys[record.key or b""]
            if key.decision is not None and not self.target.compares:
                key.state.may_hold(key.decision.body)
            image = key.state.image
            refused = self._refused(work, key, record, write, lane)
            self._decide(work, key, record, write, apply(key.state, write, lane, record.offset, routes=speaking, refused=refused))
            if write.then is not None:
                then = replace(write.then.whole(), left=read_json(image))
                work.forwards.append(Output(self._topics.writes(self.name, bulk=lane == "bulk"), then.kafka_key, encode_write(then)))
        if items := list(self._items(work)):
            await self._calls.start(partition)
            for batch in self._batches(items):
                await self._send(batch, partition, work, live=lane == "live")
        self.guard.check(partition)
        for (route, outcome), count in work.outcomes.items():
            metrics.WRITTEN.labels(self.name, route, outcome.value).inc(count)
        for (route, since), seconds in work.waited.items():
            metrics.observe_all(metrics.LATENCY.labels(route, self.name, since), seconds)
        state: Changes = [(self._prefix + key, held.state.encode()) for key, held in work.keys.items()]
        return Result([*work.dead, *work.forwards], {TABLE: state} if state else {})

    async def close(self) -> None:
        """Close the target's connections."""
        await self._calls.close()
        await self.target.close()

    def _decode(self, chunk: Chunk, work: Work) -> Iterator[tuple[Record, WireWrite]]:
        for record, write in each_record(STAGE, chunk.records, self._read, topics=self._topics, redrive_to=chunk.topic, dead=work.dead):
            if write is None:
                work.outcomes["", Outcome.DEAD] += 1
            else:
                yield record, write

    async def _hold(self, strange: set[str], partition: Partition) -> None:
        """Wait as long as another worker has one of these routes: ours is about to be started anew with the same flow."""
        while strange and (theirs := strange & await self._heard(0.0, partition)):
            names = ", ".join(sorted(theirs))
            log.warning("writes wait for this worker to be started with the flow that others have", target=self.name, routes=names)
            await self.guard.wait(partition, HOLD_SECONDS, f"{self.name}: this worker's flow lacks {names}, which another worker's has")

    def _refused(self, work: Work, key: Key, record: Record, write: WireWrite, lane: Lane) -> bool:
        """Whether a write was shaped by an older map; then its source record is on its way to be shaped anew."""
        if not outdated(key.state, write, self._applied.version(write.route)):
            return False
        event = is_event(in_topic_source(write.source, self._flow)[0])
        if event and not outdated(key.state, write, 0):
            return False
        if event:
            error = PermanentError(
                f"an event shaped by version {write.version} of the map came after one of a later version under the same key: "
                f"send it again by `headrace replay {write.route} --from` a time before it"
            )
            self._dead(work, record, error, write.source, write.route, write.revision)
            return True
        reason, run = (Reason.REPLAY if lane == "bulk" else Reason.REDRIVE), f"map-{write.route}-{self._applied.version(write.route)}"
        back = anew(write.source, write.route, self._flow, self._topics, reason=reason, run=run, bulk=lane == "bulk")
        work.forwards.append(back)
        work.outcomes[write.route, Outcome.RESHAPED] += 1
        return True

    async def _speaking(self, work: Work, partition: Partition) -> frozenset[str]:
        """Routes whose records may speak for a key."""
        if all(held.route in self._routes for key in work.keys.values() for held in key.state.held):
            return self._routes
        return self._routes | await self._heard(HEARD_SECONDS, partition)

    async def _heard(self, most_seconds: float, partition: Partition) -> frozenset[str]:
        while True:
            try:
                return await self._elsewhere(most_seconds)
            except TemporaryError as error:
                await self.guard.wait(partition, HOLD_SECONDS, f"the routes of the other workers are not known now: {error.reason}")

    def _read(self, record: Record) -> WireWrite:
        write = decode_write(record.value)
        if record.key != write.kafka_key:
            raise PermanentError("the record's key is not that of its write: what writes to this topic beside Headrace?")
        if write.then is not None or write.keeps or not self.target.compares:
            write.whole()  # it is going to be read: what cannot be is to be found here
        return write

    def _load(self, work: Work, writes: Sequence[tuple[Record, WireWrite]], partition: Partition) -> None:
        names = list(dict.fromkeys(record.key or b"" for record, _ in writes))
        held = partition.store(TABLE).get_many([self._prefix + name for name in names]) if names else []
        work.keys = {name: Key(raw, Delivered.decode(raw)) for name, raw in zip(names, held, strict=True)}

    def _decide(self, work: Work, key: Key, record: Record, write: WireWrite, decision: Decision) -> None:
        """Keep the last decision that has a call. An equal write is skipped only when it is the key's only one in the chunk: what it
        overtakes here may have been written by a chunk that a crash left unfinished.
        """
        if not decision.call:
            work.outcomes[write.route, Outcome.STALE if decision.stale else Outcome.UNCHANGED] += 1
            return
        if key.write is not None:
            work.outcomes[key.write.route, Outcome.STALE] += 1
        # A delete that the target confirmed is not repeated by every snapshot: nothing of it could be repaired, and each costs a call.
        always = write.always and decision.winner is not None
        key.forced = key.forced or key.write is not None or decision.stale or always or write.renamed_from is not None
        key.record, key.write, key.decision = record, write, decision

    def _items(self, work: Work) -> Iterator[Item]:
        """The calls to make, one per key of the target."""
        found: dict[tuple[str, str], Item] = {}
        for key in work.keys.values():
            if key.record is None or key.write is None or key.decision is None:
                continue
            write, decision, state = key.write, key.decision, key.state
            if len(key.record.value or b"") > LARGE and self._outgrown(key, key.record, write, work):
                continue
            if not (self.target.compares or key.forced or decision.rename_to) and state.same():
                work.outcomes[write.route, Outcome.UNCHANGED] += 1
                continue
            effect = Effect(
                object=write.object,
                key=self.target.same_key(write.object, write.key),
                json=decision.body,
                turn=decision.turn,
                on_delete="tombstone" if write.on_delete == "ignore" else write.on_delete,
                meta=decision.winner or write,  # of the record that speaks, else of the one that left
                was=state.image if state.image != NULL and (decision.body is not None or state.stands) else None,
                id=state.id,
                rename_to=decision.rename_to,
            )
            size = len(key.record.value or b"") + 200
            found[effect.object, effect.key] = Item(effect, key, key.record, write, size)
        yield from found.values()

    def _outgrown(self, key: Key, record: Record, write: WireWrite, work: Work) -> bool:
        """Whether the key's state would be more than a Kafka record holds: then the write is a dead letter and the state as it was."""
        state = key.state
        kept, state.image, state.stood = (state.image, state.stood), NULL, NULL  # after the call both are what should stand, kept once
        size = len(state.encode())
        state.image, state.stood = kept
        if size <= LARGEST_STATE:
            return False
        key.state = Delivered.decode(key.raw)
        error = PermanentError(f"what is kept of this key would be above {LARGEST_STATE:,} bytes: map fewer or shorter fields")
        self._dead(work, record, error, write.source, write.route, write.revision)
        return True

    def _batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """As many as one call may hold, in records and bytes; what must go alone, alone."""
        batch: list[Item] = []
        size = 0
        for item in items:
            if self.target.alone(item.effect) is not None:
                yield [item]
                continue
            if batch and (len(batch) >= self.target.batch_records or size + item.bytes > self.target.batch_bytes):
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += item.bytes
        if batch:
            yield batch

    async def _send(self, batch: Sequence[Item], partition: Partition, work: Work, *, live: bool) -> None:
        """Tell the target, halving a batch that is refused as a whole; record each result."""

        async def write(items: Sequence[Item]) -> None:
            size = sum(item.bytes for item in items)
            results = await self._calls.write([item.effect for item in items], partition, bytes=size, live=live)
            now = time.time()
            for item, result in zip(items, results, strict=True):
                self._record(item, result, work, now)

        def guilty(item: Item, error: PermanentError | TemporaryError) -> None:
            retryable = isinstance(error, TemporaryError)
            rule = error.rule if isinstance(error, PermanentError) else None
            self._record(item, WriteResult(Outcome.DEAD, error.reason, getattr(error, "field", None), retryable, rule), work, time.time())

        await split(batch, write, guilty)

    def _record(self, item: Item, result: WriteResult, work: Work, now: float) -> None:
        """What became of one effect: into its state, the dead letters, the metrics."""
        effect, write, state = item.effect, item.write, item.key.state
        if result.outcome is not Outcome.DEAD:
            work.outcomes[write.route, result.outcome] += 1
        else:
            state.unknown()
            if result.retryable:
                state.may_hold(effect.json)
            error = TemporaryError(result.reason) if result.retryable else PermanentError(result.reason, field=result.field)
            meta = effect.meta
            self._dead(work, item.record, error, meta.source, meta.route, meta.revision, result.retryable)
        if self._rejections is not None and effect.json is not None:
            work.forwards += self._learned(self._rejections, effect, result)
        if result.outcome is Outcome.STALE:
            state.unknown()
            log.warning("the target holds a later turn", target=self.name, object=effect.object, turn=effect.turn)
        elif result.outcome is not Outcome.DEAD:
            kept = effect.rename_to is None and effect.on_delete != "delete"
            state.wrote(effect.turn, effect.json, id=result.id, kept=effect.json is None and kept)
            if write.reason in WATCHED and not write.always:
                for since, began in (("commit", write.committed), ("received", write.received)):
                    if began is not None:
                        work.waited[write.route, since].append(max(0.0, now - began / 1000))

    def _learned(self, rejections: Rejections, effect: Effect, result: WriteResult) -> list[Output]:
        """What follows for gates from what the target said of a body."""
        meta = effect.meta
        if result.outcome is Outcome.WRITTEN and effect.json is not None:
            return rejections.took(meta.route, meta.source, effect.json)
        if result.outcome is not Outcome.DEAD or result.field is None or result.rule is None:
            return []
        value = at_path(effect.body or {}, result.field.split("."))
        return rejections.refused(Refusal(meta.route, result.field, result.rule, value, meta.source, meta.version))

    def _dead(
        self, work: Work, record: Record, error: HeadraceError, source: str, route: str, revision: int, retryable: bool = False
    ) -> None:
        work.outcomes[route, Outcome.DEAD] += 1
        letter = dead_letter_output(
            STAGE,
            record,
            error,
            topics=self._topics,
            redrive_to=self._topics.inbound(in_topic_source(source, self._flow)[0]),
            route=route,
            attempts=self.guard.attempts if retryable else 1,
            revision=revision,
            source=source,
        )
        work.dead.append(letter)
