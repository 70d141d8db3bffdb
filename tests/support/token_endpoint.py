"""A token endpoint in front of a sandbox org: the grants of a connected app with refresh-token rotation, over real HTTP.

It hands out access tokens of the org behind it, so what logs in here reads there. A refresh token is good once; a second use, as Salesforce
does it with rotation, ends the grant.
"""

import asyncio
import base64
import hashlib
import secrets
from collections import Counter
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET

PASSWORD = "hunter2-and-security-token"


class TokenEndpoint:
    """`async with TokenEndpoint(org.url) as endpoint:`; `refuse`, `down`, `stall` and `rotate` are switches."""

    def __init__(self, org: str) -> None:
        self.org, self.url = org, ""
        self.counts: Counter[str] = Counter()
        self.good: set[str] = {"seed-refresh-token"}
        self.spent: set[str] = set()
        self.codes: dict[str, dict[str, str]] = {}
        self.refuse = self.down = False
        self.rotate = True
        self.stall: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "TokenEndpoint":
        app = web.Application()
        app.router.add_post("/services/oauth2/token", self._token)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def grant(self, challenge: str, redirect: str) -> str:
        """What the authorize page would hand out."""
        code = secrets.token_urlsafe(16)
        self.codes[code] = {"challenge": challenge, "redirect": redirect}
        return code

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form: dict[str, Any] = dict(await request.post())
        self.counts[str(form.get("grant_type"))] += 1
        if self.stall is not None:
            await self.stall.wait()
        if self.down:
            return web.Response(status=503, text="<html>We are down for maintenance.</html>", content_type="text/html")
        if self.refuse:
            return self._refused("invalid_grant", "expired access/refresh token")
        match form:
            case {"grant_type": "refresh_token", "client_id": str(app), "refresh_token": str(token)} if app == CLIENT_ID:
                return await self._refresh(token)
            case {"grant_type": "password", "username": _, "password": str(word), "client_secret": str(secret)}:
                return (
                    await self._answer()
                    if (word, secret) == (PASSWORD, CLIENT_SECRET)
                    else self._refused("invalid_grant", "authentication failure")
                )
            case {"grant_type": "authorization_code", "code": str(code), "code_verifier": str(verifier), "redirect_uri": str(redirect)}:
                granted = self.codes.pop(code, {})
                challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
                if granted != {"challenge": challenge, "redirect": redirect}:
                    return self._refused("invalid_grant", "invalid authorization code")
                return await self._answer(self._fresh())
        return self._refused("invalid_client_id", "client identifier invalid")

    async def _refresh(self, token: str) -> web.Response:
        if token in self.spent:
            self.counts["reused"] += 1
            self.good.clear()
        if token not in self.good:
            return self._refused("invalid_grant", "expired access/refresh token")
        if not self.rotate:
            return await self._answer()
        self.good.discard(token)
        self.spent.add(token)
        return await self._answer(self._fresh())

    def _fresh(self) -> str:
        token = f"5Aep861-{secrets.token_urlsafe(24)}"
        self.good.add(token)
        return token

    async def _answer(self, refresh: str | None = None) -> web.Response:
        form = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        async with aiohttp.ClientSession() as http, http.post(f"{self.org}/services/oauth2/token", data=form) as reply:
            body = await reply.json()
            if reply.status != 200:
                return web.json_response(body, status=reply.status)
        return web.json_response(body | ({"refresh_token": refresh} if refresh else {}))

    def _refused(self, error: str, description: str) -> web.Response:
        self.counts["refused"] += 1
        return web.json_response({"error": error, "error_description": description}, status=400)
