"""Where a channel begins, and what happens when its position is lost: first starts, refused positions, another org, empty news."""

import asyncio
import time
from collections import Counter
from dataclasses import replace

import orjson
import pytest

from models.errors import SettingsError
from models.settings import Settings
from streams.publish import send
from streams.salesforce.cursors import Cursor
from streams.salesforce.positions import output, read_positions
from streams.salesforce.runs import snapshot_runs
from streams.salesforce.subscriber import run_subscriber
from streams.topics import Topics
from tests.support.salesforce import (
    FIELDS,
    Desk,
    arrived,
    change,
    connected,
    envelope_of,
    first_came,
    flow_for,
    inbound,
    letters,
    repaired,
    subscribed,
    until,
)

pytestmark = pytest.mark.kafka
KEY = "acme|/data/ChangeEvents"
A = "003Qx00000Ke4RtIAJ"


async def test_without_a_position_it_refuses_to_guess_where_to_begin(settings: Settings, desk: Desk) -> None:
    with pytest.raises(SettingsError, match="--from new"):
        await run_subscriber(settings, flow_for(desk.url), "acme", FIELDS, start_from=None, stop=asyncio.Event())


async def test_from_retained_brings_what_salesforce_still_keeps(settings: Settings, desk: Desk) -> None:
    await desk.emit(change(A, second=int(time.time()) - 7200))
    async with subscribed(settings, flow_for(desk.url), start_from="retained") as task:
        await until(lambda: arrived(settings, "Contact"), lambda found: [key for _, key in found] == [A], task=task)


async def test_a_first_start_reads_every_record_once_after_the_subscription_stands(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url), snapshot=True) as task:
        await until(lambda: snapshot_runs(settings), lambda r: len(r) == 2 and all(x.state == "done" for x in r.values()), task=task)
    for sobject in ("Contact", "Account"):
        kept = (await desk.call("GET", f"records?type={sobject}"))["records"]
        keys = Counter((r.key or b"").decode() for r in await inbound(settings, sobject, bulk=True))
        assert keys == Counter(r["Id"] for r in kept if not r["IsDeleted"])
    async with subscribed(settings, flow_for(desk.url), snapshot=True, start_from=None) as task:
        await connected(desk, task)
    assert len(await snapshot_runs(settings)) == 2


async def test_a_refused_position_is_told_and_made_up_for_and_nothing_retained_is_lost(settings: Settings, desk: Desk) -> None:
    flow = flow_for(desk.url)
    async with subscribed(settings, flow) as task:
        first = await first_came(settings, desk, task)
    lost = await desk.create("Lost to retention")
    last = (await desk.state())["lastReplayId"]
    later = await desk.create("Retained")
    await desk.call("POST", "retention", upto=last)
    async with subscribed(settings, flow, start_from=None) as task:
        await until(lambda: arrived(settings, "Contact"), lambda found: [key for _, key in found] == [first, later], task=task)
        closed = await repaired(settings, 2, task)
    assert {(i.source, i.cause) for i in closed} == {("acme/Contact", "position refused"), ("acme/Account", "position refused")}
    assert await letters(settings) == []
    assert {lost, later, first} <= {(r.key or b"").decode() for r in await inbound(settings, "Contact", bulk=True)}
    assert (await read_positions(settings))[KEY].refused is False


async def test_another_org_raises_the_epoch_and_reads_everything_again(settings: Settings, desk: Desk) -> None:
    flow = flow_for(desk.url)
    async with subscribed(settings, flow) as task:
        person = await first_came(settings, desk, task)
    at = (await read_positions(settings))[KEY]
    await send(settings, [output(Topics(settings.installation), "acme", "/data/ChangeEvents", replace(at, org="00Dother"))])
    async with subscribed(settings, flow, start_from=None) as task:
        await connected(desk, task)
        await desk.update(person, "after")
        await until(lambda: arrived(settings, "Contact"), lambda found: len(found) >= 2, task=task)
        closed = await repaired(settings, 2, task)
    assert {envelope_of(r).epoch for r in (await inbound(settings, "Contact"))[1:]} == {2}
    assert {(i.cause, i.since) for i in closed} == {("org changed", 0)}


