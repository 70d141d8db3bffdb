"""Platform events and custom channels of the sandbox org: who gets what, under which position, enriched with what."""

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.support.sandbox_wire import Wire, names, org

CANARY = {"Canary__e": {"Nonce__c": {"type": "string", "required": True}, "Count__c": "int"}}


async def publish(at: Wire, **values: Any) -> Any:
    status, body = await at.rest("POST", "/sobjects/Canary__e", values)
    assert status == 201, body
    return body


async def test_a_platform_event_is_published_by_rest_and_comes_on_its_channel_alone() -> None:
    async with org() as at:
        await at.control("POST", "objects", CANARY)
        await at.open()
        first = await publish(at, Nonce__c="zero")
        assert await at.poll() == []
        assert (await at.subscribe(-2, "/event/Canary__e"))["successful"]
        told = await publish(at, Nonce__c="one", Count__c=3)
        assert told["errors"][0]["statusCode"] == "OPERATION_ENQUEUED"
        zero, one = await at.poll()
        assert zero["event"]["EventUuid"] == first["errors"][0]["message"]
        assert one["event"].keys() == {"EventUuid", "replayId"}
        assert one["payload"] == {"Nonce__c": "one", "Count__c": 3, "CreatedById": at.sandbox.org.user_id} | {
            "CreatedDate": one["payload"]["CreatedDate"]
        }
        assert one["payload"]["CreatedDate"].endswith("Z")
        await at.subscribe(zero["event"]["replayId"], "/event/Canary__e")
        assert await at.poll() == [one]


@pytest.mark.parametrize(("body", "code"), [({}, "REQUIRED_FIELD_MISSING"), ({"Nonce__c": "x", "No__c": 1}, "INVALID_FIELD")])
async def test_a_wrong_platform_event_is_refused_and_none_can_be_queried(body: Any, code: str) -> None:
    async with org() as at:
        await at.control("POST", "objects", CANARY)
        status, reply = await at.rest("POST", "/sobjects/Canary__e", body)
        assert (status, reply[0]["errorCode"]) == (400, code)
        assert (await at.rest("GET", "/query", params={"q": "SELECT Nonce__c FROM Canary__e"}))[0] == 400
        assert "doesn't exist" in (await at.open(channel="/event/Other__e"))["error"]
        described = (await at.rest("GET", "/sobjects/Canary__e/describe"))[1]
        assert (described["queryable"], described["keyPrefix"][0]) == (False, "e")


async def test_platform_events_share_a_custom_channel_and_count_against_the_allocation() -> None:
    async with org() as at:
        await at.control("POST", "objects", CANARY | {"Other__e": {"A__c": "string"}})
        await at.control("POST", "channels", {"name": "/event/All__chn", "entities": ["Canary__e", "Other__e"]})
        assert (await at.open(channel="/event/All__chn"))["successful"]
        await at.control("POST", "settings", {"daily_events": 2})
        await publish(at, Nonce__c="a")
        await at.rest("POST", "/sobjects/Other__e", {"A__c": "b"})
        await publish(at, Nonce__c="c")
        assert [e["payload"].get("Nonce__c") for e in await at.poll()] == ["a", None]
        assert "daily limit" in (await at.connect())[0]["error"]


async def test_a_custom_channel_carries_its_objects_alone() -> None:
    async with org() as at:
        await at.control("POST", "channels", {"name": "/data/People__chn", "entities": ["Contact"]})
        await at.open(channel="/data/People__chn")
        await at.person("Told")
        await at.change({"op": "create", "type": "Account", "values": {"Name": "Not told"}})
        assert names(await at.poll()) == ["Told"]


