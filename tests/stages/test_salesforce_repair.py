"""What Salesforce withholds is read again: by id, or everything that changed since; the proof is kept, and a killed repair goes on."""

import time

import orjson
import pytest

from models.settings import Settings
from streams.publish import send
from streams.salesforce.incidents import Incident, read_incidents
from streams.salesforce.runs import Run
from streams.topics import Topics
from tests.support.salesforce import (
    Desk,
    change,
    connected,
    envelope_of,
    first_came,
    flow_for,
    inbound,
    repaired,
    subscribed,
    until,
)

pytestmark = pytest.mark.kafka
A = "003Qx00000Ke4RtIAJ"


async def test_a_gap_is_read_again_by_id_and_what_is_no_more_is_said(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url)) as task:
        there = await first_came(settings, desk, task)
        await desk.emit(change(there, A, second=int(time.time()), kind="GAP_UPDATE"))
        [closed] = await repaired(settings, 1, task)
    assert (closed.cause, closed.rows, closed.gone, closed.calls) == ("gap", 1, 1, 2), "one to read, one to see that it is not hidden"
    rows = {(r.key or b"").decode(): envelope_of(r) for r in (await inbound(settings, "Contact"))[1:]}
    assert {key: (e.reason, e.gone is None) for key, e in rows.items()} == {there: ("repair", True), A: ("repair", False)}


async def test_an_overflow_reads_again_what_changed_about_then_with_what_was_deleted(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        ids = [await desk.create(f"P{n}") for n in range(3)]
        await desk.delete(ids[0])
        await desk.emit(change("000000000000000AAA", second=int(time.time()), kind="GAP_OVERFLOW"))
        [closed] = await repaired(settings, 1, task)
    rows = {(r.key or b"").decode(): orjson.loads(r.value or b"")["IsDeleted"] for r in await inbound(settings, "Contact", bulk=True)}
    assert {id: rows[id] for id in ids} == {ids[0]: True, ids[1]: False, ids[2]: False}
    assert closed.rows == len(rows)


async def test_a_subscriber_that_was_killed_before_the_repair_repairs_at_its_next_start(settings: Settings, desk: Desk) -> None:
    flow = flow_for(desk.url)
    async with subscribed(settings, flow) as task:
        there = await first_came(settings, desk, task)
    opened = [Incident(f"gap {n}", "acme/Contact", "gap", "made up", (there,), opened=n) for n in range(3)]
    opened.append(Incident("other org", "other/Contact", "gap", "made up", (there,)))
    await send(settings, [incident.output(Topics(settings.installation)) for incident in opened])
    async with subscribed(settings, flow, start_from=None) as task:
        closed = await repaired(settings, 3, task)
    assert [i.calls for i in closed] == [1, 1, 1], "all in one call"
    assert [i.state for i in (await read_incidents(settings)).values() if i.source == "other/Contact"] == ["open"]


async def test_what_cannot_be_read_again_is_a_failed_incident_and_the_others_are_repaired(settings: Settings, desk: Desk) -> None:
    bad = Incident("bad", "acme/Contact", "gap", "made up", ("003'; DROP",), opened=1)
    good = Incident("good", "acme/Contact", "overflow", "made up", opened=2)
    await send(settings, [one.output(Topics(settings.installation)) for one in (bad, good)])
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        found = await until(lambda: read_incidents(settings), lambda r: all(i.state != "open" for i in r.values()), task=task)
    assert {i.id: i.state for i in found.values()} == {"bad": "failed", "good": "closed"}


async def test_no_clock_decides_what_a_run_answers_for(settings: Settings, desk: Desk) -> None:
    """One incident was opened by a clock a day ahead; another, by one a day behind, while the run of the first was under way and killed."""
    now, day = int(time.time() * 1000), 86_400_000
    ahead = Incident("ahead", "acme/Contact", "overflow", "made up", opened=now + day)
    begun = Incident("begun", "acme/Account", "overflow", "made up", opened=now - 2 * day)
    behind = Incident("behind", "acme/Account", "overflow", "made up", opened=now - day)
    run = Run(run=f"repair-begun-{begun.opened}", source="acme/Account", state="running", by="repair", last="001", started=now)
    await send(settings, [one.output(Topics(settings.installation)) for one in (ahead, begun, behind, run)])
    async with subscribed(settings, flow_for(desk.url)) as task:
        closed = {i.id: i for i in await repaired(settings, 3, task)}
    assert f"run {run.run} " in closed["begun"].proof
    assert "run repair-behind-" in closed["behind"].proof
