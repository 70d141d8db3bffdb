"""A paused route parks what it would emit and tells of it when it goes on; a refill tells of everything known."""

from collections import Counter
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import refill
from agents.parked import marks_of, park, told
from agents.refill import Refill
from agents.rules.merge import RecordState
from agents.tables import RECORDS, records_key
from models.write import Op, Write
from streams.engine.stage import Chunk, Output, Result
from streams.refills import Progress, Step, parked_of, refills_of
from tests.support.flows import CONTACTS, PEOPLE, flow, maps
from tests.support.memory import MemoryPartition, MemoryRecord
from tests.support.pipeline import TOPICS, Pipeline
from tests.unit.test_process import ORDERS, ROW, WHOLE, hook

BOTH = {"contacts": CONTACTS, "again": CONTACTS | {"object": "copy", "where": "Title != 'Secret'"}}


ACTS = ["pause", "go", "step", "crash", "refill", *"abcd", "-a", "-b", "+a", "secret b", "secret c"]


class Held(set[str]):
    """Stands in for what a worker knows of pauses."""

    async def routes(self, names: Any, _partition: object) -> frozenset[str]:
        return frozenset(self.intersection(names))


class Desk(Pipeline):
    """With the handler of refills, and what stands in its topic and in `runs`."""

    def __init__(self, **routes: dict[str, Any]) -> None:
        super().__init__(flow(**routes), maps(**routes))
        self.holds = Held()
        self.refill = Refill(TOPICS, maps(**routes), self.holds.routes)
        self.steps: list[bytes | None] = []
        self.runs: dict[bytes, MemoryRecord] = {}

    def pause(self, route: str) -> None:
        self.paused.add(route)
        self.holds.add(route)

    def go(self, route: str) -> None:
        self.paused.discard(route)
        self.holds.discard(route)
        self.ask(Step(route))

    def ask(self, step: Step) -> None:
        self.steps.append(step.output(TOPICS, 0).value or b"")

    def take(self, outputs: Any) -> list[Write]:
        for output in outputs:
            if output.topic == TOPICS.refill:
                self.steps.append(output.value)
            elif output.topic == TOPICS.runs:
                self.runs[output.key] = MemoryRecord(output.topic, 0, output.key, output.value)
        return super().take([output for output in outputs if output.topic not in (TOPICS.refill, TOPICS.runs)])

    async def step(self, *, crash: bool = False) -> list[Write]:
        """Take everything that stands in the topic as one chunk. With `crash` nothing of it counts, and it comes again."""
        records = [MemoryRecord(TOPICS.refill, n, b"k", value) for n, value in enumerate(self.steps)]
        result: Result = await self.refill(Chunk(TOPICS.refill, 0, records), self.partition)
        if crash:
            return []
        self.steps.clear()
        for table, changes in result.state.items():
            self.partition.keep(table, changes)
        return self.take(result.outputs)

    async def all(self) -> list[Write]:
        found: list[Write] = []
        while self.steps:
            found += await self.step()
        return found

    @property
    def parked(self) -> dict[str, int]:
        return parked_of(self.runs.values())


def of(number: int) -> str:
    return f"003Qx{number:010d}AAA"


async def fill(desk: Desk, count: int, **body: Any) -> None:
    for start in range(0, count, 100):
        numbers = range(start, min(count, start + 100))
        await desk.feed(*(desk.row("Contact", of(n), 10, 1000, ROW | {"Phone": str(n)} | body) for n in numbers))


async def test_a_paused_route_emits_nothing_the_other_goes_on_and_the_latest_state_comes_once_when_it_goes_on() -> None:
    desk = Desk(**BOTH)
    desk.pause("again")
    await fill(desk, 3)
    assert [w.route for _, w in desk.writes] == ["contacts"] * 3
    await desk.feed(desk.change("Contact", of(1), "UPDATE", 20, 1010, {"Title": "new"}))
    assert desk.parked == {"again": 3}, "a record that changed twice waits once"
    desk.go("again")
    writes = await desk.all()
    assert Counter(w.key for w in writes) == {f"acme/{of(n)}": 1 for n in range(3)}
    assert {w.key: (w.body or {})["title"] for w in writes}[f"acme/{of(1)}"] == "new"
    assert all(w.route == "again" and w.reason == "refill" and w.always for w in writes)
    assert (desk.parked, desk.steps) == ({}, [])
    desk.go("again")
    assert await desk.all() == [], "told once"


async def test_what_left_the_filter_was_deleted_or_came_back_while_paused_is_released_or_written_as_it_ended() -> None:
    desk = Desk(**BOTH)
    await fill(desk, 4)
    desk.pause("again")
    await desk.feed(desk.change("Contact", of(0), "DELETE", 20, 1010))
    await desk.feed(desk.change("Contact", of(1), "UPDATE", 21, 1010, {"Title": "secret"}))
    await desk.feed(desk.change("Contact", of(2), "DELETE", 22, 1010))
    await desk.feed(desk.change("Contact", of(2), "UNDELETE", 23, 1011, WHOLE))
    desk.go("again")
    writes = await desk.all()
    found = {w.key: w.op for w in writes}
    assert found[f"acme/{of(0)}"] is Op.RELEASE
    assert found[f"acme/{of(1)}"] is Op.RELEASE
    assert found.get(f"acme/{of(2)}", Op.WRITE) is Op.WRITE
    assert f"acme/{of(3)}" not in found


