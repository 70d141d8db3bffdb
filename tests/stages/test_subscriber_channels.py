"""Channels of every kind beside each other: each brings what routes read of it once, with a position of its own."""

from typing import Any

import aiohttp
import pytest

from models.flow import Flow
from models.settings import Settings
from streams.salesforce.incidents import read_incidents
from streams.salesforce.positions import read_positions
from streams.salesforce.runs import snapshot_runs
from streams.topics import Topics, ensure
from tests.support.broker import topics
from tests.support.salesforce import Desk, acme, arrived, connected, envelope_of, flow_for, inbound, org, subscribed, until

pytestmark = pytest.mark.kafka
PEOPLE, PAID, SHOP = "/data/People__chn", "/event/Paid__e", "/event/Shop__chn"


def several(url: str) -> Flow:
    """Contacts from a custom channel, Accounts from their own, a platform event, and one of two from a custom channel."""
    found = flow_for(url, channels={PEOPLE: ["Contact"], "/data/AccountChangeEvent": [], SHOP: ["Booked__e", "Refunded__e"]})
    raw = found.model_dump(by_alias=True)
    raw["connections"]["acme"]["auth"]["client_secret"] = acme(found).auth.client_secret
    raw["routes"]["paid"] = {"from": ["acme/Paid__e"], "to": "warehouse", "map": "paid.yaml"}
    raw["routes"]["refunded"] = {"from": ["acme/Refunded__e"], "to": "warehouse", "map": "paid.yaml"}
    return Flow.model_validate(raw)


async def publish(desk: Desk, order: str, event: str = "Paid__e") -> None:
    given = await desk.call("GET", "credentials")
    form = {"grant_type": "client_credentials", "client_id": given["client_id"], "client_secret": given["client_secret"]}
    async with aiohttp.ClientSession(desk.url) as http:
        async with http.post("/services/oauth2/token", data=form) as reply:
            token = (await reply.json())["access_token"]
        path, headers = f"/services/data/v67.0/sobjects/{event}", {"Authorization": f"Bearer {token}"}
        async with http.post(path, json={"Order__c": order}, headers=headers) as reply:
            assert reply.status == 201


async def test_each_channel_brings_its_own_and_enriched_events_of_one_position_all_come(settings: Settings) -> None:
    async with org(hold=1.0) as desk:
        await desk.call("POST", "objects", **{name: {"Order__c": "string"} for name in ("Paid__e", "Booked__e", "Refunded__e")})
        await desk.call("POST", "channels", name=SHOP, entities=["Booked__e", "Refunded__e"])
        await desk.call("POST", "channels", name=PEOPLE, entities=["Contact", "Account"], enriched={"Contact": ["Email"]})
        flow = several(desk.url)
        async with topics(settings, []):
            await ensure(settings, Topics(settings.installation).all(flow, settings))
            async with subscribed(settings, flow, snapshot=True) as task:
                for channel in (PEOPLE, "/data/AccountChangeEvent", PAID, SHOP):
                    await connected(desk, task, channel)
                people = [await desk.create(name) for name in ("Ames", "Bell")]
                await desk.create("Acme", "Account")
                both: list[Any] = [{"op": "update", "type": "Contact", "id": p, "values": {"Title": "T"}} for p in people]
                merged = (await desk.call("POST", "transaction", changes=both))["replayIds"][0]
                for order in "ab":
                    await publish(desk, order)
                for event in ("Booked__e", "Refunded__e"):
                    await publish(desk, "c", event)
                found = await until(lambda: arrived(settings, "Contact"), lambda a: len(a) == 4, task=task)
                assert [record for position, record in found if position == merged] == sorted(people)
                await until(lambda: arrived(settings, "Account"), lambda a: len(a) == 1, task=task)
                events = await until(lambda: inbound(settings, "Paid__e"), lambda a: len(a) == 2, task=task)
                assert len({record.key for record in events}) == 2
                assert {envelope_of(record).channel for record in events} == {PAID}
                [refunded] = await until(lambda: inbound(settings, "Refunded__e"), lambda a: len(a) > 0, task=task)
                assert envelope_of(refunded).channel == SHOP
                await until(lambda: snapshot_runs(settings), lambda r: {x.source for x in r.values()} == {"acme/Contact", "acme/Account"})
            assert set(await read_positions(settings)) == {f"acme|{c}" for c in (PEOPLE, "/data/AccountChangeEvent", PAID, SHOP)}
            await publish(desk, "lost to retention")
            await desk.call("POST", "retention", upto=(await desk.state())["lastReplayId"])
            await publish(desk, "kept")
            async with subscribed(settings, flow, start_from=None) as task:
                await until(lambda: inbound(settings, "Paid__e"), lambda a: len(a) == 3, task=task)
                await until(
                    lambda: read_incidents(settings), lambda r: len(r) == 4 and all(i.state != "open" for i in r.values()), task=task
                )
            told = {i.source: i for i in (await read_incidents(settings)).values()}
            assert (told["acme/Paid__e"].state, told["acme/Paid__e"].cause) == ("failed", "position refused")
            assert "ask its publisher" in told["acme/Paid__e"].proof
            assert told["acme/Contact"].state == "closed"
