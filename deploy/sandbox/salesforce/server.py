"""Puts the sandbox org together and on the wire. The only module here that knows all the others."""

import asyncio
from email.utils import formatdate
from pathlib import Path

from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.salesforce import scenario, schema
from deploy.sandbox.salesforce.bulk import Bulk
from deploy.sandbox.salesforce.cometd import Cometd
from deploy.sandbox.salesforce.composite import Composite
from deploy.sandbox.salesforce.control import Control
from deploy.sandbox.salesforce.desk import Desk
from deploy.sandbox.salesforce.gate import Gate
from deploy.sandbox.salesforce.oauth import OAuth
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, USERNAME, Org
from deploy.sandbox.salesforce.replication import Replication
from deploy.sandbox.salesforce.rest import Rest

DEFAULT_PORT = 8601
_HTML = "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body><h1>We are down for maintenance.</h1></body></html>"


class Sandbox:
    """A running sandbox Salesforce: `url`, and `org` for tests in the same process."""

    def __init__(
        self,
        records: int = 0,
        seed: int = 1,
        fields: Path | None = None,
        hold: float = 110.0,
        jwt_key: Path | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        person_accounts: bool = False,
    ) -> None:
        loaded = schema.load(fields)
        if person_accounts:
            loaded.enable_person_accounts()
        self.org = Org(loaded, seed)
        self.org.settings.hold = hold
        scenario.seed(self.org, records, seed)
        self.oauth = OAuth(self.org)
        if jwt_key is not None:
            self.oauth.register_file(jwt_key)
        self.cometd = Cometd(self.org, self.oauth)
        self.gate = Gate(self.org, self.oauth)
        self.rest = Rest(self.org, self.gate, self.cometd)
        self.bulk = Bulk(self.org, self.gate, seed)
        self.control = Control(self.org, self.oauth, self.cometd)
        desk = Desk(self.org, self.oauth, self.cometd)
        app = web.Application(middlewares=[serve.control_guard, self._under_way, self._faults], client_max_size=64 * 2**20)
        app.add_routes([web.post("/cometd", self.cometd.handle), web.post("/cometd/{version:.*}", self.cometd.handle)])
        app.add_routes([web.post("/services/oauth2/token", self.oauth.token), web.post("/services/oauth2/revoke", self.oauth.revoke)])
        app.add_routes(
            [web.get("/services/oauth2/authorize", self.oauth.authorize), web.get("/services/oauth2/userinfo", self.oauth.userinfo)]
        )
        app.add_routes(self.control.routes() + desk.routes() + self.bulk.routes())
        for part in (Composite(self.org, self.gate), Replication(self.org, self.gate), self.rest):
            app.add_routes(part.routes())
        app.on_response_prepare.append(self._dated)
        self.listener = self.control.strike.listener = serve.Listener(app, port, host)

    @property
    def url(self) -> str:
        return self.listener.url

    async def start(self) -> "Sandbox":
        await self.listener.start()
        return self

    async def stop(self) -> None:
        await self.control.close()
        await self.bulk.close()
        self.cometd.forget_sessions()
        await self.listener.stop()

    async def __aenter__(self) -> "Sandbox":
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def banner(self) -> str:
        return f"sandbox Salesforce at {self.url}  client_id={CLIENT_ID}  client_secret={CLIENT_SECRET}  username={USERNAME}"

    @web.middleware
    async def _under_way(self, request: web.Request, handler: serve.Handler) -> web.StreamResponse:
        """Counts how many calls of REST and Bulk there were at a time, at most."""
        if not request.path.startswith("/services/data/"):
            return await handler(request)
        counts = self.org.counts
        counts["rest under way"] += 1
        counts["most rest under way"] = max(counts["most rest under way"], counts["rest under way"])
        try:
            return await handler(request)
        finally:
            counts["rest under way"] -= 1

    @web.middleware
    async def _faults(self, request: web.Request, handler: serve.Handler) -> web.StreamResponse:
        """Faults that strike before any meaning is read: late, an HTML page, nothing, a cut socket."""
        path, take = request.path, self.org.faults.take
        if path.startswith("/sandbox/"):
            return await handler(request)
        kind = "cometd" if path.startswith("/cometd") else "token" if path.startswith("/services/oauth2") else "rest"
        kinds = ("all", kind, "bulk") if "/jobs/" in path else ("all", kind)
        if slow := take("slow", *kinds):
            await asyncio.sleep(slow.seconds)
        down = take("token-endpoint-down", "html", "cut") if kind == "token" else None
        if (kind == "cometd" and take("drop-connections", "request")) or (down and down.variant == "cut"):
            if request.transport:
                request.transport.abort()
            return web.Response()
        for name, status in (("html-503", 503), ("html-200", 200), ("empty-body", 200)):
            if (down and name == "html-503") or take(name, *kinds):
                return web.Response(status=status, text="" if name == "empty-body" else _HTML, content_type="text/html")
        if stalled := take("stalled", *kinds):
            request[serve.STALLED] = stalled.seconds
            return await _stall(request, await handler(request), stalled.seconds)
        return await handler(request)

    async def _dated(self, _request: web.Request, response: web.StreamResponse) -> None:
        """The Date header tells the org's clock, which may be wrong."""
        response.headers["Date"] = formatdate(self.org.now(), usegmt=True)


async def _stall(request: web.Request, whole: web.StreamResponse, seconds: float) -> web.StreamResponse:
    if whole.prepared or not isinstance(whole, web.Response) or not isinstance(whole.body, bytes) or len(whole.body) < 2:
        return whole
    headers = {k: v for k, v in whole.headers.items() if k not in ("Content-Length", "Transfer-Encoding")}
    partial = web.StreamResponse(status=whole.status, headers=headers)
    partial.content_length = len(whole.body)
    await partial.prepare(request)
    return await serve.stall(request, partial, whole.body, seconds)
