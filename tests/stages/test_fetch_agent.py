"""The fetch agent against a sandbox org: rows by id, gone ones, bad requests, an org that is away."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from agents import fetch
from agents.fetch import Fetch, fetch_stage
from agents.guard import Guard
from models.envelope import Envelope, Kind, Reason
from models.record_id import id18
from models.settings import Settings
from streams.engine.stage import Chunk, Output
from streams.publish import send
from streams.salesforce.limits import Step
from streams.salesforce.positions import Position, output
from streams.salesforce.rest import IDS_PER_CALL
from streams.topics import Topics
from tests.support.memory import MemoryPartition, MemoryRecord
from tests.support.salesforce import FIELDS, Desk, flow_for, org, until

pytestmark = pytest.mark.kafka


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        yield found


class Bench:
    """A fetch agent, and chunks for it."""

    def __init__(self, settings: Settings, desk: Desk, fields: Any = FIELDS, **connection: Any) -> None:
        self.settings, self.topic = settings, Topics(settings.installation).fetch("acme")
        guard = Guard("fetch", "acme", probe_seconds=0.2, base=0.05, cap=0.2)
        self.agent = Fetch("acme", flow_for(desk.url, **connection), settings, fields, guard=guard)
        self.offset = 0

    def record(self, value: Any, headers: list[tuple[str, bytes]] | None = None) -> MemoryRecord:
        self.offset += 1
        raw = value if isinstance(value, bytes) else orjson.dumps(value)
        return MemoryRecord(self.topic, self.offset, b"k", raw, headers or [("reason", b"fetch")])

    async def ask(self, *values: Any, headers: list[tuple[str, bytes]] | None = None, partition: int = 0) -> tuple[list[Output], list[Any]]:
        chunk = Chunk(self.topic, partition, [self.record(v, headers) for v in values])
        result = await self.agent(chunk, MemoryPartition(partition))
        inbound = Topics(self.settings.installation).inbound("acme/Contact")
        rows = [o for o in result.outputs if o.topic == inbound]
        return rows, [orjson.loads(o.value or b"") for o in result.outputs if o.topic not in (inbound,)]


@pytest.fixture
async def bench(settings: Settings, desk: Desk) -> AsyncIterator[Bench]:
    found = Bench(settings, desk)
    yield found
    await found.agent.close()


def envelope(out: Output) -> Envelope:
    return Envelope.from_headers(out.headers)


async def calls(desk: Desk) -> int:
    return int((await desk.state())["counts"].get("rest requests", 0))


async def test_a_record_comes_back_as_a_row_with_the_position_before_the_read(bench: Bench, desk: Desk) -> None:
    person = await desk.create("Ames")
    [row], dead = await bench.ask({"sobject": "Contact", "id": person})
    found = envelope(row)
    assert (dead, row.key, found.kind, found.reason, found.began, found.epoch, found.gone) == (
        [],
        person.encode(),
        Kind.ROW,
        Reason.FETCH,
        -1,
        1,
        None,
    )
    assert orjson.loads(row.value or b"")["Id"] == person
    stored = Position(3, 4711, 1, "00D", "x", 1, "new")
    await send(bench.settings, [output(Topics(bench.settings.installation), "acme", "/data/ChangeEvents", stored)])
    [row], _ = await bench.ask({"sobject": "Contact", "id": person})
    assert (envelope(row).began, envelope(row).epoch, envelope(row).channel) == (4711, 3, "/data/ChangeEvents")


async def test_run_and_route_of_a_request_come_back_with_the_row(bench: Bench, desk: Desk) -> None:
    person = await desk.create("Ames")
    [row], _ = await bench.ask({"sobject": "Contact", "id": person}, headers=[("reason", b"redrive"), ("run", b"r1"), ("route", b"people")])
    found = envelope(row)
    assert (found.reason, found.run, found.route) == (Reason.REDRIVE, "r1", "people")


async def test_the_same_id_twice_in_a_chunk_is_read_and_answered_once(bench: Bench, desk: Desk) -> None:
    person = await desk.create("Ames")
    rows, _ = await bench.ask(*[{"sobject": "Contact", "id": person}] * 3, {"sobject": "Contact", "id": person[:15]})
    assert len(rows) == 1


async def test_an_id_that_is_not_there_is_gone_and_a_deleted_one_says_so(bench: Bench, desk: Desk) -> None:
    person = await desk.create("Ames")
    await desk.call("POST", "transaction", changes=[{"op": "delete", "type": "Contact", "id": person}])
    nobody = person[:-3][:-4] + "zzzz"
    rows, dead = await bench.ask({"sobject": "Contact", "id": person}, {"sobject": "Contact", "id": nobody})
    by_key = {(o.key or b"").decode()[:15]: o for o in rows}
    assert dead == []
    assert orjson.loads(by_key[person[:15]].value or b"")["IsDeleted"] is True
    assert envelope(by_key[person[:15]]).gone is None
    assert isinstance(envelope(by_key[nobody]).gone, int)
    assert set(orjson.loads(by_key[nobody].value or b"")) == {"attributes", "Id"}


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{",
        {"sobject": "Contact"},
        {"sobject": "Contact", "id": 5},
        {"sobject": "Contact", "id": ""},
        {"sobject": "Contact", "id": "003' OR Name != '"},
        {"sobject": "Contact", "id": "003" + "é" * 12},
        {"sobject": "Contact", "id": "x" * 100_000},
        {"sobject": "Nothing__c", "id": "003Qx00000Ke4RtIAJ"},
        {"sobject": "Contact WHERE", "id": "003Qx00000Ke4RtIAJ"},
    ],
    ids=repr,
)
async def test_a_bad_request_is_a_dead_letter_and_its_neighbours_are_answered(bench: Bench, desk: Desk, bad: Any) -> None:
    person = await desk.create("Ames")
    rows, dead = await bench.ask(bad, {"sobject": "Contact", "id": person})
    assert [o.key for o in rows] == [person.encode()]
    [letter] = dead
    assert (letter["stage"], letter["redrive_to"]) == ("fetch", bench.topic)


async def test_a_field_that_is_not_there_makes_dead_letters_that_name_it(settings: Settings, desk: Desk) -> None:
    bench = Bench(settings, desk, {"acme/Contact": ("Id", "Shoe_Size__c")})
    try:
        people = [await desk.create(f"Ames {n}") for n in range(3)]
        before = await calls(desk)
        rows, dead = await bench.ask(*({"sobject": "Contact", "id": p} for p in people))
        assert rows == []
        assert [letter["field"] for letter in dead] == ["Shoe_Size__c"] * 3
        assert await calls(desk) - before == 1
    finally:
        await bench.agent.close()


async def test_a_burst_shares_calls(bench: Bench, desk: Desk) -> None:
    people = [await desk.create(f"Ames {n}") for n in range(40)]
    await bench.ask({"sobject": "Contact", "id": people[0]})  # logged in
    before = await calls(desk)
    answers = await asyncio.gather(*(bench.ask({"sobject": "Contact", "id": p}, partition=n) for n, p in enumerate(people)))
    assert sorted((o.key or b"").decode() for rows, _ in answers for o in rows) == sorted(people)
    assert await calls(desk) - before <= 5


@pytest.mark.parametrize(
    ("fault", "options"), [("html-503", {"variant": "rest", "times": 3}), ("expire-token", {}), ("empty-body", {"variant": "rest"})]
)
async def test_an_org_that_is_away_is_waited_for(bench: Bench, desk: Desk, fault: str, options: dict[str, Any]) -> None:
    person = await desk.create("Ames")
    await desk.fault(fault, **options)
    rows, dead = await bench.ask({"sobject": "Contact", "id": person})
    assert (len(rows), dead) == (1, [])


async def test_when_calls_run_short_ids_wait_for_each_other_and_a_full_call_waits_for_nobody(
    bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [await desk.create(f"Ames {n}") for n in range(3)]
    budget = bench.agent._rest._login.budget
    budget.most = 100
    budget._keep(80)
    assert budget.step >= Step.BATCH
    monkeypatch.setattr(fetch, "GATHER_SECONDS", 3600.0)
    asked = []
    for number, person in enumerate(people):
        asked.append(asyncio.create_task(bench.ask({"sobject": "Contact", "id": person}, partition=number)))
        await until(lambda: asyncio.sleep(0, list(bench.agent._open.get("Contact", fetch._Batch()).ids)), people[: number + 1].__eq__)
    bench.agent._open["Contact"].full.set()  # as if the time were over
    assert [len(rows) for rows, _ in await asyncio.gather(*asked)] == [1, 1, 1]
    assert await calls(desk) == 1
    monkeypatch.setattr(fetch, "GATHER_SECONDS", 0.01)
    assert len((await bench.ask({"sobject": "Contact", "id": people[0]}))[0]) == 1, "nor for ever"
    monkeypatch.setattr(fetch, "GATHER_SECONDS", 3600.0)
    budget.most = 100  # the org's own figure has come with the reply
    many = [{"sobject": "Contact", "id": id18(f"003Qx00000{n:05d}")} for n in range(IDS_PER_CALL)]
    async with asyncio.timeout(60):
        rows, _ = await bench.ask(*many)
    assert len(rows) == IDS_PER_CALL


def through(*parents: str, after: str = "", by: str = "AccountId") -> dict[str, Any]:
    return {"sobject": "Contact", "through": by, "parents": list(parents), "after": after}


async def family(desk: Desk, children: int) -> tuple[str, list[str]]:
    account = await desk.create("House", "Account")
    changes = [{"op": "create", "type": "Contact", "values": {"LastName": f"C{n}", "AccountId": account}} for n in range(children)]
    return account, sorted((await desk.call("POST", "transaction", changes=changes))["ids"])


async def test_children_of_many_parents_share_a_call_and_each_comes_once(bench: Bench, desk: Desk) -> None:
    families = [await family(desk, 2) for _ in range(5)]
    await desk.create("Nobody's")
    await bench.ask({"sobject": "Contact", "id": families[0][1][0]})  # logged in
    before = await calls(desk)
    rows, others = await bench.ask(*(through(account) for account, _ in families), through(families[0][0]))
    assert sorted((o.key or b"").decode() for o in rows) == sorted(c for _, children in families for c in children)
    assert (others, await calls(desk) - before, {envelope(o).reason for o in rows}) == ([], 1, {Reason.PARENT})


async def test_many_children_come_page_by_page_through_the_bulk_lane(settings: Settings, desk: Desk) -> None:
    bench = Bench(settings, desk, page=250)
    account, children = await family(desk, 600)
    bulk, pages, wanted = Topics(settings.installation).inbound("acme/Contact", bulk=True), [], [through(account)]
    try:
        while wanted:
            chunk = Chunk(bench.topic, 0, [bench.record(wanted.pop())])
            result = await bench.agent(chunk, MemoryPartition(0))
            pages.append([(o.key or b"").decode() for o in result.outputs if o.topic == bulk])
            wanted = [orjson.loads(o.value or b"") for o in result.outputs if o.topic == bench.topic]
            assert len(result.outputs) == len(pages[-1]) + len(wanted), "none in the live lane, none dead"
    finally:
        await bench.agent.close()
    assert [len(page) for page in pages] == [250, 250, 100]
    assert [child for page in pages for child in page] == children


async def test_children_of_parents_that_changed_since_come_whoever_they_are(bench: Bench, desk: Desk) -> None:
    families = [await family(desk, 2) for _ in range(3)]
    await desk.create("Nobody's")
    wanted = {"sobject": "Contact", "through": "AccountId", "since": int(time.time()) + 3600, "after": ""}
    assert await bench.ask(wanted) == ([], [])
    before = await calls(desk)
    rows, others = await bench.ask(wanted, wanted | {"since": int(time.time()) - 60})
    assert sorted((o.key or b"").decode() for o in rows) == sorted(c for _, children in families for c in children)
    assert (others, await calls(desk) - before) == ([], 1)
    rows, _ = await bench.ask(wanted | {"since": 0}, wanted | {"since": 2**62})
    assert len(rows) == 6, "of all who have a parent"


@pytest.mark.parametrize(
    "bad",
    [
        through(),
        through("001' OR Name != '"),
        through("001Qx00000Ke4RtIAJ", after="'"),
        through("001Qx00000Ke4RtIAJ", by="AccountId IN () OR Id"),
        through("001Qx00000Ke4RtIAJ", by="Nothing__c"),
        through(*["001Qx00000Ke4RtIAJ"] * 201),
        {"sobject": "Contact", "through": None, "parents": [], "after": ""},
        through("001Qx00000Ke4RtIAJ") | {"since": 5},
        through() | {"since": True},
        through() | {"since": "1970"},
        through(by="Account.Owner") | {"since": 0},
        {"sobject": "Nothing__c", "through": "AccountId", "parents": ["001Qx00000Ke4RtIAJ"], "after": ""},
    ],
    ids=lambda bad: str(bad)[:60],
)
async def test_a_bad_request_for_children_is_a_dead_letter(bench: Bench, desk: Desk, bad: Any) -> None:
    person = await desk.create("Ames")
    rows, dead = await bench.ask(bad, {"sobject": "Contact", "id": person})
    assert [o.key for o in rows] == [person.encode()]
    assert [letter["stage"] for letter in dead] == ["fetch"]


async def test_a_row_of_a_moment_ago_answers_the_events_it_was_read_behind_and_no_other(
    bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "KEPT_SECONDS", 3600.0)
    person = await desk.create("Ames")
    await send(
        bench.settings,
        [output(Topics(bench.settings.installation), "acme", "/data/ChangeEvents", Position(1, 10, 1, "00D", "x", 1, "new"))],
    )

    async def read(position: int | None, epoch: int = 1) -> int:
        before = await calls(desk)
        headers = [("epoch", b"%d" % epoch), ("position", b"%d" % position)] if position is not None else [("reason", b"fetch")]
        rows, dead = await bench.ask({"sobject": "Contact", "id": person}, headers=headers)
        assert (len(rows), dead, envelope(rows[0]).began) == (1, [], 10)
        return await calls(desk) - before

    assert await read(8) == 1
    assert [await read(8), await read(9), await read(10)] == [0, 0, 0]
    assert [await read(11), await read(3, epoch=2), await read(None)] == [1, 1, 1]


async def test_the_stage_reads_the_requests_of_its_connection(settings: Settings, desk: Desk) -> None:
    stage = fetch_stage("acme", flow_for(desk.url), settings, FIELDS)
    assert (stage.live, stage.bulk, stage.tables) == ((f"{settings.installation}.fetch.acme",), (), ())
