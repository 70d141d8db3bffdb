"""A swarm that a gate held is refused: it is dropped and nothing else, the target keeps what it has, and a refill brings it back."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.rules.merge import RecordState
from agents.rules.refused import is_refused
from agents.rules.takes import Takes, target_gate
from agents.tables import RECORDS, records_key
from agents.verify_targets import RouteCheck
from models.write import Op
from streams.pauses import DELETE, NULL
from streams.refills import Step
from streams.refusals import Refused, refusals_of
from tests.support.flows import CONTACTS
from tests.support.memory import MemoryRecord
from tests.support.pipeline import SETTINGS, TOPICS
from tests.support.toy_target import Target as ToyTarget
from tests.support.toy_target import ToyOptions
from tests.unit.test_process import ROW
from tests.unit.test_refill import Desk, fill, of

GATED = CONTACTS | {"gates": {"delete": 900, "null": 900}, "where": "Title != 'Secret'"}


class Room(Desk):
    """A desk whose route has gates and is held; what the target holds follows from the writes."""

    def __init__(self) -> None:
        super().__init__(contacts=GATED)
        self.target: dict[str, Any] = {}

    def take(self, outputs: Any) -> Any:
        made = super().take(outputs)
        for write in made:
            self.target[write.key] = write.body
        return made

    def refuse(self, gate: str, run: str = "r") -> Refused:
        refused = Refused(run, "contacts", gate, "why", 5)
        output = refused.output(TOPICS)
        self.runs[run.encode()] = MemoryRecord(output.topic, 0, output.key, output.value)
        self.paused.discard("contacts")
        self.holds.discard("contacts")
        self.ask(Step("contacts", refused=refused))
        return refused

    @property
    def dropped(self) -> int:
        return sum(one.dropped for one in refusals_of(self.runs.values()))

    def remembered(self, number: int) -> bool:
        raw = self.partition.store(RECORDS).values[records_key("acme/Contact", of(number))]
        return is_refused(RecordState.decode(raw, of(number)), self.way)

    @property
    def way(self) -> Any:
        return self.refill._maps.now.route("contacts").ways["acme/Contact"]

    async def tell(self, number: int, kind: str, body: dict[str, Any] | None = None) -> None:
        at = self.offsets["t.in.acme.Contact"] + 20
        await self.feed(self.change("Contact", of(number), kind, at, 1010 + at, body))


async def held(count: int = 4) -> Room:
    room = Room()
    await fill(room, count)
    room.pause("contacts")
    return room


async def test_refused_deletes_are_dropped_and_what_else_changed_is_told() -> None:
    room = await held()
    await room.tell(0, "DELETE")
    await room.tell(1, "UPDATE", {"Title": "Secret"})  # leaves the filter
    await room.tell(2, "UPDATE", {"Title": "new"})
    room.refuse(DELETE)
    writes = await room.all()
    assert [(w.op, w.key) for w in writes] == [(Op.WRITE, f"acme/{of(2)}")]
    assert (room.dropped, room.parked, room.steps) == (2, {}, [])
    assert [room.remembered(n) for n in range(4)] == [True, True, False, False], "for verify it is no difference"
    assert room.target[f"acme/{of(0)}"]["phone"] == "0", "the target keeps it"


async def test_refused_nulls_are_dropped_until_the_record_changes_and_only_those_of_that_field() -> None:
    room = await held()
    for n in (0, 1):
        await room.tell(n, "UPDATE", {"Title": None})
    await room.tell(1, "UPDATE", {"Title": "again"})
    await room.tell(2, "UPDATE", {"Phone": None})
    room.refuse(NULL + "Title")
    assert sorted(w.key for w in await room.all()) == [f"acme/{of(n)}" for n in (1, 2)]
    assert room.target[f"acme/{of(0)}"]["title"] == ROW["Title"]
    assert room.target[f"acme/{of(1)}"]["title"] == "again", "it was mended before"
    assert room.remembered(0)
    await room.tell(0, "UPDATE", {"Phone": "77"})
    assert (room.target[f"acme/{of(0)}"]["phone"], room.target[f"acme/{of(0)}"]["title"]) == ("77", None), "whole, as it is then"
    assert not room.remembered(0)


async def test_a_refill_tells_of_what_was_refused_and_it_is_refused_no_more() -> None:
    room = await held()
    await room.tell(0, "DELETE")
    room.refuse(DELETE)
    assert await room.all() == []
    room.ask(Step("contacts", "run"))
    assert f"acme/{of(0)}" in {w.key for w in await room.all() if w.op is Op.RELEASE}
    assert not room.remembered(0)


async def test_a_deleted_record_that_was_refused_and_comes_back_is_written() -> None:
    room = await held(1)
    await room.tell(0, "DELETE")
    room.refuse(DELETE)
    await room.all()
    await room.tell(0, "UNDELETE", {name: ROW[name] for name in ("Email", "FirstName", "LastName", "Phone", "AccountId")} | {"Title": "x"})
    assert room.target[f"acme/{of(0)}"]["title"] == "x"


@pytest.mark.parametrize("between", ["nothing", "pause", "refill", "crash"])
async def test_the_decision_stands_whatever_comes_between(between: str) -> None:
    room = await held(500)
    for n in range(450):
        await room.tell(n, "DELETE")
    room.refuse(DELETE)
    if between == "pause":
        room.pause("contacts")
        await room.step()
        room.go("contacts")
    if between == "crash":
        await room.step(crash=True)
    if between == "refill":
        room.ask(Step("contacts", "run"))  # tells of everything, after what was parked
    else:
        await room.step()
        room.ask(Step("contacts"))
    writes = await room.all()
    assert room.dropped == 450
    assert {w.op for w in writes} <= ({Op.WRITE, Op.RELEASE} if between == "refill" else set())
    assert not [key for key in room.partition.store(RECORDS).values if key.startswith((b"\x01parked", b"\x01ref"))], "nothing of it is left"


async def test_for_verify_what_was_refused_is_no_difference_and_what_a_gate_stops_is_held() -> None:
    room = await held(3)
    await room.tell(0, "DELETE")
    await room.tell(1, "DELETE")
    room.refuse(DELETE)
    await room.all()
    await room.tell(1, "UNDELETE", dict.fromkeys(("Email", "FirstName", "LastName", "Phone", "AccountId", "Title"), "x"))
    gate = target_gate(room.way.map.written, "Contact", {"phone": Takes(length=0)}, [], 0)
    check = RouteCheck(SETTINGS, room.flow, replace(room.way, beyond=gate), ToyTarget("warehouse", ToyOptions(), "t"), "run")
    for n in range(3):
        raw = room.partition.store(RECORDS).values[records_key("acme/Contact", of(n))]
        check.seen(of(n), RecordState.decode(raw, of(n)))
    assert check._refused == {of(0)}
    assert check._unfit - check._refused == {of(1), of(2)}
    assert check._keys == {}


KINDS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["delete", "back", "null", "phone", "fill"])), max_size=14)


@given(KINDS, st.sampled_from([DELETE, NULL + "Title", "spike"]))
@settings(max_examples=60, deadline=None)
def test_whatever_happened_meanwhile_each_record_is_told_or_refused(acts: list[tuple[int, str]], gate: str) -> None:
    asyncio.run(_told_or_refused(acts, gate))


async def _told_or_refused(acts: list[tuple[int, str]], gate: str) -> None:
    room = await held(6)
    before, gone = dict(room.target), set[int]()
    for n, act in acts:
        if act == "delete":
            gone.add(n)
            await room.tell(n, "DELETE")
        elif act == "back" and n in gone:
            gone.discard(n)
            await room.tell(n, "UNDELETE", {k: v for k, v in ROW.items() if isinstance(v, str)} | {"Phone": "back"})
        elif n not in gone and act in ("null", "phone", "fill"):
            await room.tell(n, "UPDATE", {"Phone": f"p{n}"} if act == "phone" else {"Title": None if act == "null" else "full"})
    touched = {n for n, act in acts}
    room.refuse(gate)
    told = {w.key for w in await room.all()}
    for n in touched:
        key = f"acme/{of(n)}"
        assert key not in told or not room.remembered(n)
        if key not in told:
            assert room.target[key] == before[key], "the target keeps what it had"
    assert room.parked == {}
