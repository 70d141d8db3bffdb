"""Renames of parents on the real wire: an Account's by its event, a user's by polling; each asks once for the records that show it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from models.settings import Settings
from streams.publish import read_all
from streams.salesforce import parent_polls
from streams.salesforce.subscriber import run_subscriber
from streams.topics import Topics
from tests.support.salesforce import FIELDS, Desk, connected, flow_for, org, until

pytestmark = pytest.mark.kafka
SHOWN = FIELDS | {"acme/Contact": (*FIELDS["acme/Contact"], "AccountId", "Account.Name", "Owner.Name")}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(10) as found:
        yield found


async def test_a_renamed_account_and_a_renamed_user_ask_for_their_children_once(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_polls, "EVERY", 0.2)
    account = await desk.create("Before", "Account")
    user = next(iter(desk.sandbox.org.store.tables["User"].rows))

    async def requests() -> list[tuple[str, str, str]]:
        found = [orjson.loads(r.value or b"") for r in await read_all(settings, Topics(settings.installation).fetch("acme"))]
        return [(f["sobject"], f["through"], f["parents"][0]) for f in found]

    async def change(sobject: str, record: str, **values: Any) -> None:
        await desk.call("POST", "transaction", changes=[{"op": "update", "type": sobject, "id": record, "values": values}])

    async def run(stop: asyncio.Event) -> None:
        channels = ["/data/ContactChangeEvent", "/data/AccountChangeEvent"]  # none of users
        await run_subscriber(
            settings, flow_for(desk.url, channels=channels), "acme", SHOWN, start_from="new", stop=stop, snapshot=False, pause_seconds=0.3
        )

    stop = asyncio.Event()
    task = asyncio.create_task(run(stop))
    for channel in ("/data/ContactChangeEvent", "/data/AccountChangeEvent"):
        await connected(desk, task, channel)
    await change("Account", account, Phone="1")
    await change("Account", account, Name="After")
    by_account = ("Contact", "AccountId", account)
    await until(requests, lambda found: found == [by_account], task=task)
    await change("User", user, LastName="Married")
    by_user = ("Contact", "OwnerId", user)
    await until(requests, lambda found: by_user in found, task=task)
    stop.set()
    await task
    before = await requests()
    stop = asyncio.Event()
    task = asyncio.create_task(run(stop))
    for channel in ("/data/ContactChangeEvent", "/data/AccountChangeEvent"):
        await connected(desk, task, channel)
    await change("Account", account, Name="Again")
    await until(requests, lambda found: found.count(by_account) == 2, task=task)
    stop.set()
    await task
    assert before.count(by_account) == 1, "no change of another field asks"
