"""What the platform does to data and limits, provoked by name: gaps, overflow, lost events, ended positions, a moved org, used-up days."""

import asyncio
import time
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from deploy.sandbox.salesforce.kinds import LOSSES
from tests.support.sandbox_wire import Wire, names, org

OVER = "403::Organization total events daily limit exceeded"
NULL_ID = "000000000000000AAA"


def heads(events: list[Any]) -> list[Any]:
    return [e["payload"]["ChangeEventHeader"] for e in events]


async def lives(at: Wire) -> list[str]:
    """A contact made, changed, deleted and brought back; ids of the events' records."""
    made = (await at.change({"op": "create", "type": "Contact", "values": {"LastName": "Lives"}}))["ids"][0]
    for op, values in (("update", {"Title": "Head"}), ("delete", {}), ("undelete", {})):
        await at.change({"op": op, "type": "Contact", "id": made, "values": values})
    return [made] * 4


@pytest.mark.parametrize(("fault", "wildcard"), [("gap", False), ("gap-wildcard", True)])
async def test_gap_events_are_of_four_kinds_and_name_records_or_all_of_them(fault: str, wildcard: bool) -> None:
    async with org(hold=1) as at:
        await at.open()
        await at.fault(fault, times=4)
        records = await lives(at)
        found = heads(await at.poll())
        assert [h["changeType"] for h in found] == ["GAP_CREATE", "GAP_UPDATE", "GAP_DELETE", "GAP_UNDELETE"]
        assert [h["recordIds"] for h in found] == [["003*"] if wildcard else [r] for r in records]
        assert all(h["changedFields"] == [] for h in found)
        await at.person("Whole again")
        assert names(await at.poll()) == ["Whole again"]


async def test_a_gap_of_one_kind_waits_for_that_kind_and_leaves_the_others_of_the_transaction_alone() -> None:
    async with org() as at:
        await at.open()
        await at.fault("gap", variant="update")
        await at.person("Untouched")
        record = at.sandbox.org.store.tables["Contact"].order[0]
        await at.change(
            {"op": "update", "type": "Contact", "id": record, "values": {"Title": "T"}},
            {"op": "create", "type": "Contact", "values": {"LastName": "Beside"}},
        )
        assert [h["changeType"] for h in heads(await at.poll())] == ["CREATE", "GAP_UPDATE", "CREATE"]


async def test_a_wildcard_change_and_an_overflow_are_told_by_name() -> None:
    async with org() as at:
        await at.open()
        await at.fault("wildcard")
        await at.person("Hidden")
        await at.fault("overflow")
        await at.person("Hidden too")
        found = heads(await at.poll())
        assert [(h["changeType"], h["recordIds"]) for h in found] == [("UPDATE", ["003*"]), ("GAP_OVERFLOW", [NULL_ID])]


async def test_changes_beyond_the_number_set_are_one_overflow() -> None:
    async with org() as at:
        await at.open()
        await at.control("POST", "settings", {"overflow_after": 3})
        await at.change(*({"op": "create", "type": "Contact", "values": {"LastName": f"N{n}"}} for n in range(10)))
        found = heads(await at.poll())
        assert [h["changeType"] for h in found] == ["CREATE"] * 3 + ["GAP_OVERFLOW"]
        assert found[-1]["recordIds"] == [NULL_ID]


async def test_events_can_have_the_forms_of_years_ago() -> None:
    async with org() as at:
        await at.open()
        for variant in ("dates", "no-changed-fields"):
            await at.fault("old-form", variant=variant, times=1)
            await at.person(variant)
        old, bare = await at.poll()
        assert (len(old["payload"]["CreatedDate"]), len(bare["payload"]["CreatedDate"])) == (20, 24)
        assert ["changedFields" in h for h in heads([old, bare])] == [True, False]


async def test_events_lost_in_the_bus_never_come_and_are_told_to_the_test_alone() -> None:
    async with org() as at:
        start = await at.person("First")
        await at.fault("drop-events", rate=0.5)
        for number in range(40):
            await at.change({"op": "create", "type": "Contact", "values": {"LastName": f"N{number}"}})
        await at.control("DELETE", "faults")
        lost = (await at.control("GET", "lost"))["lost"]
        assert 5 < len(lost) < 35
        assert {entity for _, entity, _ in lost} == {"Contact"}
        for _ in range(2):  # a replay brings no more
            await at.open(start)
            got = await at.poll()
            assert len(got) == 40 - len(lost)
            assert not {e["event"]["replayId"] for e in got} & {replay for replay, _, _ in lost}
        assert len((await at.control("GET", "records?type=Contact"))["records"]) > 40


