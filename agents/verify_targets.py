"""Reconciliation of one route: what the tables `records` and `delivered` say a target holds, against what it holds.

Where the target can hash (PostgreSQL), ranges of keys are compared by count and hash, and only keys of those that differ one by one; else
every key is read back.
It writes to no target: what differs is emitted again by the way of a redrive, what nobody speaks for is released, both through the topics.
What is on its way is no difference: only what differs in every round, after the workers had their time, is one.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import orjson

from agents.dead_letters import list_letters
from agents.rules.delivery import Delivered
from agents.rules.merge import RecordState
from agents.rules.reconcile import Compared, Difference
from agents.rules.refused import is_refused
from agents.rules.ways import Way
from agents.rules.writes import encode_write, read_json
from agents.tables import DELIVERED, delivered_key
from agents.targets.base import Comparing, Fault, Hashing, Listing, TargetLike
from agents.verify import ROUNDS, counted, patiently, states_of, workers_done
from agents.writer import STAGE as WRITE
from models.envelope import Envelope, Kind, Reason
from models.errors import PermanentError
from models.flow import Flow
from models.settings import Settings
from models.write import Body, Op, Write
from streams.consume import read_batches
from streams.engine.stage import Output
from streams.publish import Publisher
from streams.salesforce.incidents import Incident
from streams.topics import Topics

BATCH = 1000
SENT = 200
RANGE = 256
"""Keys in a range that has one hash: few enough that one wrong row does not ask for many right ones."""
Holders = dict[str, Delivered]


@dataclass(slots=True)
class RouteFound(Compared):
    """Of one route from one source.

    comparable   the target can be compared; lists: it can name what nobody speaks for
    behind       records the workers had not finished in time: then nothing is said
    held         records that cannot be mapped as they are (dead letters of the processing): the target keeps what it had of them
    refused      records of a swarm that people refused: the target keeps what it had of them
    dead         differences that are dead letters of the writer already
    """

    route: str
    target: str
    comparable: bool
    lists: bool
    behind: int = 0
    held: int = 0
    refused: int = 0
    dead: int = 0


class RouteCheck:
    """One run over one way. The source check gives it the states (`seen`); `target` was started."""

    def __init__(self, settings: Settings, flow: Flow, way: Way, target: TargetLike, run: str) -> None:
        self._settings, self._flow, self._way, self._target, self._run = settings, flow, way, target, run
        self._topics = Topics(settings.installation)
        self._prefix, self._head = delivered_key(way.target, way.object, "").decode(), f"{way.source}/"
        self._keys: dict[str, str | None] = {}  # by record id the key it should stand under, None: nowhere
        self._unfit: set[str] = set()
        self._refused: set[str] = set()
        self._told: dict[str, str] = {}  # by record id the key it speaks for
        self._right: dict[str, int] = {}  # keys that may stand, and the hash of what they should hold; 0: not known
        self._ids: dict[str, str] = {}  # by key that differs the record to emit again; "" to release it
        self.found = RouteFound(way.route, way.target, isinstance(target, Comparing), isinstance(target, Listing))

    def seen(self, id: str, state: RecordState) -> None:
        """Note where a record should stand. One that cannot be shaped (it is a dead letter), or was refused, keeps what it had."""
        try:
            shaped = None
            if is_refused(state, self._way):
                self._refused.add(id)
                raise PermanentError("refused")
            self._refused.discard(id)
            if not state.deleted:
                if not state.knows(self._way.fields):
                    raise PermanentError("incomplete")
                shaped = self._way.shape(state.values, id)
            self._keys[id] = shaped[0] if shaped else None
            self._unfit.discard(id)
        except PermanentError:
            self._keys.pop(id, None)
            self._unfit.add(id)

    async def run(self) -> RouteFound:
        """Compare everything. Raises TemporaryError, PausedError, FatalError, and PermanentError for what the target cannot convert."""
        found = self.found
        if not found.comparable:
            return found
        found.behind = await workers_done(self._settings, self._flow)
        doubtful: dict[str, Difference] = {}
        strange: set[str] = set()
        target = self._target
        if isinstance(target, Hashing):
            await patiently(partial(target.hashes, self._way.object, []))  # it looks at its columns
        for number in range(self._settings.partitions):
            holders = await self._holders(partitions=[number])
            strange |= self._note(holders)
            if not isinstance(target, Hashing):
                doubtful |= await self._wrong(holders)
        strange |= {id for id, key in self._keys.items() if self._told.get(id) != key and not (self._way.unique and id not in self._told)}
        strange |= {id for id, key in self._told.items() if id in self._keys and self._keys[id] != key}
        doubtful |= await self._of_ranges()
        for _ in range(ROUNDS - 1):
            if not (doubtful or strange):
                break
            found.behind = await workers_done(self._settings, self._flow)
            doubtful, strange = await self._again(doubtful, strange)
        await self._leave_dead(doubtful)
        found.held, found.refused = len(self._unfit - self._refused), len(self._refused)
        found.differences = sorted(doubtful.values(), key=lambda one: one.id)
        return found

    async def repair(self) -> None:
        """Emit again, or release, what differs; an incident names it."""
        differences = self.found.differences
        async with Publisher(self._settings) as publisher:
            for start in range(0, len(differences), SENT):
                some = differences[start : start + SENT]
                incident = self._incident(some, start // SENT)
                await patiently(partial(publisher.send, [*(self._output(one.id) for one in some), incident.output(self._topics)]))
                counted(incident)
                self.found.repaired += len(some)

    def _incident(self, some: Sequence[Difference], number: int) -> Incident:
        """It names records, not keys, which may be addresses of people."""
        way, ids = self._way, tuple(id for one in some if (id := self._ids.get(one.id)))
        told = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in some).items())
        detail = f"{len(some)} keys of route {way.route} were not in {way.target} as they were written there ({told})"
        opened = Incident(f"{self._run}-{way.route}-{number}", way.source, "target", detail, ids, opened=int(time.time() * 1000))
        return opened.ended("closed", f"written again through the topics by run {self._run}", rows=len(ids), gone=len(some) - len(ids))

    def _output(self, key: str) -> Output:
        """A redrive's empty row; for what nobody speaks for a release by a source that never was, so that it takes nothing from anybody."""
        way, now = self._way, int(time.time() * 1000)
        if id := self._ids.get(key):
            envelope = Envelope(kind=Kind.ROW, reason=Reason.REPAIR, received=now, run=self._run, route=way.route)
            return Output(self._topics.inbound(way.source), id.encode(), orjson.dumps({"Id": id}), envelope.headers())
        write = Write(
            op=Op.RELEASE,
            route=way.route,
            object=way.object,
            key=key,
            source=f"{self._head}verify",
            order=way.order,
            revision=0,
            body=None,
            on_delete="tombstone" if way.on_delete == "ignore" else way.on_delete,
            reason=Reason.REPAIR.value,
            run=self._run,
            always=True,
        )
        return Output(self._topics.writes(way.target), write.kafka_key, encode_write(write))

    def _note(self, holders: Holders) -> set[str]:
        """Remember who speaks for what; ids that speak for two keys."""
        twice, target = set(), self._target
        for key, state in holders.items():
            won = state.winner()
            if won is not None:
                self._right[key] = target.hash_of(self._way.object, key, read_json(state.body())) if isinstance(target, Hashing) else 0
                self.found.compared += won.route == self._way.route and won.source.startswith(self._head)
            elif self._way.on_delete == "ignore":
                self._right[key] = 0
            for id in self._speakers(state):
                if self._told.setdefault(id, key) != key:
                    twice.add(id)
        return twice & self._keys.keys()

    def _speakers(self, state: Delivered) -> list[str]:
        """Records of this source that speak for a key by this route."""
        mine = (h for h in state.held if h.route == self._way.route and h.speaks and h.source.startswith(self._head))
        return [h.source.removeprefix(self._head) for h in mine]

    def _bodies(self, holders: Holders) -> dict[str, Body]:
        """What the target should hold of this way, by key."""
        bodies: dict[str, Body] = {}
        for key, state in holders.items():
            won = state.winner()
            if won is not None and won.route == self._way.route and won.source.startswith(self._head):
                bodies[key] = read_json(state.body())
                self._ids[key] = won.source.removeprefix(self._head)
        return bodies

    async def _wrong(self, holders: Holders) -> dict[str, Difference]:
        """Keys of this way that do not hold what they should."""
        bodies = self._bodies(holders)
        keys, wrong = list(bodies), dict[str, Difference]()
        for start in range(0, len(keys), BATCH):
            faults = await self._differing({key: bodies[key] for key in keys[start : start + BATCH]})
            wrong |= {key: Difference(key, fault) for key, fault in faults.items()}
        return wrong

    async def _differing(self, bodies: Mapping[str, Body]) -> Mapping[str, Fault]:
        """As the target says; a body that it cannot convert differs, and the writer's dead letter says why."""
        target = self._target
        if not isinstance(target, Comparing):
            return {}
        try:
            return await patiently(lambda: target.differing(self._way.object, bodies))
        except PermanentError:
            if len(bodies) == 1:
                return dict.fromkeys(bodies, "changed")
            pairs, middle = list(bodies.items()), len(bodies) // 2
            return {**await self._differing(dict(pairs[:middle])), **await self._differing(dict(pairs[middle:]))}

    async def _of_ranges(self) -> dict[str, Difference]:
        """Keys of the ranges whose hash differs, and the keys that stand there, or anywhere if the target has no hash, for nobody."""
        target, doubtful = self._target, dict[str, Difference]()
        if isinstance(target, Hashing):
            keys = sorted(self._right)
            bounds = keys[RANGE::RANGE]
            hashes = await patiently(partial(target.hashes, self._way.object, bounds))
            for number, begin, end in zip(range(len(hashes)), ["", *bounds], [*bounds, None], strict=True):
                some = keys[number * RANGE : (number + 1) * RANGE]
                if hashes[number] != (len(some), sum(self._right[key] for key in some)):
                    doubtful |= {key: Difference(key, "changed") for key in some}
                    doubtful |= {key: Difference(key, "extra") async for key in self._strangers(begin, end)}
        elif isinstance(target, Listing):
            doubtful |= {key: Difference(key, "extra") async for key in self._strangers("", None)}
        self._right.clear()
        return doubtful

    async def _strangers(self, after: str, until: str | None) -> AsyncIterator[str]:
        """Keys from `after` to below `until` that stand and for which nobody speaks; `after` itself is spoken for."""
        target = self._target
        while isinstance(target, Listing):
            page = await patiently(partial(target.standing, self._way.object, after, until))
            for key in page:
                if key not in self._right:
                    yield key
            if not page:
                return
            after = page[-1]

    async def _again(self, doubtful: Mapping[str, Difference], strange: Collection[str]) -> tuple[dict[str, Difference], set[str]]:
        """What of it still differs."""
        for id in strange:
            self._keys[id] = None
        for id, state in (await states_of(self._settings, self._way.source, strange)).items():
            self.seen(id, state)
        wanted = {id: self._keys[id] for id in strange if id in self._keys}
        keys = doubtful.keys() | {key for key in wanted.values() if key is not None} | {self._told[i] for i in strange if i in self._told}
        holders = await self._holders(keys)
        wrong = await self._wrong({key: state for key, state in holders.items() if key in doubtful})
        unspoken = [k for k, one in doubtful.items() if one.kind == "extra" and (k not in holders or holders[k].winner() is None)]
        gone = await self._differing({key: {} for key in unspoken}) if unspoken else {}
        wrong |= {key: Difference(key, "extra") for key in unspoken if gone.get(key) not in ("missing", "deleted")}
        for key in wrong.keys() & set(unspoken):
            self._ids[key] = ""
        left: set[str] = set()
        speakers = {key: self._speakers(state) for key, state in holders.items()}
        for id, place in wanted.items():
            speaks = {held for held, ids in speakers.items() if id in ids}
            if speaks != ({place} if place is not None else set()) and (speaks or not self._way.unique):  # a duplicate is held back
                left.add(id)
                shown = place if place is not None else min(speaks)
                wrong[shown] = Difference(shown, "missing" if place is not None and place not in speaks else "extra")
                self._ids[shown] = id
        return wrong, left

    async def _leave_dead(self, doubtful: dict[str, Difference]) -> None:
        """Take out what the target refused: it is a dead letter, and would be one again."""
        if not doubtful:
            return
        letters = await patiently(lambda: list_letters(self._settings))
        dead = {letter.source for letter in letters if letter.stage == WRITE and letter.route == self._way.route}
        for key in [key for key in doubtful if (id := self._ids.get(key)) and f"{self._head}{id}" in dead]:
            del doubtful[key]
            self.found.dead += 1

    async def _holders(self, only: Collection[str] | None = None, *, partitions: Sequence[int] | None = None) -> Holders:
        """The states of this way's object in `delivered`: of these keys, or of whole partitions."""
        raw: dict[str, bytes | None] = {}
        topic = self._topics.changelog(DELIVERED)
        async with aclosing(read_batches(self._settings, topic, partitions)) as batches:
            async for batch in batches:
                raw |= _of(((record.key or b"", record.value) for record in batch), self._prefix, only)
        return {name: Delivered.decode(value) for name, value in raw.items() if value is not None}


def _of(pairs: Iterable[tuple[bytes, bytes | None]], prefix: str, only: Collection[str] | None) -> dict[str, bytes | None]:
    found = {}
    for key, value in pairs:
        name = key.decode(errors="replace")
        if name.startswith(prefix) and (only is None or name[len(prefix) :] in only):
            found[name[len(prefix) :]] = value
    return found
