"""The sandbox's CometD on the wire: sessions, cookies, replay positions and the error texts, word for word."""

import asyncio
import json
from pathlib import Path

import pytest

from deploy.sandbox.salesforce.server import Sandbox
from tests.support.sandbox_wire import ALL, Wire, names, org, wire

RECORDED = Path(__file__).parents[1] / "data" / "sandbox" / "bayeux-meta.jsonl"
META = [json.loads(line)["message"] for line in RECORDED.read_text().splitlines()]
REFUSED = (
    "400::The replayId {%s} you provided was invalid.  Please provide a valid ID, -2 to replay all events, or -1 to replay only new events."
)


async def test_the_handshake_looks_like_the_recorded_one_and_sets_the_cookie() -> None:
    async with org() as at:
        reply = await at.handshake()
        recorded = next(m for m in META if isinstance(m, dict) and m.get("channel") == "/meta/handshake" and m.get("successful"))
        assert reply.keys() == recorded.keys()
        assert {k: v for k, v in reply.items() if k not in ("clientId", "id")} == {
            k: v for k, v in recorded.items() if k not in ("clientId", "id")
        }
        assert 27 <= len(reply["clientId"]) <= 29
        assert [c.key for c in at.http.cookie_jar] == ["BAYEUX_BROWSER"]


async def test_the_first_connect_comes_back_at_once_with_the_advice_of_the_hold_time() -> None:
    async with org(hold=110) as at:
        await at.handshake()
        (reply,) = await asyncio.wait_for(at.connect(), 25)
        assert reply["advice"] == {"interval": 0, "timeout": 110_000, "reconnect": "retry"}
        assert reply["successful"]


async def test_a_held_poll_ends_with_the_event_and_an_idle_one_with_nothing() -> None:
    async with org() as at:
        await at.open()
        assert await at.poll() == []
        at.sandbox.org.settings.hold = 60
        held = asyncio.create_task(at.poll())
        await until_held(at)
        await at.person("Held")
        assert names(await asyncio.wait_for(held, 25)) == ["Held"]


async def until_held(at: Wire) -> None:
    async with asyncio.timeout(25):
        while not any(s["holding"] for s in (await at.control("GET", "state"))["sessions"]):  # noqa: ASYNC110 - another client would look too
            await asyncio.sleep(0.01)


async def test_an_id_comes_back_as_it_was_sent() -> None:
    async with org() as at:
        (reply,) = await at.send("handshake", version="1.0", supportedConnectionTypes=["long-polling"], id=7)
        assert reply["id"] == 7


@pytest.mark.parametrize(
    ("replay", "expected"),
    [(-1, ["Later"]), ("-1", ["Later"]), (-2, ["One", "Two", "Three", "Later"]), ("-2", ["One", "Two", "Three", "Later"])],
)
async def test_replay_gives_what_is_retained_or_only_what_is_new(replay: int | str, expected: list[str]) -> None:
    async with org() as at:
        for name in ("One", "Two", "Three"):
            await at.person(name)
        assert (await at.open(replay))["successful"]
        await at.person("Later")
        assert names(await at.poll()) == expected


async def test_replay_from_an_id_gives_every_event_after_it_and_not_that_one() -> None:
    async with org() as at:
        replay_ids = [await at.person(name) for name in ("One", "Two", "Three")]
        await at.open(replay_ids[0])
        assert names(await at.poll()) == ["Two", "Three"]
        assert (await at.subscribe(str(replay_ids[1])))["successful"]
        assert names(await at.poll()) == ["Three"]


@pytest.mark.parametrize("replay", ["0", "99999999", "garbage", "", "-3", "1e3", "9" * 400, "None", "true"])
async def test_a_position_that_was_never_given_out_is_refused_in_the_recorded_words(replay: str) -> None:
    async with org() as at:
        await at.person("One")
        reply = await at.open(replay)
        assert (reply["successful"], reply["error"]) == (False, REFUSED % replay)
        recorded = next(m["error"] for m in META if isinstance(m, dict) and "1553783" in m.get("error", ""))
        assert recorded == REFUSED % "1553783"
        assert await at.poll() == []