async def test_events_lost_in_replies_come_by_replay() -> None:
    async with org() as at:
        start = await at.person("First")
        await at.open()
        await at.fault("drop-events", variant="reply", rate=1, times=2)
        await at.change(*({"op": "create", "type": "Contact", "values": {"LastName": f"N{n}"}} for n in range(3)))
        assert names(await at.poll()) == ["N2"]
        await at.subscribe(start)
        assert names(await at.poll()) == ["N0", "N1", "N2"]


@pytest.mark.parametrize(("variant", "kept"), [("all", []), ("half", ["N3", "N4"])])
async def test_positions_before_the_end_of_the_retention_are_refused(variant: str, kept: list[str]) -> None:
    async with org() as at:
        replays = [await at.person(f"N{n}") for n in range(5)]
        await at.fault("expired-position", variant=variant)
        assert "was invalid" in (await at.open(replays[0]))["error"]
        assert (await at.subscribe(-2))["successful"]
        assert names(await at.poll()) == kept


async def test_a_moved_org_has_another_id_and_lower_positions_and_knows_no_login_or_session() -> None:
    async with org() as at:
        replay = await at.person("Before")
        await at.open()
        token, before = at.token, at.sandbox.org.id
        await at.fault("org-migration")
        assert (await at.rest("GET", "/limits"))[0] == 401
        assert "Unknown client" in (await at.connect())[0]["error"]
        await at.login()
        assert at.token[:15] == at.sandbox.org.id[:15] != before[:15] == token[:15]
        assert "was invalid" in (await at.open(replay))["error"]
        assert (await at.subscribe(-1))["successful"]
        assert await at.person("After") < replay
        assert names(await at.poll()) == ["After"]


async def test_positions_can_go_back_under_a_living_session() -> None:
    async with org() as at:
        replay = await at.person("Before")
        await at.open(replay)
        await at.fault("org-migration", variant="ids")
        assert await at.person("After") < replay
        assert names(await at.poll()) == ["After"]


async def test_a_trigger_changes_the_same_record_or_another_one_in_the_same_transaction() -> None:
    async with org() as at:
        await at.open()
        await at.fault("trigger", times=1)
        status, _ = await at.rest("POST", "/sobjects/Account", {"Name": "Mine"})
        assert status == 201
        (event,) = await at.poll()
        assert event["payload"]["Description"].startswith("Set by a trigger")
        await at.fault("trigger", variant="other", times=2)
        account = at.sandbox.org.store.tables["Account"].order[-1]
        await at.rest(
            "POST", "/sobjects/Contact", {"LastName": "Child", "AccountId": account}, headers={"Sforce-Call-Options": "client=me"}
        )
        child, parent = heads(await at.poll())
        assert (child["entityName"], parent["entityName"], parent["recordIds"]) == ("Contact", "Account", [account])
        assert (child["sequenceNumber"], parent["sequenceNumber"]) == (1, 2)
        assert child["transactionKey"] == parent["transactionKey"]
        assert child["changeOrigin"] == parent["changeOrigin"] == "com/salesforce/api/rest/67.0;client=me"
        await at.rest("POST", "/sobjects/Account", {"Name": "Alone"})
        assert [h["entityName"] for h in heads(await at.poll())] == ["Account", "Task"]
        assert (await at.control("GET", "faults"))["armed"] == []


async def test_hundreds_of_ids_share_one_event() -> None:
    async with org(records=800) as at:
        await at.open()
        await at.fault("merged", times=300)
        found = heads(await at.poll())[-1]
        assert (len(set(found["recordIds"])), found["changeType"], sorted(found["changedFields"])) == (
            300, "UPDATE", ["Description", "LastModifiedDate"],
        )  # fmt: skip


async def test_pages_of_changing_size_are_together_the_whole() -> None:
    async with org(records=600) as at:
        await at.fault("page-size")
        _, page = await at.rest("GET", "/query", params={"q": "SELECT Id FROM Contact"}, headers={"Sforce-Query-Options": "batchSize=200"})
        sizes, records = [len(page["records"])], page["records"]
        while not page["done"]:
            _, page = await at.rest("GET", page["nextRecordsUrl"], headers={"Sforce-Query-Options": "batchSize=200"})
            sizes.append(len(page["records"]))
            records += page["records"]
        assert len(set(sizes)) > 1
        assert max(sizes) <= 200
        assert [r["Id"] for r in records] == at.sandbox.org.store.tables["Contact"].order