async def test_a_record_emitted_after_the_pause_is_no_older_when_its_parked_key_is_told_later() -> None:
    desk = Desk(**BOTH)
    desk.pause("again")
    await fill(desk, 1)
    desk.go("again")
    [live] = [w for w in await desk.feed(desk.change("Contact", of(0), "UPDATE", 20, 1010, {"Title": "last"})) if w.route == "again"]
    [late] = await desk.all()
    assert (late.body or {})["title"] == "last"
    assert late.revision >= live.revision


async def test_a_refill_emits_every_record_once_to_its_route_alone_and_says_how_far_it_is() -> None:
    desk = Desk(**BOTH)
    await fill(desk, 450)
    await desk.feed(desk.change("Contact", of(7), "DELETE", 20, 1010))
    desk.writes.clear()
    desk.ask(Step("contacts", "run"))
    seen = []
    while desk.steps:
        await desk.step()
        seen.append(refills_of(desk.runs.values())["run"])
    assert Counter(w.key for _, w in desk.writes) == {f"acme/{of(n)}": 1 for n in range(450) if n != 7}
    assert all(w.route == "contacts" and w.run == "run" and topic.endswith(".bulk") for topic, w in desk.writes)
    assert [(one.seen, one.total, one.done) for one in seen] == [(200, 450, False), (400, 450, False), (450, 450, True)]


async def test_a_refill_goes_on_where_it_was_after_a_crash_and_after_a_pause() -> None:
    desk = Desk(**BOTH)
    await fill(desk, 700)
    desk.writes.clear()
    desk.ask(Step("again", "run"))
    await desk.step()
    await desk.step(crash=True)
    desk.pause("again")
    await desk.all()
    assert len(desk.writes) == 200
    assert not refills_of(desk.runs.values())["run"].done
    await desk.feed(desk.change("Contact", of(1), "UPDATE", 20, 1010, {"Title": "x"}))
    desk.go("again")
    await desk.all()
    counts = Counter(w.key for _, w in desk.writes if w.route == "again")
    assert counts.pop(f"acme/{of(1)}") == 2, "once by the refill, once more because it changed while it was paused"
    assert set(counts.values()) == {1}
    assert len(counts) == 699
    assert refills_of(desk.runs.values())["run"].done


async def test_records_that_lack_a_field_of_the_route_are_asked_for_and_counted() -> None:
    desk = Desk(contacts=CONTACTS)
    await desk.feed(desk.row("Contact", of(1), 10, 1000, ROW))
    wide = Desk(contacts=CONTACTS, people=PEOPLE)
    wide.partition = desk.partition
    await wide.feed(wide.row("Contact", of(2), 10, 1000, ROW, bulk=True))
    assert wide.fetches == []
    wide.ask(Step("people", "run"))
    await wide.all()
    assert wide.fetches == [({"sobject": "Contact", "id": of(1)}, {"reason": "refill", "run": "run", "route": "people"})]
    assert (refills_of(wide.runs.values())["run"].asked, refills_of(wide.runs.values())["run"].done) == (1, True)


async def test_a_record_that_fails_is_a_dead_letter_that_can_be_redriven_and_the_others_go_on() -> None:
    keyed = CONTACTS | {"key": "email"}
    desk = Desk(contacts=CONTACTS, keyed=keyed | {"object": "mails"})
    await desk.feed(desk.row("Contact", of(1), 10, 1000, ROW | {"Email": None}), desk.row("Contact", of(2), 10, 1000, ROW))
    first = [letter.id for letter in desk.dead]
    desk.dead.clear()
    desk.writes.clear()
    desk.ask(Step("keyed", "run"))
    assert [w.key for w in await desk.all()] == ["a@x.org"]
    [letter] = desk.dead
    assert [letter.id] == first, "the same failure again is recognised"
    assert (letter.route, letter.redrive_to, letter.original_key) == ("keyed", TOPICS.inbound("acme/Contact"), of(1).encode())


async def test_bodies_of_a_webhook_are_told_again_too() -> None:
    desk = Desk(orders=ORDERS)
    await desk.feed(hook(desk, {"order": {"id": "order-1", "total": 5}}, "d1"), hook(desk, {"order": {"id": "order-1", "total": 6}}, "d2"))
    [*_, (_, last)] = desk.writes
    desk.ask(Step("orders", "run"))
    assert [(w.key, w.body) for w in await desk.all()] == [(last.key, last.body)]


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b'{"route": 3}', b'{"seen": 1}', b"\xff", None])
async def test_what_is_no_step_is_a_dead_letter(value: bytes | None) -> None:
    desk = Desk(contacts=CONTACTS)
    desk.steps.append(value)
    await desk.all()
    assert len(desk.dead) == 1


