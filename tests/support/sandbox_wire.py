"""A bare CometD and REST client for tests of the sandbox org: shows every reply as it came, follows no advice."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from deploy.sandbox.salesforce.server import Sandbox

ALL = "/data/ChangeEvents"
Json = Any


class Wire:
    """One HTTP session with its cookies and one token; Bayeux calls give the whole reply array."""

    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.sandbox, self.http = sandbox, http
        self.token = ""
        self.client_id = ""
        self._number = 0

    async def login(self) -> str:
        form = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        async with self.http.post(f"{self.sandbox.url}/services/oauth2/token", data=form) as reply:
            body = await reply.json()
            assert reply.status == 200, body
            self.token = body["access_token"]
            return self.token

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def post(self, body: Json, version: str = "67.0", headers: dict[str, str] | None = None) -> tuple[int, Json]:
        """A body to /cometd as it is. Status and reply; text where the reply is no JSON."""
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(
            f"{self.sandbox.url}/cometd/{version}", headers=self.headers if headers is None else headers, **sent
        ) as reply:
            return reply.status, await reply.json() if reply.content_type == "application/json" else await reply.text()

    async def send(self, channel: str, **fields: Json) -> list[Json]:
        """One meta message of this session."""
        self._number += 1
        message = {"channel": f"/meta/{channel}", "id": str(self._number), **fields}
        if self.client_id and "clientId" not in message:
            message["clientId"] = self.client_id
        status, reply = await self.post([message])
        assert status == 200, reply
        assert isinstance(reply, list)
        return reply

    async def handshake(self) -> Json:
        self.client_id = ""
        (reply,) = await self.send("handshake", version="1.0", supportedConnectionTypes=["long-polling"], ext={"replay": True})
        self.client_id = reply.get("clientId", "")
        return reply

    async def subscribe(self, replay: Json = -1, channel: str = ALL) -> Json:
        (reply,) = await self.send("subscribe", subscription=channel, ext={"replay": {channel: replay}})
        return reply

    async def open(self, replay: Json = -1, channel: str = ALL) -> Json:
        """Handshake, first connect, subscribe. The subscribe reply."""
        assert (await self.handshake())["successful"]
        assert (await self.connect())[-1]["successful"]
        return await self.subscribe(replay, channel)

    async def connect(self) -> list[Json]:
        return await self.send("connect", connectionType="long-polling")

    async def poll(self) -> list[Json]:
        """The events of one connect."""
        reply = await self.connect()
        assert reply[-1]["successful"], reply
        return [m["data"] for m in reply[:-1]]

    async def rest(self, method: str, path: str, body: Json = None, **options: Json) -> tuple[int, Json]:
        headers = self.headers | options.pop("headers", {})
        sent = {} if body is None else {"data": body} if isinstance(body, bytes) else {"json": body}
        base = path if path.startswith("/services") else f"/services/data/v67.0{path}"
        async with self.http.request(method, f"{self.sandbox.url}{base}", headers=headers, **sent, **options) as reply:
            text = await reply.text()
            return reply.status, await reply.json() if text and reply.content_type == "application/json" else text

    async def control(self, method: str, path: str, body: Json = None) -> Json:
        """A control request that must be granted."""
        status, reply = await self.refused(method, path, body)
        assert status == 200, reply
        return reply

    async def refused(self, method: str, path: str, body: Json = None) -> tuple[int, Json]:
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.request(method, f"{self.sandbox.url}/sandbox/{path}", **sent) as reply:
            return reply.status, await reply.json()

    async def fault(self, name: str, **options: Json) -> Json:
        return await self.control("POST", "faults", {"name": name, **options})

    async def change(self, *changes: Json, **options: Json) -> Json:
        return await self.control("POST", "transaction", {"changes": list(changes), **options})

    async def person(self, last_name: str) -> int:
        """Make a contact. The replay id of its event."""
        done = await self.change({"op": "create", "type": "Contact", "values": {"LastName": last_name}})
        return int(done["replayIds"][0])


@asynccontextmanager
async def wire(sandbox: Sandbox) -> AsyncIterator[Wire]:
    """A client with a token."""
    async with aiohttp.ClientSession() as http:
        made = Wire(sandbox, http)
        await made.login()
        yield made


@asynccontextmanager
async def org(records: int = 20, hold: float = 0.4, **options: Any) -> AsyncIterator[Wire]:
    """A sandbox org with few records and short polls, and a client with a token."""
    async with Sandbox(records=records, hold=hold, **options) as sandbox, wire(sandbox) as made:
        sandbox.org.settings.linger = 0
        yield made


def names(events: list[Json]) -> list[str]:
    """The last names that contact events brought."""
    return [e["payload"]["Name"]["LastName"] for e in events]