@pytest.mark.parametrize(("variant", "shift"), [("ahead", 900), ("behind", -900)])
async def test_a_wrong_clock_is_in_the_dates_and_the_stamps_and_cuts_no_session(variant: str, shift: int) -> None:
    async with org() as at:
        await at.open()
        await at.fault("clock-skew", variant=variant, seconds=900)
        await at.person("When")
        (event,) = await at.poll()
        assert abs(event["payload"]["ChangeEventHeader"]["commitTimestamp"] / 1000 - time.time() - shift) < 60
        async with at.http.get(f"{at.sandbox.url}/services/data", headers=at.headers) as reply:
            assert abs(parsedate_to_datetime(reply.headers["Date"]).timestamp() - time.time() - shift) < 60


async def test_a_stalled_reply_begins_and_is_cut_in_the_end() -> None:
    async with org() as at:
        await at.fault("stalled", variant="rest", seconds=0.2)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
            await at.rest("GET", "/sobjects/Contact/describe")
        await at.fault("stalled", variant="rest", seconds=60)
        with pytest.raises(TimeoutError):
            await at.rest("GET", "/sobjects/Contact/describe", timeout=aiohttp.ClientTimeout(total=0.3))
        assert (await at.rest("GET", "/sobjects/Contact/describe"))[0] == 200


async def test_a_stalled_poll_takes_its_events_with_it_and_replay_has_them() -> None:
    async with org() as at:
        first = await at.person("Before")
        await at.open()
        await at.person("Halved")
        await at.fault("stalled", variant="cometd", seconds=60)
        short = aiohttp.ClientTimeout(total=0.4)
        message = {"channel": "/meta/connect", "clientId": at.client_id, "connectionType": "long-polling", "id": "9"}
        with pytest.raises(TimeoutError):
            async with at.http.post(f"{at.sandbox.url}/cometd/67.0", json=[message], headers=at.headers, timeout=short) as reply:
                assert reply.status == 200
                await reply.read()
        assert await at.poll() == []
        await at.subscribe(first)
        assert names(await at.poll()) == ["Halved"]


async def test_records_can_be_added_as_if_they_had_always_been_there() -> None:
    async with org(records=0) as at:
        done = await at.control("POST", "fill", {"type": "Lead", "count": 300})
        assert (await at.rest("GET", "/query", params={"q": "SELECT COUNT() FROM Lead"}))[1]["totalSize"] == done["count"] == 300
        assert at.sandbox.org.bus.end == 0
        for wrong in ({"type": "Nope", "count": 1}, {"type": "Lead", "count": 0}, {"type": "Lead", "count": True}, {"type": "Lead"}):
            assert (await at.refused("POST", "fill", wrong))[0] == 400


@pytest.mark.parametrize(
    ("code", "status"), [("SERVER_UNAVAILABLE", 503), ("QUERY_TIMEOUT", 400), ("UNKNOWN_EXCEPTION", 500), ("REQUEST_RUNNING_TOO_LONG", 503)]
)
async def test_the_server_s_own_errors_come_by_name(code: str, status: int) -> None:
    async with org() as at:
        await at.fault("rest-error", variant=code)
        got, body = await at.rest("GET", "/sobjects")
        assert (got, body[0]["errorCode"]) == (status, code)
        await at.fault("concurrent-limit")
        got, body = await at.rest("GET", "/sobjects")
        assert (got, body[0]["errorCode"], "Concurrent" in body[0]["message"]) == (403, "REQUEST_LIMIT_EXCEEDED", True)


async def test_no_call_passes_a_used_up_day_and_the_refused_are_told_apart_from_the_counted() -> None:
    async with org() as at:
        await at.control("POST", "settings", {"daily_requests": 5})
        told = []
        for _ in range(8):
            async with at.http.get(f"{at.sandbox.url}/services/data/v67.0/sobjects", headers=at.headers) as reply:
                told.append((reply.status, reply.headers["Sforce-Limit-Info"]))
        assert told == [(200, f"api-usage={n}/5") for n in range(1, 6)] + [(403, "api-usage=5/5")] * 3
        found = await at.control("GET", "limits")
        assert found["limits"]["DailyApiRequests"] == {"Max": 5, "Remaining": 0}
        assert found["refused"] == {"DailyApiRequests": 3}


async def test_a_day_rolls_and_gives_back_what_was_used_a_day_ago() -> None:
    async with org() as at:
        await at.control("POST", "settings", {"daily_requests": 1})
        assert [(await at.rest("GET", "/sobjects"))[0] for _ in range(2)] == [200, 403]
        await at.fault("clock-skew", seconds=86_401)
        assert [(await at.rest("GET", "/sobjects"))[0] for _ in range(2)] == [200, 403]


