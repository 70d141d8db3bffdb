"""Emits to one route what the table `records` knows: all of it for a new or emptied target, or what a pause parked. Asks nobody outside.

Of the parked those that a person refused are marked so in their states and not told. A refusal stands in the table until no record is
parked: it is about those that were parked when it came, whatever pause or refill comes between.

Each partition is walked by whoever owns it, in the stage that owns the table: a record of the topic `refill` is one step, and its
transaction holds what the step emits, the state, how far it came, and the record that is the next step. So a step counts once, live
events come between two steps, and a process that ends in the middle leaves the next step in Kafka.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import structlog
from msgspec.structs import replace as replace_struct

from agents.gates import HeldRoutes, still
from agents.guard import per_record
from agents.maps import InUse
from agents.parked import marks_of, parked_of, prefix, told
from agents.process import STAGE, Processing
from agents.rejections import GatesOf, no_gates
from agents.rules.merge import RecordState
from agents.rules.refused import refuse
from agents.states import States
from agents.tables import RECORDS, records_key
from agents.tally import counted
from models.errors import PermanentError
from models.settings import Settings
from streams.engine.stage import Changes, Chunk, Output, Partition, Record, Result, Stage
from streams.refills import Step
from streams.refusals import Refused
from streams.topics import Topics

log = structlog.get_logger()

STEP_RECORDS = 200
"""Of one step: few enough that what is live waits for milliseconds."""
ASIDE = "\x01refill|"
"""In the table, the step of a route that is paused: it is taken when the route goes on."""
REFUSED = "\x01refused|"
"""In the table, behind it route and run: a refusal that is being carried out."""


def with_refill(stage: Stage, settings: Settings, maps: InUse, held: HeldRoutes, gates: GatesOf = no_gates) -> Stage:
    """The processing stage, which takes the steps of refills too. `held`: which of these routes are paused now."""
    topics = Topics(settings.installation)
    refill, handle = Refill(topics, maps, held, gates), stage.handler

    async def handler(chunk: Chunk, partition: Partition) -> Result:
        return await (refill if chunk.topic == topics.refill else handle)(chunk, partition)

    return replace(stage, bulk=[*stage.bulk, topics.refill], handler=handler)


class Refill:
    """Handler of the topic `refill`."""

    def __init__(self, topics: Topics, maps: InUse, held: HeldRoutes, gates: GatesOf = no_gates) -> None:
        self._topics, self._maps, self._held, self._gates, self._states = topics, maps, held, gates, States(0)

    async def __call__(self, chunk: Chunk, partition: Partition) -> Result:
        """One step. What stands behind it in the chunk comes again: a step must see the state that the one before left."""
        dead: list[Output] = []
        steps = [step for record in chunk.records if (step := self._read(record, dead)) is not None]
        later = [step.output(self._topics, partition.number) for step in steps[1:]]
        if not steps:
            return Result(dead)
        result = await self._take(steps[0], partition)
        return Result([*dead, *result.outputs, *later], result.state)

    def _read(self, record: Record, dead: list[Output]) -> Step | None:
        return per_record(STAGE, record, _step, record.value, topics=self._topics, redrive_to=record.topic, dead=dead)

    async def _take(self, step: Step, partition: Partition) -> Result:
        store, aside = partition.store(RECORDS), f"{ASIDE}{step.route}".encode()
        known = step.route in self._maps.now.routes
        if not known or step.route in await self._held([step.route], partition):
            if not known:
                log.warning("a refill waits: this worker's flow has no such route", route=step.route, do="headrace resume, once it has")
            kept: Changes = [(aside, msgspec.json.encode(step))] if step.run else []
            kept += [(_place(step.refused), _of(step.refused, partition))] if step.refused else []
            return Result((), {RECORDS: kept} if kept else {})
        refusals = {key: msgspec.json.decode(raw, type=Refused) for key, raw in store.page(f"{REFUSED}{step.route}|".encode(), b"", 100)}
        if step.refused is not None:
            refusals.setdefault(_place(step.refused), replace_struct(step.refused, partition=partition.number))
            step = replace_struct(step, refused=None)
        if parked := store.page(prefix(step.route), b"", STEP_RECORDS):
            return self._tell_parked(step, parked, refusals, partition)
        changes: Changes = [(key, None) for key in refusals]
        (left,) = store.get_many([aside])
        if left is not None:
            changes.append((aside, None))
            step = step if step.run else _step(left)
        if not step.run:
            return Result((), {RECORDS: changes} if changes else {})
        walked = await self._walk(step, partition)
        return Result(walked.outputs, {RECORDS: [*changes, *walked.state.get(RECORDS, ())]})

    def _tell_parked(
        self, step: Step, parked: Sequence[tuple[bytes, bytes]], refusals: Mapping[bytes, Refused], partition: Partition
    ) -> Result:
        """What a pause kept back, but for what was refused, then the same step again: there may be more."""
        marks: defaultdict[str, dict[str, set[str]]] = defaultdict(dict)
        for key, value in parked:
            source, id = parked_of(step.route, key)
            marks[source][id] = marks_of(value)
        changes, outputs = told(partition, self._topics, step.route, [key for key, _ in parked])
        for source, some in marks.items():
            raw = partition.store(RECORDS).get_many([records_key(source, id) for id in some])
            pairs = [(id, value) for id, value in zip(some, raw, strict=True) if value is not None]
            dropped = dict(self._dropped(source, pairs, some, step.route, refusals.values())) if refusals else {}
            result, _ = self._emit(source, [(id, value) for id, value in pairs if id not in dropped], step, partition)
            outputs += result.outputs
            changes += [*result.state.get(RECORDS, ()), *((records_key(source, id), value) for id, value in dropped.items())]
        changes += [(key, msgspec.json.encode(refused)) for key, refused in refusals.items()]
        outputs += [refused.output(self._topics) for refused in refusals.values()]
        return Result([*outputs, step.output(self._topics, partition.number)], {RECORDS: changes})

    def _dropped(
        self, source: str, pairs: Sequence[tuple[str, bytes]], marks: Mapping[str, set[str]], route: str, refusals: Collection[Refused]
    ) -> Iterator[tuple[str, bytes]]:
        """Records that were refused, as their states remember it: those that count by the gate still, after all that came since."""
        way = self._maps.now.route(route).ways.get(source)
        for id, value in pairs if way is not None else ():
            state = RecordState.decode(value, id)
            for refused in refusals:
                if way is not None and refused.gate in marks[id] and still(refused.gate, way, state):
                    refuse(state, way)
                    refused.dropped += 1
                    yield id, state.encode()
                    break

    async def _walk(self, step: Step, partition: Partition) -> Result:
        """The next records of the source that is being walked, or the first of the next one."""
        sources = list(self._maps.now.route(step.route).ways)
        if step.total < 0:
            step = replace_struct(step, total=sum([await _count(partition, source) for source in sources]))
        at = sources.index(step.source) if step.source in sources else 0
        source, after = sources[at], step.after if step.source in sources else ""
        head = records_key(source, "")
        page = partition.store(RECORDS).page(head, head + after.encode() if after else b"", STEP_RECORDS)
        pairs = [(key[len(head) :].decode(), value) for key, value in page]
        result, lacking = self._emit(source, pairs, step, partition)
        end = len(page) < STEP_RECORDS
        done = end and at + 1 == len(sources)
        following = replace_struct(
            step,
            source=sources[at + 1] if end and not done else source,
            after=pairs[-1][0] if pairs and not end else "",
            seen=step.seen + len(page),
            asked=step.asked + lacking,
        )
        more = [] if done else [following.output(self._topics, partition.number)]
        progress = following.progress(self._topics, partition.number, done=done)
        return Result([*result.outputs, progress, *more], result.state)

    def _emit(self, source: str, pairs: Sequence[tuple[str, bytes]], step: Step, partition: Partition) -> tuple[Result, int]:
        """Records of the table, (id, value) each, once more to the route, as floods are; and how many lack something and are asked for."""
        run = step.run or f"resume-{step.route}"
        work = Processing(
            Chunk(self._topics.inbound(source, bulk=True), partition.number, ()), partition, self._topics, self._maps.now, self._states
        )
        work.ways = self._gates(work.ways)
        asked = sum(not work.again(id, raw, step.route, run) for id, raw in pairs)
        counted(work.inbound, work.outcomes, work.emitted, work.tally)
        return work.result(), asked


def _place(refused: Refused) -> bytes:
    return f"{REFUSED}{refused.route}|{refused.run}".encode()


def _of(refused: Refused, partition: Partition) -> bytes:
    return msgspec.json.encode(replace_struct(refused, partition=partition.number))


async def _count(partition: Partition, source: str) -> int:
    head, after, count = records_key(source, ""), b"", 0
    while page := partition.store(RECORDS).page(head, after, 20 * STEP_RECORDS):
        count, after = count + len(page), page[-1][0]
        await asyncio.sleep(0)
    return count


def _step(value: bytes | None) -> Step:
    try:
        return msgspec.json.decode(value or b"", type=Step)
    except msgspec.DecodeError as error:
        raise PermanentError(f"this is no step of a refill ({error}): it was put there by somebody else") from None
