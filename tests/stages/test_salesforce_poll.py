"""Polling over real HTTP and Kafka: every change and delete arrives, whatever commits late, shares a stamp, dies or turns its clock."""

import asyncio
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.settings import Settings
from streams.publish import send
from streams.salesforce import poll
from streams.salesforce.cursors import Cursor, read_cursors
from streams.salesforce.positions import read_positions
from streams.salesforce.runs import snapshot_runs
from streams.topics import Topics
from tests.support import subscriber_process
from tests.support.salesforce import Desk, envelope_of, flow_for, inbound, repaired, subscribed, until

pytestmark = pytest.mark.kafka


def polling(desk: Desk, **connection: Any) -> Any:
    """Contacts are polled, Accounts subscribed to."""
    return flow_for(desk.url, poll={"Contact": 1}, **connection)


async def come(settings: Settings) -> dict[str, list[Any]]:
    """Rows of Contact that polling brought, by id, in the order of the topic; None for one that is gone."""
    found: dict[str, list[Any]] = {}
    for record in await inbound(settings, "Contact", bulk=True):
        envelope = envelope_of(record)
        if envelope.reason == "poll":
            found.setdefault((record.key or b"").decode(), []).append(orjson.loads(record.value or b"") if envelope.gone is None else None)
    return found


async def kept(desk: Desk) -> dict[str, Any]:
    return {r["Id"]: r for r in (await desk.call("GET", "records?type=Contact"))["records"]}


async def equal(settings: Settings, desk: Desk, task: "asyncio.Task[None] | None" = None, seconds: float = 40.0) -> dict[str, list[Any]]:
    """Until the newest row of each Contact that was ever read is what the org holds, deletes included, and all are there."""

    async def differing() -> list[str]:
        rows: dict[str, Any] = {}
        for record in await inbound(settings, "Contact", bulk=True):
            rows[(record.key or b"").decode()] = orjson.loads(record.value or b"")
        there = await kept(desk)
        return [
            id
            for id, r in there.items()
            if (id in rows or not r["IsDeleted"])
            and (id not in rows or (rows[id]["IsDeleted"], rows[id]["Name"]) != (r["IsDeleted"], r["Name"]))
        ]

    await until(differing, lambda found: not found, seconds, task)
    return await come(settings)


async def renamed(desk: Desk, *ids: str, to: str, **more: Any) -> None:
    changes = [{"op": "update", "type": "Contact", "id": id, "values": {"LastName": to}} for id in ids]
    await desk.call("POST", "transaction", changes=changes, **more)


async def test_it_reads_all_at_first_then_what_changes_and_hands_nothing_on_twice(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, polling(desk), snapshot=True) as task:
        await until(lambda: read_cursors(settings), lambda c: "acme/Contact" in c and not c["acme/Contact"].full, task=task)
        [run] = [r for r in (await snapshot_runs(settings)).values() if r.source == "acme/Contact"]
        made = [await desk.create(f"P{n}") for n in range(3)]
        await desk.delete(made[0])
        await renamed(desk, made[1], to="Again")
        rows = await equal(settings, desk, task)
        late = await desk.create("Later")
        rows = await until(lambda: come(settings), lambda r: late in r, task=task)
    assert (run.state, run.rows) == ("done", sum(not r["IsDeleted"] for id, r in (await kept(desk)).items() if id not in rows))
    assert rows[made[0]][-1]["IsDeleted"] and rows[made[1]][-1]["Name"].endswith("Again")
    for id in (*made, late):
        told = [orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in rows[id]]
        assert len(told) == len(set(told)), "a row that did not change came twice"
    assert await inbound(settings, "Contact") == [], "what is polled is not taken from the channel too"


async def test_five_hundred_rows_of_one_stamp_come_over_many_pages(settings: Settings, desk: Desk) -> None:
    changes = [{"op": "create", "type": "Contact", "values": {"LastName": f"Same {n}"}} for n in range(500)]
    async with subscribed(settings, polling(desk, page=70)) as task:
        await until(desk.state, lambda s: bool(s["sessions"]), task=task)
        made = (await desk.call("POST", "transaction", changes=changes))["ids"]
        await until(lambda: come(settings), lambda rows: rows.keys() >= set(made), task=task)


async def test_a_transaction_that_committed_minutes_after_its_stamps_is_seen(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, polling(desk)) as task:
        first = await desk.create("First")
        await until(lambda: come(settings), lambda rows: first in rows, task=task)
        change = {"op": "create", "type": "Contact", "values": {"LastName": "Late"}}
        made = await desk.call("POST", "transaction", late=240, changes=[change])
        await until(lambda: come(settings), lambda rows: made["ids"][0] in rows, task=task)


@pytest.mark.parametrize("turned", ["ahead", "behind"])
async def test_a_clock_of_the_org_that_is_wrong_for_a_while_hides_nothing(settings: Settings, desk: Desk, turned: str) -> None:
    async with subscribed(settings, polling(desk), snapshot=True) as task:
        await until(lambda: read_cursors(settings), lambda c: "acme/Contact" in c and not c["acme/Contact"].full, task=task)
        made = [await desk.create("Before")]
        await until(lambda: come(settings), lambda rows: made[-1] in rows, task=task)
        await desk.fault("clock-skew", variant=turned, seconds=7200)
        made.append(await desk.create("Meanwhile"))
        await until(lambda: come(settings), lambda rows: made[-1] in rows, task=task)
        await desk.call("DELETE", "faults")
        made.append(await desk.create("After"))
        await renamed(desk, *made, to="All")
        await equal(settings, desk, task)