async def test_a_step_of_a_route_that_this_worker_does_not_know_waits_and_is_taken_when_it_does() -> None:
    desk = Desk(contacts=CONTACTS)
    await fill(desk, 2)
    desk.ask(Step("copy", "run"))
    assert await desk.all() == []
    later = Desk(contacts=CONTACTS, copy=CONTACTS | {"object": "copy"})
    later.partition = desk.partition
    later.ask(Step("copy"))
    assert len(await later.all()) == 2


async def test_several_steps_in_one_chunk_each_see_what_the_one_before_left() -> None:
    desk = Desk(**BOTH)
    await fill(desk, 250)
    desk.writes.clear()
    for route in BOTH:
        desk.ask(Step(route, f"run-{route}"))
    await desk.all()
    assert Counter(w.route for _, w in desk.writes) == {"contacts": 250, "again": 250}


@settings(max_examples=60)
@given(st.lists(st.sampled_from(ACTS), max_size=40))
async def test_whatever_order_things_come_in_the_target_ends_with_what_the_records_say(plan: list[str]) -> None:
    """The model: the last write or release of each key, by revision and then by order of coming, is what the record says at the end."""
    desk = Desk(again=BOTH["again"])
    position, runs, names = 100, 0, "abcd"
    told: dict[str, tuple[int, Write]] = {}

    def keep(writes: list[Write]) -> None:
        for w in writes:
            if w.key not in told or w.revision >= told[w.key][0]:
                told[w.key] = (w.revision, w)

    for act in plan:
        position += 1
        id = of(names.find(act[-1:]))
        if act == "pause":
            desk.pause("again")
        elif act == "go":
            desk.go("again")
        elif act in ("step", "crash"):
            if desk.steps:
                keep(await desk.step(crash=act == "crash"))
        elif act == "refill":
            runs += 1
            desk.ask(Step("again", f"r{runs}"))
        elif act in names:
            keep(await desk.feed(desk.row("Contact", id, position, 1000 + position, ROW | {"Title": str(position)})))
        elif act[0] == "-":
            keep(await desk.feed(desk.change("Contact", id, "DELETE", position, 1000 + position)))
        elif act[0] == "+":
            keep(await desk.feed(desk.change("Contact", id, "UNDELETE", position, 1000 + position, WHOLE)))
        else:
            keep(await desk.feed(desk.change("Contact", id, "UPDATE", position, 1000 + position, {"Title": "SECRET"})))
    desk.go("again")
    keep(await desk.all())
    way = maps(**BOTH).route("again").ways["acme/Contact"]
    for id in map(of, range(len(names))):
        [raw] = desk.partition.store(RECORDS).get_many([records_key("acme/Contact", id)])
        state, last = RecordState.decode(raw, id), told.get(f"acme/{id}")
        shaped = None if state.deleted or not state.knows(way.fields) else way.shape(state.values, id)
        if shaped is not None:
            assert last is not None
            assert (last[1].op, last[1].body) == (Op.WRITE, shaped[1])
        else:
            assert last is None or last[1].op is Op.RELEASE
    assert desk.parked == {}


def test_counts_add_up_whatever_is_parked_twice_and_told_twice() -> None:
    partition = MemoryPartition()

    def apply(done: tuple[Any, list[Output]]) -> int:
        partition.keep(RECORDS, done[0])
        return orjson.loads(done[1][-1].value or b"")["count"] if done[1] else -1

    assert apply(park(partition, TOPICS, "acme/Contact", {("r", "a"): [], ("r", "b"): []})) == 2
    assert apply(park(partition, TOPICS, "acme/Contact", {("r", "b"): [], ("r", "c|d"): []})) == 3
    assert apply(park(partition, TOPICS, "acme/Contact", {("r", "b"): ["delete"]})) == -1
    assert marks_of(partition.store(RECORDS).values[b"\x01parked|r|acme/Contact|b"]) == {"delete"}
    assert marks_of(b"1") == marks_of(None) == set()
    assert apply(told(partition, TOPICS, "r", [b"\x01parked|r|acme/Contact|a"])) == 2


def test_a_damaged_record_of_runs_says_nothing() -> None:
    hostile = [b"", b"{", b'{"kind": "refill"}', b'{"kind": "parked", "route": 3}', b'"refill"', b'["parked"]', None]
    records = [MemoryRecord("runs", n, b"k%d" % n, value) for n, value in enumerate(hostile)]
    good = Progress("r", "x", 0, 1, 0, 5, False, 1, 2)
    records.append(MemoryRecord("runs", 9, b"r/0", msgspec.json.encode(good)))
    assert set(refills_of(records)) == {"r"}
    assert parked_of(records) == {}
    assert refill.STEP_RECORDS == 200