async def test_a_position_outside_retention_is_refused_and_minus_two_gives_the_rest() -> None:
    async with org() as at:
        replay_ids = [await at.person(name) for name in ("One", "Two", "Three")]
        assert (await at.control("POST", "retention", {"upto": replay_ids[1]}))["dropped"] == 2
        assert (await at.open(replay_ids[1]))["error"] == REFUSED % replay_ids[1]
        assert (await at.subscribe(replay_ids[2]))["successful"]
        await at.subscribe(-2)
        assert names(await at.poll()) == ["Three"]


async def test_with_nothing_retained_every_position_is_refused() -> None:
    async with org() as at:
        last = await at.person("One")
        await at.control("POST", "retention", {"upto": last})
        assert (await at.open(last))["error"] == REFUSED % last


async def test_events_older_than_the_retention_time_are_gone() -> None:
    async with org() as at:
        first = await at.person("One")
        at.sandbox.org.clock = lambda: 1e10  # far in the future
        await at.person("Two")
        assert (await at.open(first))["error"] == REFUSED % first


async def test_a_replay_map_with_another_channel_is_refused_with_both_named() -> None:
    async with org() as at:
        await at.open()
        (reply,) = await at.send("subscribe", subscription=ALL, ext={"replay": {"/data/LeadChangeEvent": -1}})
        assert reply["error"] == (
            "400::The replayId for channel {/data/ChangeEvents} wasn't found using the provided replay ID map "
            "{{/data/LeadChangeEvent=-1}}. Ensure that the channel name you provided in the replay map is valid "
            "and matches the channel name used for subscribing."
        )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "400::Channel name not specified"),
        ({"subscription": ""}, "400::Channel name not specified"),
        ({"subscription": ["/data/ChangeEvents"]}, "400::Channel name not specified"),
        ({"subscription": "data/ChangeEvents"}, "400::Channel subscriptions must start with a leading '/'"),
        ({"subscription": "/data/NopeChangeEvent"}, "400::The channel you requested to subscribe to doesn't exist {/data/NopeChangeEvent}"),
        ({"subscription": "/data/changeevents"}, "400::The channel you requested to subscribe to doesn't exist {/data/changeevents}"),
        ({"subscription": "/data/UserChangeEvent"}, "400::The channel you requested to subscribe to doesn't exist {/data/UserChangeEvent}"),
        ({"subscription": ALL, "ext": {"replay": "x"}}, None),
        ({"subscription": ALL, "ext": 5}, None),
    ],
)
async def test_a_wrong_channel_is_refused_by_name(fields: dict[str, object], error: str | None) -> None:
    async with org() as at:
        await at.open()
        (reply,) = await at.send("subscribe", **fields)
        assert (reply["successful"], reply.get("error")) == (error is None, error)


async def test_a_single_object_channel_gives_that_object_alone_and_two_channels_give_both() -> None:
    async with org() as at:
        await at.open(-1, "/data/LeadChangeEvent")
        await at.person("Not for it")
        await at.change({"op": "create", "type": "Lead", "values": {"LastName": "L", "Company": "C"}})
        assert [m["payload"]["ChangeEventHeader"]["entityName"] for m in await at.poll()] == ["Lead"]
        await at.subscribe(-1, ALL)
        await at.change({"op": "create", "type": "Lead", "values": {"LastName": "L", "Company": "C"}})
        assert sorted(m["channel"] for m in (await at.connect())[:-1]) == [ALL, "/data/LeadChangeEvent"]
        await at.send("unsubscribe", subscription=ALL)
        await at.person("Nobody's")
        assert await at.poll() == []


async def test_a_custom_channel_carries_the_objects_it_was_given() -> None:
    async with org() as at:
        await at.control("POST", "channels", {"name": "/data/Sales__chn", "entities": ["Lead"]})
        await at.open(-1, "/data/Sales__chn")
        await at.person("Not for it")
        await at.change({"op": "create", "type": "Lead", "values": {"LastName": "L", "Company": "C"}})
        assert len(await at.poll()) == 1


async def test_without_its_cookie_a_session_is_refused() -> None:
    async with org() as at:
        await at.open()
        at.http.cookie_jar.clear()
        (reply,) = await at.connect()
        assert reply["error"] == f"400::Client {at.client_id} has established a session, but no BAYEUX_BROWSER cookie present"


