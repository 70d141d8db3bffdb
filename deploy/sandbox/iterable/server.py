"""The sandbox Iterable on the wire: keys, limits, faults, the user calls, and the control paths `/sandbox/...`."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.faults import Armed
from deploy.sandbox.iterable.control import Control
from deploy.sandbox.iterable.project import Answer, Project, error
from deploy.sandbox.iterable.state import API_KEY, State

DEFAULT_PORT = 8602
Work = Callable[[Project, Any], Answer]


class Sandbox:
    """A running sandbox Iterable: `url`, and `state` for tests in the same process."""

    def __init__(self, port: int = 0, key: str = API_KEY, host: str = "127.0.0.1") -> None:
        self.state = State({key: Project()})
        app = web.Application(middlewares=[serve.control_guard], client_max_size=32 * 2**20)
        app.add_routes(self._routes())
        self.listener = serve.Listener(app, port, host)

    def _routes(self) -> list[web.RouteDef]:
        def post(path: str, work: Work, limit: str | None = None) -> web.RouteDef:
            return web.post(path, self._call(work, limit or path))

        def by_path(work: Callable[[Project, str], Answer]) -> Any:
            return self._call(work, "user", from_path=True)

        return [
            post("/api/users/bulkUpdate", Project.bulk_update),
            post("/api/users/update", Project.update),
            post("/api/users/updateEmail", Project.update_email),
            post("/api/users/merge", Project.merge),
            post("/api/users/forget", lambda p, b: p.forget(_email(b)), "slow"),
            post("/api/users/unforget", lambda p, b: p.unforget(_email(b)), "slow"),
            web.get("/api/users/forgotten", self._call(lambda p, _: p.hashes(), "slow")),
            web.get("/api/users/getFields", self._call(lambda p, _: (200, {"fields": p.types.known}), "slow")),
            web.get("/api/users/getByEmail", by_path(Project.get)),
            web.get("/api/users/byUserId/{who:.+}", by_path(Project.get_by_user_id)),
            web.get("/api/users/{who:.+}", by_path(Project.get)),
            web.delete("/api/users/byUserId/{who:.+}", by_path(Project.delete_by_user_id)),
            web.delete("/api/users/{who:.+}", by_path(Project.delete)),
            *Control(self.state).routes(),
            web.route("*", "/{rest:.*}", self._unknown),
        ]

    @property
    def url(self) -> str:
        return self.listener.url

    async def start(self) -> "Sandbox":
        await self.listener.start()
        return self

    async def stop(self) -> None:
        await self.listener.stop()

    async def __aenter__(self) -> "Sandbox":
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def banner(self) -> str:
        return f"sandbox Iterable at {self.url}  api_key={next(iter(self.state.projects))}"

    def _call(self, work: Callable[[Project, Any], Answer], limit: str, *, from_path: bool = False) -> Any:
        """The handler behind faults, key, limit and size; what it did goes into the request log."""

        async def handle(request: web.Request) -> web.StreamResponse:
            entry: dict[str, Any] = {"began": time.time(), "method": request.method, "path": request.path, "status": None, "users": []}
            self.state.log.append(entry)
            response = await self._answer(request, work, limit, from_path, entry)
            entry["ended"] = time.time()
            entry["status"] = response.status
            return response

        return handle

    async def _answer(self, request: web.Request, work: Any, limit: str, from_path: bool, entry: dict[str, Any]) -> web.StreamResponse:
        if early := self._broken(request):
            return early
        raw = await request.read()
        project = self.state.projects.get(request.headers.get("Api-Key") or request.headers.get("api_key") or "")
        if project is None or self.state.faults.peek("revoke"):
            return _respond(error(401, "BadApiKey", "Invalid API key", {"ip": "127.0.0.1", "endpoint": request.path}))
        if not self.state.admitted(project, limit):
            return self._limited(request.path, self.state.rates[limit], project, self.state.style)
        if len(raw) > self.state.max_bytes:
            return _respond(error(413, "BatchTooLarge", f"Request body is larger than {self.state.max_bytes} bytes"))
        project.settle()
        subject: Any = request.match_info.get("who", request.query.get("email", ""))
        if not from_path and raw:
            try:
                subject = orjson.loads(raw)
            except orjson.JSONDecodeError:
                return _respond(error(400, "BadJsonBody", f"[{request.path}] Invalid JSON body", {"obj": "JSON expected"}))
        entry["users"] = _named(subject)
        answer = work(project, subject)
        entry["committed"] = answer[0] == 200
        return await self._after(request, answer)

    def _broken(self, request: web.Request) -> web.Response | None:
        """Faults that strike before anything is done."""
        if away := self.state.faults.peek("down"):
            self.state.faults.take("down")
            if away.variant == "refuse" and request.transport:
                request.transport.abort()
            return _respond(error(503, "GenericError", "Service temporarily unavailable"))
        if self.state.faults.take("reset-before"):
            if request.transport:
                request.transport.abort()
            return web.Response(status=503)
        if self.state.faults.take("html-404"):
            return web.Response(
                status=404, text="<!DOCTYPE html>\n<html><body><h1>Action not found</h1></body></html>", content_type="text/html"
            )
        if self.state.faults.take("text-429"):
            return self._limited(request.path, 5, None, "text")
        if armed := self.state.faults.take("json-429"):
            return self._limited(request.path, 5, None, "retry-after" if armed.variant == "retry-after" else "json")
        if armed := self.state.faults.take("500-json"):
            code = "RequestFieldsTypesMismatched" if armed.variant == "mismatch" else "GenericError"
            return _respond((500, {"code": code, "msg": "An error occurred"}))
        return None

    async def _after(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """Faults that strike when the work is done."""
        late: Armed | None = self.state.faults.take("latency")
        if late:
            await asyncio.sleep(late.seconds)
        if self.state.faults.take("reset-after-commit"):
            if request.transport:
                request.transport.abort()
            return web.Response(status=503)
        if not self.state.faults.take("cut-body"):
            return _respond(answer)
        body = orjson.dumps(answer[1])
        response = web.StreamResponse(status=answer[0], headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if request.transport:
            request.transport.close()  # what was written still goes out
        return response

    def _limited(self, path: str, rate: float, project: Project | None, style: str) -> web.Response:
        if style == "text":
            return web.Response(status=429, text="Too Many Requests")
        if style == "retry-after":
            return _respond((429, {"msg": "Exceeded rate limit.", "code": "RateLimitExceeded"}), {"retry-after": "1"})
        number = project.number if project else 2158
        text = f"Exceeded rate limit of {float(rate)} per second for endpoint: {path}, project: {number} "
        return _respond((429, {"msg": text, "code": "RateLimitExceeded", "params": {}}))

    async def _unknown(self, _request: web.Request) -> web.Response:
        return web.Response(
            status=404, text="<!DOCTYPE html>\n<html><body><h1>Action not found</h1></body></html>", content_type="text/html"
        )


def _email(body: Any) -> Any:
    return body.get("email") if isinstance(body, dict) else None


def _named(subject: Any) -> list[str]:
    """The identifiers a request names, in its order; for the log."""
    if isinstance(subject, str):
        return [subject]
    if not isinstance(subject, dict):
        return []
    if isinstance(subject.get("users"), list):
        return [str(u.get("email") or u.get("userId")) for u in subject["users"] if isinstance(u, dict)]
    return [str(v) for k, v in subject.items() if k in ("email", "userId", "currentEmail", "newEmail", "sourceEmail", "destinationEmail")]


def _respond(answer: Answer, headers: dict[str, str] | None = None) -> web.Response:
    extra = {"Content-Type": "application/json", "Server": "iterable-ingress 8e97", **(headers or {})}
    return web.Response(status=answer[0], body=orjson.dumps(answer[1]), headers=extra)