async def test_enrichment_adds_the_values_of_now_to_updates_and_deletes_one_event_a_record() -> None:
    async with org() as at:
        enriched = {"Contact": ["Email", "FirstName", "Title", "OwnerId"]}
        await at.control("POST", "channels", {"name": "/data/People__chn", "entities": ["Contact"], "enriched": enriched})
        made = await at.change(
            *({"op": "create", "type": "Contact", "values": {"LastName": n, "FirstName": n, "Email": f"{n}@example.org"}} for n in "ab")
        )
        a, b = made["ids"]
        await at.open(channel="/data/People__chn")
        both = [{"op": "update", "type": "Contact", "id": i, "values": {"Phone": "1"}} for i in (a, b)]
        await at.change(*both)
        await at.change({"op": "update", "type": "Contact", "id": b, "values": {"Email": None, "LastName": "c"}})
        await at.change({"op": "delete", "type": "Contact", "id": a})
        await at.control("POST", "gap", {"changes": [{"op": "update", "type": "Contact", "id": b, "values": {"Phone": "2"}}]})
        first, second, third, gone, gap = await at.poll()
        heads = [e["payload"]["ChangeEventHeader"] for e in (first, second, third, gone, gap)]
        assert [h["recordIds"] for h in heads] == [[a], [b], [b], [a], [b]]
        assert first["event"]["replayId"] == second["event"]["replayId"] < third["event"]["replayId"]
        assert first["payload"]["Email"] == "a@example.org"
        assert "Email" not in second["payload"]  # of now, not of then: empty by this time, so left out
        assert "Title" not in first["payload"]
        assert set(heads[0]["changedFields"]) == {"Phone", "LastModifiedDate"}
        assert third["payload"]["Email"] is None
        assert third["payload"]["Name"] == {"FirstName": "b", "LastName": "c"}
        assert gone["payload"]["Name"] == {"FirstName": "a"}
        assert set(gap["payload"]) == {"ChangeEventHeader"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "/data/X__chn", "entities": []},
        {"name": "X__chn", "entities": ["Contact"]},
        {"name": "/data/X__chn", "entities": ["Nope"]},
        {"name": "/event/X__chn", "entities": ["Contact"]},
        {"name": "/data/X__chn", "entities": ["Contact"], "enriched": {"Contact": ["Nope"]}},
        {"name": "/data/X__chn", "entities": ["Contact"], "enriched": {"Contact": ["Email"] * 11}},
    ],
)
async def test_a_channel_that_cannot_be_is_refused(wrong: Any) -> None:
    async with org() as at:
        status, body = await at.refused("POST", "channels", wrong)
        assert (status, bool(body["error"])) == (400, True)


async def test_objects_and_fields_can_be_added_while_it_runs() -> None:
    async with org() as at:
        await at.control("POST", "objects", {"Foo__c": {"Size__c": "int"}, "Contact": {"Score__c": "double"}})
        assert (await at.open(channel="/data/Foo__ChangeEvent"))["successful"]
        assert (await at.rest("POST", "/sobjects/Foo__c", {"Name": "A", "Size__c": 3}))[0] == 201
        (event,) = await at.poll()
        assert (event["payload"]["ChangeEventHeader"]["entityName"], event["payload"]["Size__c"]) == ("Foo__c", 3)
        assert (await at.rest("GET", "/query", params={"q": "SELECT Score__c FROM Contact LIMIT 1"}))[1]["records"][0]["Score__c"] is None
        for wrong in ({"Foo": {"A__c": "int"}}, {"Foo__c": {"A": "int"}}, {"Foo__c": 5}, {"Foo__c": {"A__c": "nope"}}):
            assert (await at.refused("POST", "objects", wrong))[0] == 400


async def test_a_poll_of_a_client_that_went_away_eats_what_comes_and_only_replay_brings_it_back() -> None:
    async with org(hold=60) as at:
        first = await at.person("Before")
        await at.open()
        with pytest.raises((aiohttp.ClientError, asyncio.TimeoutError)):
            async with at.http.post(
                f"{at.sandbox.url}/cometd/67.0",
                json=[{"channel": "/meta/connect", "clientId": at.client_id, "id": "x"}],
                headers=at.headers,
                timeout=aiohttp.ClientTimeout(total=0.3),
            ) as reply:
                await reply.read()
        await at.person("Into the dead poll")
        await at.person("After")
        at.sandbox.org.settings.hold = 0.2
        assert "Into the dead poll" not in names(await at.poll())
        await at.subscribe(first)
        assert names(await at.poll()) == ["Into the dead poll", "After"]