async def test_limits_have_their_real_names_and_can_be_late() -> None:
    async with org() as at:
        _, limits = await at.rest("GET", "/limits")
        assert limits["DailyApiRequests"] == {"Max": 100_000, "Remaining": 99_999}
        assert limits["DailyBulkV2QueryJobs"] == {"Max": 10_000, "Remaining": 10_000}
        assert {"DailyDeliveredPlatformEvents", "DailyBulkV2QueryFileStorageMB", "StreamingApiConcurrentClients"} <= limits.keys()
        await at.control("POST", "settings", {"limits_lag": 300})
        assert (await at.rest("GET", "/limits"))[1]["DailyApiRequests"]["Remaining"] == 100_000


async def test_events_stop_exactly_at_the_allocation_on_connect_and_on_subscribe() -> None:
    async with org() as at:
        await at.open()
        await at.control("POST", "settings", {"daily_events": 3})
        await at.change(*({"op": "create", "type": "Contact", "values": {"LastName": f"N{n}"}} for n in range(5)))
        assert names(await at.poll()) == ["N0", "N1", "N2"]
        (reply,) = await at.connect()
        assert (reply["error"], reply["advice"]["reconnect"]) == (OVER, "none")
        assert (await at.subscribe(-2))["error"] == OVER
        assert (await at.rest("GET", "/limits"))[1]["DailyDeliveredPlatformEvents"] == {"Max": 3, "Remaining": 0}
        assert (await at.rest("GET", "/sobjects"))[0] == 200  # another limit
        await at.control("POST", "settings", {"daily_events": 5})
        assert names(await at.poll()) == ["N3", "N4"]


async def test_an_allocation_that_is_not_enforced_is_not_shown_as_nearly_used_up() -> None:
    async with org() as at:
        await at.open()
        at.sandbox.org.limits.spend("DailyDeliveredPlatformEvents", 1_000_000)
        await at.person("Told")
        assert names(await at.poll()) == ["Told"]
        left = (await at.rest("GET", "/limits"))[1]["DailyDeliveredPlatformEvents"]
        assert left["Remaining"] > 0.9 * left["Max"]


async def test_each_limit_is_used_up_on_its_own() -> None:
    async with org() as at:
        await at.open()
        await at.fault("daily-limit", variant="events")
        assert (await at.connect())[0]["error"] == OVER
        assert (await at.rest("GET", "/limits"))[1]["DailyDeliveredPlatformEvents"]["Remaining"] == 0
        await at.fault("daily-limit", variant="api")
        status, body = await at.rest("GET", "/limits")
        assert (status, body) == (403, [{"message": "TotalRequests Limit exceeded.", "errorCode": "REQUEST_LIMIT_EXCEEDED"}])
        await at.poll()
        await at.control("DELETE", "faults?name=daily-limit")
        assert (await at.rest("GET", "/limits"))[0] == 200


@pytest.mark.parametrize(("variant", "status"), [("html", 503), ("rate", 400), ("cut", None)])
async def test_the_token_endpoint_is_down_alone_and_until_cleared(variant: str, status: int | None) -> None:
    async with org() as at:
        await at.fault("token-endpoint-down", variant=variant)
        for _ in range(2):
            asked = at.http.post(f"{at.sandbox.url}/services/oauth2/token", data={"grant_type": "client_credentials"})
            if status is None:
                with pytest.raises(aiohttp.ClientError):
                    await asked
            else:
                async with asked as reply:
                    assert reply.status == status
                    if variant == "rate":
                        assert (await reply.json())["error"] == "rate_limit_exceeded"
        assert (await at.rest("GET", "/limits"))[0] == 200
        await at.control("DELETE", "faults")
        await at.login()


async def test_every_loss_can_be_switched_on_and_off_by_name() -> None:
    async with org() as at:
        for name, kind in LOSSES.items():
            for variant in kind.variants:
                await at.fault(name, variant=variant)
        await at.control("DELETE", "faults")
        assert (await at.control("GET", "faults"))["armed"] == []
        await at.login()
        assert (await at.open())["successful"]


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": 2}, {"rate": "x"}, {"rate": True}, {"seconds": -1}, {"seconds": 10**9}, {"variant": "none"}, {"times": -1}],
)
async def test_a_loss_with_a_senseless_measure_is_refused(wrong: dict[str, Any]) -> None:
    async with org() as at:
        status, body = await at.refused("POST", "faults", {"name": "drop-events", **wrong})
        assert status == 400
        assert body["error"]


async def test_a_poll_that_is_held_ends_when_the_allocation_does() -> None:
    async with org(hold=30) as at:
        await at.open()
        poll = asyncio.create_task(at.connect())
        async with asyncio.timeout(25):
            while not any(s["holding"] for s in (await at.control("GET", "state"))["sessions"]):  # noqa: ASYNC110 - another client would look too
                await asyncio.sleep(0.01)
            await at.fault("daily-limit", variant="events")
            assert (await poll)[0]["error"] == OVER