async def test_a_session_without_connect_for_its_time_is_unknown_and_its_subscriptions_are_gone() -> None:
    async with org() as at:
        await at.open()
        late = at.sandbox.org.clock() + 41
        at.sandbox.org.clock = lambda: late
        (reply,) = await at.connect()
        recorded = next(m for m in META if isinstance(m, dict) and m.get("id") == "83")
        assert reply | {"id": "83"} == recorded
        at.sandbox.org.clock = lambda: late + 1
        await at.handshake()
        await at.connect()
        await at.person("Unheard")
        assert await at.poll() == []


async def test_a_held_poll_keeps_the_session_alive() -> None:
    async with org(hold=60) as at:
        await at.open()
        held = asyncio.create_task(at.poll())
        await until_held(at)
        now = at.sandbox.org.clock()
        at.sandbox.org.clock = lambda: now + 100
        await at.person("After the time")
        assert names(await held) == ["After the time"]


async def test_a_message_before_the_handshake_or_of_a_stranger_is_refused() -> None:
    async with org() as at:
        assert (await at.send("connect"))[0]["error"] == "403::Client has not completed handshake"
        assert (await at.send("connect", clientId="nobody"))[0]["error"] == "403::Unknown client"
        at.token = ""
        assert (await at.send("connect", clientId="nobody"))[0]["error"] == "401::Request requires authentication"
        assert (await at.send("handshake", supportedConnectionTypes=["long-polling"]))[0]["error"] == "401::Request requires authentication"


async def test_only_long_polling_is_spoken() -> None:
    async with org() as at:
        (reply,) = await at.send("handshake", supportedConnectionTypes=["websocket"])
        assert reply["error"] == "400::Invalid connection type websocket"


async def test_a_token_of_another_user_does_not_fit_the_session() -> None:
    async with org() as at:
        await at.open()
        await at.control("POST", "apps", {"client_id": "other", "client_secret": "s", "username": "user3@example.org"})
        form = {"grant_type": "client_credentials", "client_id": "other", "client_secret": "s"}
        async with at.http.post(f"{at.sandbox.url}/services/oauth2/token", data=form) as reply:
            at.token = (await reply.json())["access_token"]
        assert (await at.connect())[0]["error"] == "400::Authenticated user id does not match the session's user id"


async def test_an_expired_token_is_refused_in_both_recorded_forms() -> None:
    async with org(hold=60) as at:
        await at.open()
        held = asyncio.create_task(at.connect())
        await until_held(at)
        await at.fault("expire-token")
        (reply,) = await held
        recorded = next(m for m in META if isinstance(m, dict) and m.get("error") == "401::Authentication invalid")
        assert reply.keys() == recorded.keys()
        told = ("error", "advice", "successful", "channel")
        assert [reply[k] for k in told] == [recorded[k] for k in told]
        denied = await at.handshake()
        wanted = next(
            m
            for m in META
            if isinstance(m, dict) and m.get("ext", {}).get("sfdc", {}).get("failureReason") == "401::Authentication invalid"
        )
        assert {k: v for k, v in denied.items() if k != "id"} == wanted
        await at.login()
        assert (await at.open())["successful"]


@pytest.mark.parametrize(
    ("version", "error"), [("", "mandatory"), ("xx", "mandatory"), ("67", "mandatory"), ("36.0", "Unsupported API version")]
)
async def test_the_address_needs_a_version_of_37_or_later(version: str, error: str) -> None:
    async with org() as at:
        status, reply = await at.post([{"channel": "/meta/handshake"}], version)
        assert status == 400
        assert reply[0]["error"].startswith("400::")
        assert error in reply[0]["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[1]", b'"x"', b"\xff\xfe", b"[" * 20_000])
async def test_a_body_that_is_no_bayeux_is_refused(body: bytes) -> None:
    async with org() as at:
        status, reply = await at.post(body)
        assert (status, reply[0]["successful"]) == (400, False)


async def test_a_body_above_the_limit_is_refused_and_one_at_the_limit_is_not() -> None:
    async with org() as at:
        message = b'[{"channel":"/meta/handshake","supportedConnectionTypes":["long-polling"],"x":"%s"}]'
        fits = message % (b"a" * (32_768 - len(message) + 2))
        assert len(fits) == 32_768
        assert (await at.post(fits))[1][0]["successful"]
        status, reply = await at.post(fits + b" ")
        assert (status, reply[0]["error"]) == (413, "413::Maximum Request Size Exceeded")