async def test_a_record_purged_between_two_rounds_is_gone(settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll, "DELETED_SECONDS", 0)
    async with subscribed(settings, polling(desk)) as task:
        bin, erased = [await desk.create(name) for name in ("In the bin", "Erased")]
        await until(lambda: come(settings), lambda rows: {bin, erased} <= rows.keys(), task=task)
        await desk.delete(bin)
        await desk.delete(erased)
        await desk.call("POST", "purge", type="Contact", ids=[erased])
        await desk.fault("clock-skew", variant="ahead", seconds=60)  # the question knows whole minutes
        rows = await until(lambda: come(settings), lambda rows: rows[erased][-1] is None, task=task)
    assert rows[bin][-1] is not None and rows[bin][-1]["IsDeleted"]


@pytest.mark.parametrize(("days", "full"), [(14, False), (16, True)])
async def test_a_cursor_older_than_the_recycle_bin_begins_with_a_full_reading(
    settings: Settings, desk: Desk, days: int, full: bool
) -> None:
    gone = next(iter(await kept(desk)))
    await desk.delete(gone)
    old = Cursor("acme/Contact", int(time.time()) - days * 86_400, org=(await desk.state())["orgId"][:15])
    await send(settings, [old.output(Topics(settings.installation))])
    async with subscribed(settings, polling(desk), snapshot=True) as task:
        made = await desk.create("New")
        await until(lambda: come(settings), lambda rows: made in rows, task=task)
        runs = [(r.by, r.state) for r in (await snapshot_runs(settings)).values() if r.source == "acme/Contact"]
        rows = {(r.key or b"").decode(): orjson.loads(r.value or b"") for r in await inbound(settings, "Contact", bulk=True)}
    assert runs == ([("repair", "done")] if full else [])
    assert rows[gone]["IsDeleted"], "deleted records are read too: the targets may hold them"
    assert (len(rows) == 29) is full


async def test_kill_9_between_pages_and_lost_sessions_leave_nothing_out(settings: Settings, desk: Desk, tmp_path: Path) -> None:
    flow = polling(desk, page=20)
    options: dict[str, Any] = {"start_from": "new", "snapshot": True, "pause_seconds": 0.3}
    for fault in ("page-size", "html-503", "empty-body"):
        await desk.fault(fault, times=4)
    await desk.call("POST", "change", rate=40, seconds=5)
    process = await subscriber_process.start(settings, flow, "subscribe", log=tmp_path / "log", **options)
    await until(lambda: inbound(settings, "Contact", bulk=True), lambda found: len(found) > 60)
    await desk.fault("expire-token")
    await subscriber_process.end(process, kill=True)
    process = await subscriber_process.start(settings, flow, "subscribe", log=tmp_path / "log", **options)
    try:
        await until(lambda: desk.call("GET", "change"), lambda c: all(r["finished"] for r in c["runs"]))
        await equal(settings, desk, seconds=60)
    finally:
        await subscriber_process.end(process)


async def test_an_object_that_cannot_be_read_is_said_and_the_others_go_on(settings: Settings, desk: Desk) -> None:
    flow = flow_for(desk.url, poll={"Contact": 1, "Account": 1})
    await desk.call("POST", "users", username="integration@example.org", closed=["Account"])
    async with subscribed(settings, flow) as task:
        made = await desk.create("There")
        await until(lambda: come(settings), lambda rows: made in rows, task=task)
        assert not task.done()
    assert (await desk.state())["sessions"] == [], "nothing comes by events, so none are subscribed to"


@pytest.mark.parametrize("poll_accounts", [True, False], ids=["poll only", "beside a subscription"])
async def test_in_another_org_the_epoch_rises_once_and_all_is_read_again_with_what_is_there_no_more(
    settings: Settings, desk: Desk, poll_accounts: bool
) -> None:
    flow = flow_for(desk.url, poll={"Contact": 1} | ({"Account": 1} if poll_accounts else {}))
    absent = "003Qx0000000001IAA"

    async def living(source: str) -> set[str]:
        return {absent} if source == "acme/Contact" else set()

    async with subscribed(settings, flow, snapshot=True, living=living) as task:
        await until(lambda: read_cursors(settings), lambda c: "acme/Contact" in c and not any(one.full for one in c.values()), task=task)
        [run] = [r for r in (await snapshot_runs(settings)).values() if r.source == "acme/Contact"]
        assert await epochs(settings, run.run) == {1}
        await desk.fault("org-migration", variant="org")
        found = await repaired(settings, 2, task)
        assert {(i.source, i.cause) for i in found} == {("acme/Contact", "org changed"), ("acme/Account", "org changed")}
        [contacts] = [i for i in found if i.source == "acme/Contact"]
        assert (contacts.rows, contacts.gone) == (len(await kept(desk)), 1)
        made = await desk.create("There")
        await until(lambda: come(settings), lambda rows: made in rows, task=task)
    again = [run.run for run in (await snapshot_runs(settings)).values() if run.by == "repair"]
    for one in again:
        assert await epochs(settings, one) == {2}
    assert {envelope_of(r).epoch for r in await inbound(settings, "Contact", bulk=True) if r.key == made.encode()} == {2}
    [position] = (await read_positions(settings)).values()
    assert (position.epoch, position.org) == (2, (await desk.state())["orgId"][:15])


async def epochs(settings: Settings, run: str) -> set[int | None]:
    """Of the rows of Contact and Account that a run brought."""
    told = [envelope_of(r) for r in await inbound(settings, "Contact", "Account", bulk=True)]
    return {one.epoch for one in told if one.run == run}
