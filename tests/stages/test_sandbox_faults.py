"""Every fault of the sandbox org does what its name says, as often as it was asked to, and no longer."""

import asyncio

import aiohttp
import pytest

from deploy.sandbox.salesforce.kinds import KINDS
from tests.support.sandbox_wire import Wire, names, org

CUT = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)
LIMIT = "403::Organization total events daily limit exceeded"


async def armed(at: Wire) -> list[str]:
    return [f["name"] for f in (await at.control("GET", "faults"))["armed"]]


async def held(at: Wire) -> None:
    async with asyncio.timeout(25):
        while not any(s["holding"] for s in (await at.control("GET", "state"))["sessions"]):  # noqa: ASYNC110 - another client would look too
            await asyncio.sleep(0.01)


async def test_a_poll_cut_while_it_is_held_loses_its_events_for_the_session_and_replay_has_them() -> None:
    async with org(hold=60) as at:
        first = await at.person("Before")
        await at.open()
        poll = asyncio.create_task(at.connect())
        await held(at)
        await at.fault("drop-connections")
        with pytest.raises(CUT):
            await poll
        await at.person("Lost")
        at.sandbox.org.settings.hold = 0.2
        assert await at.poll() == []
        await at.subscribe(first)
        assert names(await at.poll()) == ["Lost"]
        assert await armed(at) == []


async def test_a_fault_armed_while_no_poll_is_held_cuts_the_next_ones_as_often_as_asked() -> None:
    async with org(hold=60) as at:
        await at.open()
        await at.fault("drop-connections", times=2)
        for _ in range(2):
            with pytest.raises(CUT):
                await at.connect()
        poll = asyncio.create_task(at.poll())
        async with asyncio.timeout(25):
            while at.sandbox.cometd.sessions[at.client_id].connects < 4:  # noqa: ASYNC110 - the polls cut would eat the event
                await asyncio.sleep(0.01)
        await at.person("Third time")
        assert names(await poll) == ["Third time"]


async def test_a_poll_cut_in_the_reply_loses_its_events_for_the_session_and_replay_has_them() -> None:
    async with org() as at:
        first = await at.person("Before")
        await at.open()
        await at.fault("drop-connections", variant="reply")
        assert await at.poll() == []  # nothing to cut in an empty reply
        await at.person("Lost")
        with pytest.raises(CUT):
            await at.connect()
        assert await at.poll() == []
        await at.subscribe(first)
        assert names(await at.poll()) == ["Lost"]


async def test_a_poll_cut_in_the_request_loses_nothing() -> None:
    async with org() as at:
        await at.open()
        await at.person("Kept")
        await at.fault("drop-connections", variant="request")
        with pytest.raises(CUT):
            await at.connect()
        assert names(await at.poll()) == ["Kept"]


@pytest.mark.parametrize("reconnect", ["handshake", "none"])
async def test_an_unknown_client_is_told_so_with_either_advice_and_its_session_is_gone(reconnect: str) -> None:
    async with org() as at:
        await at.open()
        await at.fault("unknown-client", variant=reconnect)
        (reply,) = await at.connect()
        assert (reply["error"], reply["advice"]) == ("403::Unknown client", {"interval": 0, "reconnect": reconnect})
        (again,) = await at.connect()
        assert (again["error"], again["advice"]["reconnect"]) == ("403::Unknown client", "handshake")
        assert (await at.open())["successful"]


async def test_a_restart_refuses_connections_then_knows_no_session_and_still_the_tokens_and_events() -> None:
    async with org(hold=60) as at:
        first = await at.person("Before")
        await at.person("Kept")
        await at.open()
        poll = asyncio.create_task(at.connect())
        await held(at)
        await at.fault("server-restart", seconds=0.3)
        with pytest.raises(CUT):
            await poll
        with pytest.raises(aiohttp.ClientConnectorError):
            await at.connect()
        async with asyncio.timeout(25):
            while True:
                try:
                    (reply,) = await at.connect()
                    break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
        assert reply["error"] == "403::Unknown client"
        await at.open(first)
        assert names(await at.poll()) == ["Kept"]


async def test_a_refused_subscribe_leaves_a_connected_client_without_subscription() -> None:
    async with org() as at:
        await at.fault("refuse-resubscribe")
        reply = await at.open()
        assert not reply["successful"]
        assert reply["error"].startswith("400::The replayId {-1} you provided was invalid.  ")
        await at.person("Unheard")
        assert await at.poll() == []
        assert (await at.subscribe())["successful"]


async def test_an_invalid_replay_strikes_stored_positions_alone() -> None:
    async with org() as at:
        last = await at.person("One")
        await at.fault("invalid-replay")
        assert (await at.open(-2))["successful"]
        assert not (await at.subscribe(last))["successful"]
        assert (await at.subscribe(last))["successful"]


async def test_a_silent_server_delivers_nothing_until_cleared_and_then_everything() -> None:
    async with org() as at:
        await at.open()
        await at.fault("silent")
        await at.person("Held back")
        assert [await at.poll(), await at.poll()] == [[], []]
        at.sandbox.org.settings.hold = 60
        poll = asyncio.create_task(at.poll())
        await held(at)
        await at.control("DELETE", "faults?name=silent")
        assert names(await asyncio.wait_for(poll, 25)) == ["Held back"]