async def test_several_messages_in_one_body_are_answered_in_order_without_waiting() -> None:
    async with org(hold=60) as at:
        await at.handshake()
        messages = [{"channel": "/meta/connect", "clientId": at.client_id, "connectionType": "long-polling", "id": "a"}]
        messages.append({"channel": "/meta/subscribe", "clientId": at.client_id, "subscription": ALL, "id": "b"})
        messages.append({"channel": "/meta/connect", "clientId": at.client_id, "connectionType": "long-polling", "id": "c"})
        _, replies = await asyncio.wait_for(at.post(messages), 25)
        assert [(r["id"], r["successful"]) for r in replies] == [("a", True), ("b", True), ("c", True)]


async def test_a_newer_poll_ends_the_older_one_and_takes_the_events() -> None:
    async with org(hold=60) as at:
        await at.open()
        older = asyncio.create_task(at.connect())
        await until_held(at)
        newer = asyncio.create_task(at.poll())
        assert not (await older)[0]["successful"]
        await at.person("For the newer")
        assert names(await newer) == ["For the newer"]


async def test_after_disconnect_the_session_is_unknown() -> None:
    async with org() as at:
        await at.open()
        assert (await at.send("disconnect"))[0]["successful"]
        assert (await at.connect())[0]["error"] == "403::Unknown client"


async def test_a_long_backlog_comes_in_order_over_several_replies() -> None:
    async with org(records=0) as at:
        at.sandbox.org.settings.reply_limit = 7
        wanted = [f"N{n}" for n in range(20)]
        for name in wanted:
            await at.person(name)
        await at.open(-2)
        got: list[str] = []
        while len(got) < 20:
            page = names(await at.poll())
            assert 0 < len(page) <= 7
            got += page
        assert got == wanted


async def test_two_subscribers_each_get_everything_and_each_delivery_is_counted() -> None:
    async with Sandbox(records=5, hold=0.3) as sandbox, wire(sandbox) as first, wire(sandbox) as second:
        await first.open()
        await second.open()
        await first.person("Both")
        assert names(await first.poll()) == names(await second.poll()) == ["Both"]
        assert (await first.control("GET", "state"))["counts"]["delivered"] == 2
        left = (await first.rest("GET", "/limits"))[1]["DailyDeliveredPlatformEvents"]
        assert left["Max"] - left["Remaining"] == 2


async def test_control_paths_answer_json_errors_for_nonsense() -> None:
    async with org() as at:
        for request, body in _NONSENSE:
            method, path = request.split()
            status, reply = await at.refused(method, path, body)
            assert (status, list(reply)) in ((400, ["error"]), (400, ["error", "errors"])), (request, body, reply)
            assert len(reply["error"]) > 10


_NOPE = {"changes": [{"op": "create", "type": "Nope"}]}
_NONSENSE: list[tuple[str, object]] = [
    ("POST transaction", b"{"),
    ("POST transaction", {}),
    ("POST transaction", {"changes": [5]}),
    ("POST transaction", [1]),
    ("POST transaction", {"changes": [{"op": "x", "type": "Contact"}]}),
    ("POST transaction", _NOPE),
    ("POST transaction", {"changes": [{"op": "create", "type": "Contact", "values": {"Nope": 1}}]}),
    ("POST transaction", {"changes": [{"op": "update", "type": "Contact", "id": "003"}], "deliver": "x"}),
    ("POST gap", {"changes": []}),
    ("POST emit", b"nonsense"),
    ("POST emit", b"5"),
    ("POST emit", b'{"event": 5}'),
    ("POST faults", {"name": "nope"}),
    ("POST faults", {"name": "slow", "times": "x"}),
    ("POST faults", {"name": "slow", "times": -1}),
    ("POST faults", {"name": "slow", "seconds": 1e9}),
    ("POST faults", {"name": "slow", "variant": "x"}),
    ("DELETE faults?name=nope", None),
    ("POST retention", {"upto": "x"}),
    ("POST settings", {"nope": 1}),
    ("POST settings", {"hold": "x"}),
    ("POST settings", {"hold": -1}),
    ("POST settings", {"selected": ["Nope"]}),
    ("POST settings", {"selected": 5}),
    ("GET records", None),
    ("GET commits?after=x", None),
    ("POST change", {"rate": -1}),
    ("POST change", {"rate": 1e9, "seconds": 1e9}),
    ("POST apps", {"public_key": "x"}),
    ("POST apps", {"username": "nobody@example.org"}),
    ("POST channels", {"name": 5}),
]
