"""What every target must do, told through the writer as the worker tells it: one suite, inherited by each target's test file.

A subclass gives a `rig` fixture. Records here have a name, a city and a score; the rig says what they look like to the target and reads
back, by other means than the target's file, what really is there.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

import orjson
import pytest
from msgspec.structs import replace

from agents.guard import Guard
from agents.rules.writes import encode_write
from agents.targets.base import Columns, TargetLike
from agents.writer import STAGE, writer_stage
from models.dead_letter import DeadLetter
from models.flow import Flow, Route, Salesforce
from models.flow import Target as TargetOptions
from models.settings import Settings
from models.write import Body, OnDelete, Op, Write
from streams import metrics
from streams.engine.stage import Abandoned, Chunk, Result
from streams.topics import Topics
from tests.support.flows import Shapes
from tests.support.memory import Log, MemoryPartition, run

Fields = dict[str, Any]
A, B = "acme/Contact/003A", "acme/Lead/00QB"


class Rig(Protocol):
    """One fresh target at its real wire. Keys are mail addresses, whatever the target thinks of them."""

    object: str
    columns: Columns

    def target(self, name: str, installation: str) -> TargetLike: ...

    def body(self, key: str, fields: Fields) -> Body: ...

    def bad(self, key: str) -> Body:
        """A body the target refuses."""
        ...

    async def held(self) -> dict[str, Fields]:
        """Every live record: by key its fields that have a value. Deleted and marked ones are not there."""
        ...

    def throttled(self) -> AbstractAsyncContextManager[None]:
        """Within: the target refuses for the moment."""
        ...

    def revoked(self) -> AbstractAsyncContextManager[None]:
        """Within: the key or the rights are gone."""
        ...

    def down(self) -> AbstractAsyncContextManager[None]:
        """Within: nobody answers."""
        ...

    async def lose_next_answer(self) -> None:
        """The next write is done, its answer never comes."""
        ...


class Bench:
    """A writer before a rig, with logs and state in memory."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.name = f"t{uuid4().hex[:8]}"
        self.settings = Settings(installation=f"c-{uuid4().hex[:8]}", drain_seconds=5)
        self.topics = Topics(self.settings.installation)
        login = Salesforce.model_validate({"type": "salesforce", "auth": {"flow": "jwt", "client_id": "made-up"}})
        self.flow = Flow(
            connections={"acme": login},
            targets={self.name: TargetOptions(type="any")},
            routes={"people": Route(sources=("acme/Contact", "acme/Lead"), to=self.name, map="person")},
        )
        self.target = rig.target(self.name, self.settings.installation)
        self.waited = asyncio.Event()
        self.slept: list[float] = []
        self.log, self.partition = Log(), MemoryPartition()
        self.shapes = Shapes({rig.object: rig.columns})
        self.stage = self.fresh_stage()
        self.revisions: dict[str, int] = {}
        self.dead: list[DeadLetter] = []

    def fresh_stage(self) -> Any:
        """As a process that starts anew."""
        guard = Guard(STAGE, self.name, probe_seconds=0.02, base=0.01, cap=0.05, sleep=self._sleep)
        return writer_stage(self.name, self.target, self.flow, self.settings, self.shapes, guard=guard)

    async def _sleep(self, seconds: float) -> None:
        self.waited.set()
        self.slept.append(seconds)
        await asyncio.sleep(min(seconds, 0.02))

    async def heard(self, word: str) -> None:
        """Until the guard declared a wait with this word in its reason."""
        while not any(word in reason for reason in self.partition.waits):
            self.waited.clear()
            await self.waited.wait()

    def write(self, key: str, fields: Fields | None, source: str = A, **more: Any) -> Write:
        """A WRITE, or with no fields a RELEASE, at the source's next revision."""
        self.revisions[source] = self.revisions.get(source, 0) + 1
        given = {"revision": self.revisions[source], "order": 0 if source == A else 1, "on_delete": "delete", "committed": 1, **more}
        body = None if fields is None else self.rig.body(key, fields)
        return Write(
            op=Op.RELEASE if body is None else Op.WRITE, route="people", object=self.rig.object, key=key, source=source, body=body, **given
        )

    def changed_key(self, old: str, new: str, fields: Fields, source: str = A, on_delete: OnDelete = "delete") -> list[Write]:
        """What process emits when a record's key changes."""
        write = self.write(new, fields, source, on_delete=on_delete)
        release = replace(write, op=Op.RELEASE, key=old, body=None, successor=new)
        if not self.target.renames:
            return [release, write]
        return [replace(release, then=replace(write, renamed_from=old))]

    def chunk(self, *writes: Write, bulk: bool = False) -> Chunk:
        """The writes at the end of a lane."""
        topic = self.topics.writes(self.name, bulk=bulk)
        return self.log.chunk(topic, *[(write.kafka_key, encode_write(write)) for write in writes])

    async def give(self, *writes: Write, bulk: bool = False, crash: bool = False) -> Result:
        """One chunk, handled and committed, and the writes it forwarded after it."""
        return await self.handle(self.chunk(*writes, bulk=bulk), crash=crash)

    async def handle(self, chunk: Chunk, *, crash: bool = False, meanwhile: Sequence[Write] = ()) -> Result:
        """Handle a chunk again or for the first time. A crash comes after the effects and before the commit; nothing is forwarded then.

        `meanwhile` stands before what the chunk forwards.
        """
        result = await run(self.stage, chunk, self.partition, crash=crash)
        if crash:
            self.stage = self.fresh_stage()
            return result
        for write in meanwhile:
            await self.give(write)
        forwards: dict[str, list[tuple[bytes | None, bytes | None]]] = {}
        for out in result.outputs:
            if out.topic == self.topics.dead_letters:
                self.dead.append(DeadLetter.model_validate(orjson.loads(out.value or b"")))
            else:
                forwards.setdefault(out.topic, []).append((out.key, out.value))
        for topic, pairs in forwards.items():
            await self.handle(self.log.chunk(topic, *pairs))
        return result


