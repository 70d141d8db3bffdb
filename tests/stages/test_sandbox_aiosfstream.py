"""The library that the subscriber stands on works against the sandbox org, and finds there the faults it is known for."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiosfstream_ng import Client
from aiosfstream_ng.auth import AuthenticatorBase
from aiosfstream_ng.exceptions import TransportTimeoutError

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from tests.support.sandbox_wire import ALL, Wire, org


class Login(AuthenticatorBase):  # type: ignore[misc]  # the library has no types
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    async def _authenticate(self) -> tuple[int, Any]:
        form = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        async with aiohttp.ClientSession() as http, http.post(f"{self.url}/services/oauth2/token", data=form) as reply:
            return reply.status, await reply.json()


def client(at: Wire) -> Client:
    return Client(Login(at.sandbox.url), connection_timeout=5)


async def receive(stream: Client) -> str:
    name: str = (await asyncio.wait_for(stream.receive(), 25))["data"]["payload"]["Name"]["LastName"]
    return name


async def test_it_subscribes_and_gets_each_event_once_and_in_order() -> None:
    async with org(hold=5) as at, client(at) as stream:
        await stream.subscribe(ALL)
        wanted = [f"N{n}" for n in range(30)]
        for name in wanted:
            await at.person(name)
        assert [await receive(stream) for _ in wanted] == wanted


async def test_it_comes_back_by_itself_after_an_unknown_client() -> None:
    async with org(hold=0.3) as at, client(at) as stream:
        await stream.subscribe(ALL)
        await at.person("Before")
        assert await receive(stream) == "Before"
        await at.fault("unknown-client")
        async with asyncio.timeout(25):
            while at.sandbox.org.counts["handshakes"] < 2 or not any(s.channels for s in at.sandbox.cometd.alive()):  # noqa: ASYNC110 - the library tells no one
                await asyncio.sleep(0.02)
        await at.person("After")
        assert "After" in [await receive(stream)]


async def test_a_cut_poll_is_a_timeout_error_at_once_to_its_user() -> None:
    async with org(hold=60) as at, client(at) as stream:
        await stream.subscribe(ALL)
        waiting = asyncio.create_task(stream.receive())
        async with asyncio.timeout(25):
            while not any(s.holding for s in at.sandbox.cometd.alive()):  # noqa: ASYNC110 - the library tells no one
                await asyncio.sleep(0.02)
        await at.fault("drop-connections")
        with pytest.raises((TransportTimeoutError, TypeError)):
            await asyncio.wait_for(waiting, 25)


async def test_a_refused_second_subscription_leaves_it_connected_and_subscribed_to_nothing() -> None:
    async with org(hold=0.3) as at, client(at) as stream:
        await stream.subscribe(ALL)
        await at.fault("refuse-resubscribe", times=0)
        await at.fault("unknown-client")
        async with asyncio.timeout(25):
            while stream.subscriptions:  # noqa: ASYNC110 - the library tells no one
                await asyncio.sleep(0.02)
        assert not stream.closed