async def test_positions_that_go_back_begin_a_new_epoch_in_the_session_and_are_refused_after_it(settings: Settings, desk: Desk) -> None:
    flow = flow_for(desk.url)
    async with subscribed(settings, flow) as task:
        person = await first_came(settings, desk, task)
        before = (await read_positions(settings))[KEY]
        await asyncio.sleep(1.1)  # an epoch is told by the second of a commit
        await desk.fault("org-migration", variant="ids")
        await desk.update(person, "after")
        await until(lambda: arrived(settings, "Contact"), lambda found: len(found) == 2, task=task)
        at = (await read_positions(settings))[KEY]
        assert at.epoch == before.epoch + 1 and (at.position or 0) < (before.position or 0)
    await desk.fault("org-migration", variant="ids")
    await desk.update(person, "while nobody listened")
    async with subscribed(settings, flow, start_from=None) as task:
        closed = await repaired(settings, 2, task)
        await desk.update(person, "last")
        await until(lambda: read_positions(settings), lambda found: found[KEY].epoch == at.epoch + 1, task=task)
    assert {i.cause for i in closed} == {"position refused"}
    row = next(orjson.loads(r.value or b"") for r in await inbound(settings, "Contact", bulk=True) if r.key == person.encode())
    assert row["Id"] == person


async def test_what_was_polled_from_another_org_neither_wins_over_a_first_subscription_nor_stays(settings: Settings, desk: Desk) -> None:
    absent = "003Qx0000000001IAA"
    await send(settings, [Cursor("acme/Contact", int(time.time()), org="00Dother").output(Topics(settings.installation))])

    async def living(source: str) -> set[str]:
        return {absent} if source == "acme/Contact" else set()

    async with subscribed(settings, flow_for(desk.url), snapshot=True, living=living) as task:
        await connected(desk, task)
        made = await desk.create("There")
        await until(lambda: arrived(settings, "Contact"), lambda found: [key for _, key in found] == [made], task=task)
        [contacts] = await repaired(settings, 1, task)
        await until(lambda: snapshot_runs(settings), lambda r: len(r) == 2 and all(x.state == "done" for x in r.values()), task=task)
    assert (contacts.source, contacts.cause, contacts.gone) == ("acme/Contact", "org changed", 1)
    assert {(r.source, r.by) for r in (await snapshot_runs(settings)).values()} == {("acme/Contact", "repair"), ("acme/Account", "first")}
    come = [*await inbound(settings, "Contact", "Account"), *await inbound(settings, "Contact", "Account", bulk=True)]
    assert {envelope_of(r).epoch for r in come} == {2}


async def test_what_tells_nothing_is_a_dead_letter_or_an_incident_and_the_channel_goes_on(settings: Settings, desk: Desk) -> None:
    now = int(time.time())
    bad = [
        change(A, second=now, kind="GAP_UPDATE"),
        change("000000000000000AAA", second=now, kind="GAP_OVERFLOW"),
        change("003*", second=now),
        {"data": {"payload": {"Made_Up__c": 1}}, "channel": "/data/ChangeEvents"},
    ]
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        await desk.emit(*bad, change("00QQx00000Lm5NzMAJ", second=now, sobject="Lead"), change(A, second=now))
        found = await until(lambda: arrived(settings, "Contact"), bool, task=task)
        await repaired(settings, 3, task)
    assert {key for _, key in found} == {A}
    assert len(await letters(settings)) == 1
    assert (await read_positions(settings))[KEY].position == (await desk.state())["lastReplayId"]


async def test_a_commit_of_hundreds_of_events_comes_in_whole(settings: Settings, desk: Desk) -> None:
    await desk.emit(*(change(A, second=int(time.time())) for _ in range(1300)))
    async with subscribed(settings, flow_for(desk.url), start_from="retained") as task:
        found = await until(lambda: arrived(settings, "Contact"), lambda a: len(a) >= 1300, task=task)
    assert len(found) == len(set(found)) == 1300
