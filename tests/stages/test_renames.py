"""Renames of parents on the real wire, however they become known; each asks for the records that show it, and no other change does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.salesforce import parent_polls
from streams.salesforce.incidents import read_incidents
from streams.salesforce.subscriber import run_subscriber
from streams.topics import Topics
from tests.support.salesforce import FIELDS, Desk, connected, flow_for, org, until

pytestmark = pytest.mark.kafka
SHOWN = FIELDS | {"acme/Contact": (*FIELDS["acme/Contact"], "AccountId", "Account.Name", "Owner.Name")}
CONTACTS = {"acme/Contact": (*FIELDS["acme/Contact"], "AccountId", "Account.Name")}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(10) as found:
        yield found


def contacts(flow: Flow) -> Flow:
    """Of the flow only Contacts: their Accounts come by the channel, and no route reads them."""
    return flow.model_copy(update={"routes": {"people": flow.routes["people"].model_copy(update={"sources": ("acme/Contact",)})}})


@asynccontextmanager
async def following(settings: Settings, flow: Flow, fields: Any = SHOWN, start: Any = "new") -> AsyncIterator["asyncio.Task[None]"]:
    stop = asyncio.Event()
    task = asyncio.create_task(
        run_subscriber(settings, flow, "acme", fields, start_from=start, stop=stop, snapshot=False, pause_seconds=0.3)
    )
    try:
        yield task
    finally:
        stop.set()
        await task


async def requests(settings: Settings) -> list[Any]:
    """What is asked for: by which way, and of whom or since when."""
    found = [orjson.loads(r.value or b"") for r in await read_all(settings, Topics(settings.installation).fetch("acme"))]
    return [(f["sobject"], f["through"], f["parents"][0] if "parents" in f else f["since"]) for f in found]


async def change(desk: Desk, sobject: str, record: str, **values: Any) -> None:
    await desk.call("POST", "transaction", changes=[{"op": "update", "type": sobject, "id": record, "values": values}])


async def test_a_renamed_account_and_a_renamed_user_ask_for_their_children_once(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_polls, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr("streams.salesforce.beside.EVERY", 0.2)
    account = await desk.create("Before", "Account")
    user = next(iter(desk.sandbox.org.store.tables["User"].rows))
    channels = ["/data/ContactChangeEvent", "/data/AccountChangeEvent"]  # none of users
    flow = flow_for(desk.url, channels=channels)
    by_account, by_user = ("Contact", "AccountId", account), ("Contact", "OwnerId", user)
    async with following(settings, flow) as task:
        for channel in channels:
            await connected(desk, task, channel)
        await change(desk, "Account", account, Phone="1")
        await change(desk, "Account", account, Name="After")
        await until(lambda: requests(settings), lambda found: found == [by_account], task=task)
        await change(desk, "User", user, LastName="Married")
        await until(lambda: requests(settings), lambda found: by_user in found, task=task)
    before = await requests(settings)
    async with following(settings, flow) as task:
        for channel in channels:
            await connected(desk, task, channel)
        await change(desk, "Account", account, Name="Again")
        await until(lambda: requests(settings), lambda found: found.count(by_account) == 2, task=task)
    assert before.count(by_account) == 1, "no change of another field asks"


async def test_what_was_withheld_of_a_parent_asks_for_the_children_of_all_that_changed_since(settings: Settings, desk: Desk) -> None:
    """An overflow, and a refused position, of an Account that no route reads."""
    account, flow = await desk.create("Before", "Account"), contacts(flow_for(desk.url))
    renamed = {"op": "update", "type": "Account", "id": account, "values": {"Name": "After"}}
    began = int(time.time())
    async with following(settings, flow, CONTACTS) as task:
        await connected(desk, task)
        await desk.call("POST", "gap", changes=[renamed], deliver="overflow")
        [(*way, since)] = await until(lambda: requests(settings), bool, task=task)
        assert (way, began - 310 <= since <= began) == (["Contact", "AccountId"], True)
    await change(desk, "Account", account, Name="Again")
    await desk.call("POST", "retention", upto=(await desk.state())["lastReplayId"])
    async with following(settings, flow, CONTACTS, start=None) as task:
        found = await until(lambda: requests(settings), lambda found: len(found) > 1, task=task)
    assert (found[1][:2], began - 310 <= found[1][2] <= began) == (("Contact", "AccountId"), True)
    assert {i.source for i in (await read_incidents(settings)).values()} == {"acme/Contact"}


async def test_parents_are_followed_where_everything_is_polled(settings: Settings, desk: Desk) -> None:
    account = await desk.create("Before", "Account")
    by_account = ("Contact", "AccountId", account)
    async with following(settings, flow_for(desk.url, poll={"Contact": 1, "Account": 1})) as task:
        await until(lambda: requests(settings), lambda found: found == [by_account], task=task)  # it was made a moment before
        await change(desk, "Account", account, Name="After")
        await until(lambda: requests(settings), lambda found: found == [by_account] * 2, task=task)


async def test_while_events_are_not_delivered_parents_are_asked_and_at_the_end_all_that_changed(settings: Settings, desk: Desk) -> None:
    account, flow = await desk.create("Before", "Account"), contacts(flow_for(desk.url, poll_instead=1))
    await desk.call("POST", "settings", daily_events=2)
    async with following(settings, flow, CONTACTS) as task:
        await connected(desk, task)
        for number in range(4):
            await desk.create(f"P{number}")
        await until(lambda: read_incidents(settings), bool, task=task)
        await change(desk, "Account", account, Name="After")
        await until(lambda: requests(settings), lambda found: ("Contact", "AccountId", account) in found, task=task)
        await desk.call("POST", "settings", daily_events=10_000)
        await until(lambda: read_incidents(settings), lambda found: all(i.state == "closed" for i in found.values()), task=task)
        last = await requests(settings)
    [incident] = (await read_incidents(settings)).values()
    assert (incident.cause, last[-1]) == ("allocation", ("Contact", "AccountId", incident.since - 300))