ANN, BOB, CAT = "ann@example.com", "bob@example.com", "cat@example.com"


class Conformance:
    """The suite. Each test's name is what must hold. The fixture `rig` is the subclass's."""

    @pytest.fixture
    async def bench(self, rig: Rig) -> AsyncIterator[Bench]:
        bench = Bench(rig)
        yield bench
        await bench.target.close()

    async def test_a_new_record_is_there_with_its_values(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann Ångström “x” \\ '", "city": "Łódź", "score": 1234567.25}))
        assert await bench.rig.held() == {ANN: {"name": "Ann Ångström “x” \\ '", "city": "Łódź", "score": 1234567.25}}

    async def test_an_update_changes_what_changed(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Rome", "score": 1}))
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Oslo", "score": 1}))
        assert await bench.rig.held() == {ANN: {"name": "Ann", "city": "Oslo", "score": 1}}

    async def test_a_null_clears_a_value(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Rome", "score": 1}))
        await bench.give(bench.write(ANN, {"name": "Ann", "city": None, "score": 1}))
        assert await bench.rig.held() == {ANN: {"name": "Ann", "score": 1}}

    async def test_a_value_the_record_no_longer_has_is_gone(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Rome"}))
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        assert await bench.rig.held() == {ANN: {"name": "Ann"}}

    @pytest.mark.parametrize("on_delete", ["delete", "tombstone", "mark"])
    async def test_a_delete_an_undelete_and_a_late_update_end_as_they_should(self, bench: Bench, on_delete: OnDelete) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Rome"}, on_delete=on_delete), bench.write(BOB, {"name": "Bob"}, B))
        late = bench.write(ANN, {"name": "Late"}, on_delete=on_delete)
        await bench.give(bench.write(ANN, None, on_delete=on_delete))
        assert set(await bench.rig.held()) == {BOB}
        await bench.give(late, bulk=True)
        assert set(await bench.rig.held()) == {BOB}, "a late update revived a deleted record"
        await bench.give(bench.write(ANN, {"name": "Ann again"}, on_delete=on_delete))
        assert (await bench.rig.held())[ANN]["name"] == "Ann again"

    async def test_what_enters_leaves_and_comes_back_stands_just_while_it_is_in_for_each_on_delete(self, bench: Bench) -> None:
        kinds: dict[str, OnDelete] = {f"{kind}@example.com": kind for kind in ("tombstone", "delete", "mark", "ignore")}

        def told(fields: Fields | None) -> list[Write]:
            return [bench.write(key, fields, f"{A}{kind}", on_delete=kind) for key, kind in kinds.items()]

        late = told({"name": "late"})
        for fields in ({"name": "in"}, {"name": "again"}):
            for now, standing in ((fields, list(kinds)), (None, ["ignore@example.com"]), (None, ["ignore@example.com"])):
                await bench.give(*told(now))
                assert await bench.rig.held() == dict.fromkeys(standing, fields)
        await bench.give(*late, bulk=True)
        assert await bench.rig.held() == {"ignore@example.com": {"name": "again"}}

    async def test_a_delete_of_what_was_never_written_makes_nothing(self, bench: Bench) -> None:
        for on_delete in ("delete", "tombstone", "mark"):
            await bench.give(bench.write(ANN, None, on_delete=on_delete))
        assert await bench.rig.held() == {}
        assert bench.dead == []

    async def test_twice_is_once(self, bench: Bench) -> None:
        write = bench.write(ANN, {"name": "Ann", "city": "Rome"})
        await bench.give(write, write)
        await bench.give(write)
        assert await bench.rig.held() == {ANN: {"name": "Ann", "city": "Rome"}}

    async def test_a_lane_that_lags_overwrites_nothing(self, bench: Bench) -> None:
        old = bench.write(ANN, {"name": "Old", "city": "Rome"})
        await bench.give(bench.write(ANN, {"name": "New"}))
        await bench.give(old, bulk=True)
        assert await bench.rig.held() == {ANN: {"name": "New"}}

    async def test_a_crash_after_the_effect_changes_nothing_in_the_end(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "One"}))
        chunk = bench.chunk(bench.write(ANN, {"name": "Two"}), bench.write(BOB, {"name": "Bob"}, B))
        await bench.handle(chunk, crash=True)
        back = bench.chunk(bench.write(ANN, {"name": "One"}))
        both = Chunk(chunk.topic, 0, [*chunk.records, *back.records])
        await bench.handle(both)
        assert await bench.rig.held() == {ANN: {"name": "One"}, BOB: {"name": "Bob"}}

    @pytest.mark.parametrize("equal", [True, False])
    async def test_a_bulk_write_lost_in_a_crash_does_not_outlive_a_later_live_write(self, bench: Bench, equal: bool) -> None:
        await bench.give(bench.write(ANN, {"name": "First"}))
        bench.log.next[bench.topics.writes(bench.name, bulk=True)] = 5000
        bulk = bench.chunk(bench.write(ANN, {"name": "Bulk"}), bulk=True)
        await bench.handle(bulk, crash=True)
        await bench.give(bench.write(ANN, {"name": "First" if equal else "Later"}))
        await bench.handle(bulk)
        assert await bench.rig.held() == {ANN: {"name": "First" if equal else "Later"}}

    async def test_a_changed_key_moves_the_record(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "city": "Rome"}))
        await bench.give(*bench.changed_key(ANN, BOB, {"name": "Ann", "score": 1}))
        assert await bench.rig.held() == {BOB: {"name": "Ann", "score": 1}}

    async def test_a_changed_key_with_a_crash_between_moves_the_record(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        chunk = bench.chunk(*bench.changed_key(ANN, BOB, {"name": "Ann"}))
        await bench.handle(chunk, crash=True)
        await bench.handle(chunk)
        assert await bench.rig.held() == {BOB: {"name": "Ann"}}

    async def test_a_key_that_changes_to_one_in_use_leaves_one_record_of_both(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(BOB, {"name": "Lead Bob", "city": "Rome"}, B))
        await bench.give(*bench.changed_key(ANN, BOB, {"name": "Ann"}))
        assert await bench.rig.held() == {BOB: {"name": "Ann", "city": "Rome"}}

    @pytest.mark.parametrize("again", [False, True])
    async def test_what_a_renamed_record_held_is_gone_when_another_source_took_the_key_before(self, bench: Bench, again: bool) -> None:
        await bench.give(bench.write(ANN, {"name": "Lead", "city": "Rome", "score": 1}, B))
        moved = bench.chunk(*bench.changed_key(ANN, BOB, {"name": "Lead", "city": "Rome"}, B))
        later = [bench.write(BOB, {"name": "Lead", "city": "Oslo"}, B)] if again else []
        await bench.handle(moved, meanwhile=[bench.write(BOB, {"name": "Bob"}), *later])
        assert await bench.rig.held() == {BOB: {"name": "Bob", "city": "Oslo" if again else "Rome"}}
        await bench.give(bench.write(BOB, None))
        assert await bench.rig.held() == {BOB: {"name": "Lead", "city": "Oslo" if again else "Rome"}}

    @pytest.mark.parametrize("on_delete", ["delete", "tombstone", "mark"])
    async def test_a_record_renamed_to_a_key_that_was_deleted_is_not_deleted(self, bench: Bench, on_delete: OnDelete) -> None:
        await bench.give(bench.write(BOB, {"name": "Bob"}, B, on_delete=on_delete), bench.write(ANN, {"name": "Ann"}, on_delete=on_delete))
        await bench.give(bench.write(BOB, None, B, on_delete=on_delete))
        await bench.give(*bench.changed_key(ANN, BOB, {"name": "Ann"}, on_delete=on_delete))
        assert await bench.rig.held() == {BOB: {"name": "Ann"}}

    async def test_a_key_that_another_source_still_has_stays_with_its_values(self, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(ANN, {"name": "Lead Ann"}, B))
        await bench.give(*bench.changed_key(ANN, BOB, {"name": "Ann"}))
        assert await bench.rig.held() == {ANN: {"name": "Lead Ann"}, BOB: {"name": "Ann"}}

    @pytest.mark.parametrize("first", [A, B])
    async def test_of_two_sources_the_first_of_the_route_speaks(self, bench: Bench, first: str) -> None:
        for source in (first, B if first == A else A):
            await bench.give(bench.write(ANN, {"name": source, "city": "Rome"}, source))
        await bench.give(bench.write(ANN, {"name": "lead again"}, B))
        assert (await bench.rig.held())[ANN]["name"] == A
        await bench.give(bench.write(ANN, None, A))
        assert (await bench.rig.held())[ANN]["name"] == "lead again"
        await bench.give(bench.write(ANN, None, B))
        assert await bench.rig.held() == {}

    async def test_one_bad_record_in_a_batch_is_the_only_dead_letter(self, bench: Bench) -> None:
        keys = [f"p{n}@example.com" for n in range(20)]
        writes = [bench.write(key, {"name": key, "score": 1}, f"acme/Contact/{n}") for n, key in enumerate(keys)]
        writes[13] = replace(writes[13], body=bench.rig.bad(keys[13]))
        result = await bench.give(*writes)
        assert set(await bench.rig.held()) == set(keys) - {keys[13]}
        [letter] = bench.dead
        assert (letter.offset, letter.source, letter.revision) == (13, "acme/Contact/13", 1)
        assert letter.redrive_to == bench.topics.inbound("acme/Contact")
        assert letter.original_value == encode_write(writes[13])
        assert result.state, "the good ones are not recorded"
        await bench.give(bench.write(keys[13], {"name": "mended"}, "acme/Contact/13"))
        assert (await bench.rig.held())[keys[13]] == {"name": "mended"}

    async def test_a_throttled_target_gets_everything_later(self, bench: Bench) -> None:
        await self._interrupted(bench, bench.rig.throttled)

    async def test_a_target_that_is_down_gets_everything_later(self, bench: Bench) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat"}, B))
        await self._interrupted(bench, bench.rig.down)

    async def test_a_target_that_is_down_at_the_start_gets_everything_later(self, bench: Bench) -> None:
        await self._interrupted(bench, bench.rig.down)

    async def test_a_revoked_key_pauses_and_its_return_resumes_by_itself(self, bench: Bench) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat"}, B))
        gauge = metrics.PAUSED.labels(bench.name)
        seen = []
        await self._interrupted(bench, bench.rig.revoked, "paused", lambda: seen.append(gauge._value.get()))
        assert seen == [1]
        assert gauge._value.get() == 0

    async def _interrupted(
        self, bench: Bench, fault: Callable[[], AbstractAsyncContextManager[None]], word: str = "retry", during: Any = None
    ) -> None:
        async with fault():
            work = asyncio.create_task(bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(BOB, {"name": "Bob"})))
            heard = asyncio.create_task(bench.heard(word))
            await asyncio.wait({work, heard}, return_when=asyncio.FIRST_COMPLETED)
            assert not work.done(), "the fault went unnoticed"
            if during:
                during()
        await work
        held = await bench.rig.held()
        assert (held[ANN], held[BOB]) == ({"name": "Ann"}, {"name": "Bob"})
        assert bench.dead == []
        assert bench.partition.waits

    async def test_an_answer_lost_after_the_effect_is_asked_again(self, bench: Bench) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat"}, B))
        await bench.rig.lose_next_answer()
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        assert any("retry" in reason for reason in bench.partition.waits), "the answer was not lost"
        assert await bench.rig.held() == {ANN: {"name": "Ann"}, CAT: {"name": "Cat"}}
        assert bench.dead == []

    async def test_a_lost_partition_calls_nobody(self, bench: Bench) -> None:
        bench.partition.owned = False
        with pytest.raises(Abandoned):
            await bench.give(bench.write(ANN, {"name": "Ann"}))
        bench.partition.owned = True
        await bench.give(bench.write(BOB, {"name": "Bob"}))
        assert set(await bench.rig.held()) == {BOB}

    async def test_any_interleaving_of_lanes_sources_and_crashes_ends_at_the_truth(self, bench: Bench) -> None:
        """Six keys side by side, each with its own history; the same chunks would be right one key at a time."""
        dice = random.Random(7)
        lanes: dict[bool, list[Write]] = {False: [], True: []}
        truth: dict[tuple[str, str], Fields | None] = {}
        for number in range(60):
            key, kind = f"k{dice.randrange(6)}@example.com", dice.choice((A, B))
            source = f"{kind}{key}"
            fields = None if dice.random() < 0.25 else {"name": f"n{dice.randrange(3)}", **({"city": "Rome"} if number % 3 else {})}
            if fields is None and (key, source) not in truth:
                continue
            truth[key, source] = fields
            lanes[dice.random() < 0.4].append(bench.write(key, fields, source, order=int(kind == B)))
        chunks = {bulk: [bench.chunk(*writes[n : n + 5], bulk=bulk) for n in range(0, len(writes), 5)] for bulk, writes in lanes.items()}
        while chunks[False] or chunks[True]:
            lane = dice.choice([bulk for bulk in (False, True) if chunks[bulk]])
            crash = dice.random() < 0.35
            await bench.handle(chunks[lane][0], crash=crash)
            if not crash:
                chunks[lane].pop(0)
        want: dict[str, Fields] = {}
        for (key, _), fields in sorted(truth.items(), key=lambda one: (one[0][0], B in one[0][1])):
            if fields is not None:
                want.setdefault(key, fields)
        assert await bench.rig.held() == want


@asynccontextmanager
async def always(before: Any, after: Any) -> AsyncIterator[None]:
    """Await `before()`, and `after()` whatever happens."""
    await before()
    try:
        yield
    finally:
        await after()