async def test_a_silence_of_so_many_polls_ends_by_itself() -> None:
    async with org() as at:
        await at.open()
        await at.person("Held back")
        await at.fault("silent", times=2)
        assert [names(await at.poll()) for _ in range(3)] == [[], [], ["Held back"]]


async def test_a_deaf_session_never_hears_again_and_a_new_one_does() -> None:
    async with org() as at:
        first = await at.person("Before")
        await at.open()
        await at.fault("silent", variant="session")
        assert await armed(at) == []
        await at.person("Unheard")
        assert [await at.poll(), await at.poll()] == [[], []]
        await at.open(first)
        assert names(await at.poll()) == ["Unheard"]


async def test_duplicates_come_in_the_same_reply_and_reordering_turns_it_round() -> None:
    async with org() as at:
        await at.open()
        await at.fault("duplicate")
        await at.person("Twice")
        assert names(await at.poll()) == ["Twice", "Twice"]
        await at.fault("reorder")
        await at.person("One")
        await at.person("Two")
        assert names(await at.poll()) == ["Two", "One"]


async def test_expired_tokens_are_refused_everywhere_until_the_next_login() -> None:
    async with org() as at:
        await at.fault("expire-token")
        status, body = await at.rest("GET", "/limits")
        assert (status, body) == (401, [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}])
        await at.login()
        assert (await at.rest("GET", "/limits"))[0] == 200


async def test_a_revoked_user_gets_no_token_until_restored() -> None:
    async with org() as at:
        await at.fault("revoke")
        assert (await at.rest("GET", "/limits"))[0] == 401
        with pytest.raises(AssertionError, match="expired access/refresh token"):
            await at.login()
        await at.control("DELETE", "faults?name=revoke")
        await at.login()
        assert (await at.rest("GET", "/limits"))[0] == 200


@pytest.mark.parametrize(
    ("name", "status", "begins"), [("html-503", 503, "<!DOCTYPE html>"), ("html-200", 200, "<!DOCTYPE html>"), ("empty-body", 200, "")]
)
async def test_a_page_or_nothing_in_place_of_the_answer(name: str, status: int, begins: str) -> None:
    async with org() as at:
        await at.open()
        await at.person("Kept")
        await at.fault(name, variant="cometd", times=2)
        assert (await at.rest("GET", "/limits"))[0] == 200  # another part of the server
        for _ in range(2):
            got, text = await at.post([{"channel": "/meta/connect", "clientId": at.client_id}])
            assert (got, text[:15]) == (status, begins)
        assert names(await at.poll()) == ["Kept"]
        await at.fault(name, variant="rest")
        assert (await at.rest("GET", "/limits"))[0] == status
        await at.fault(name, variant="token")
        with pytest.raises((AssertionError, aiohttp.ContentTypeError)):
            await at.login()


async def test_a_slow_server_answers_late() -> None:
    async with org() as at:
        await at.fault("slow", seconds=30, variant="rest")
        with pytest.raises(TimeoutError):
            await at.rest("GET", "/limits", timeout=aiohttp.ClientTimeout(total=0.2))
        assert (await at.rest("GET", "/limits"))[0] == 200


async def test_the_limit_of_events_is_told_on_connect_by_fault_and_by_count() -> None:
    async with org() as at:
        await at.open()
        await at.fault("limit-403")
        assert (await at.connect())[0]["error"] == LIMIT
        await at.control("POST", "settings", {"daily_events": 1})
        await at.person("The last")
        assert names(await at.poll()) == ["The last"]
        assert (await at.connect())[0]["error"] == LIMIT


async def test_the_limit_of_requests_is_told_by_fault_and_by_count() -> None:
    async with org() as at:
        await at.fault("rest-limit")
        status, body = await at.rest("GET", "/limits")
        assert (status, body) == (403, [{"message": "TotalRequests Limit exceeded.", "errorCode": "REQUEST_LIMIT_EXCEEDED"}])
        await at.control("POST", "settings", {"daily_requests": 2})
        assert [(await at.rest("GET", "/limits"))[0] for _ in range(2)] == [200, 403]


async def test_a_denied_handshake_gives_the_recorded_reason() -> None:
    async with org() as at:
        await at.fault("handshake-denied")
        reply = await at.handshake()
        assert reply["error"] == "403::Handshake denied"
        assert reply["ext"]["sfdc"]["failureReason"].startswith(
            "403::To protect all customers from excessive use and Denial of Service attacks, we limit"
        )
        assert (await at.handshake())["successful"]


async def test_a_locked_row_refuses_a_write_and_no_read() -> None:
    async with org() as at:
        await at.fault("lock-row")
        assert (await at.rest("GET", "/limits"))[0] == 200
        status, body = await at.rest("POST", "/sobjects/Contact", {"LastName": "Locked"})
        assert (status, body[0]["errorCode"]) == (500, "UNABLE_TO_LOCK_ROW")
        assert (await at.rest("POST", "/sobjects/Contact", {"LastName": "Free"}))[0] == 201


async def test_faults_can_be_listed_and_cleared_together() -> None:
    async with org() as at:
        for name, kind in KINDS.items():
            if not kind.instant:
                await at.fault(name, times=0)
        assert sorted(await armed(at)) == sorted(n for n, k in KINDS.items() if not k.instant)
        assert all(f["times_left"] is None for f in (await at.control("GET", "faults"))["armed"])
        await at.control("DELETE", "faults")
        assert await armed(at) == []
        await at.login()
        assert (await at.open())["successful"]
