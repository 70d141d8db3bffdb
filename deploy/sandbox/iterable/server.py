"""The sandbox Iterable on the wire: keys, limits, faults, the user calls, and the control paths `/sandbox/...`."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.faults import Armed, Faults, Kind
from deploy.sandbox.iterable.project import Answer, Project, error

DEFAULT_PORT = 8602
API_KEY = "sandbox-iterable-key"
RATES = {
    "/api/users/bulkUpdate": 5.0,
    "/api/users/update": 500.0,
    "/api/users/updateEmail": 100.0,
    "/api/users/merge": 50.0,
    "user": 100.0,
    "slow": 3.0,
}
STYLES = ("json", "text", "retry-after")
KINDS = {
    "cut-body": Kind("do it, then send half of the answer"),
    "html-404": Kind("answer with an HTML page and 404"),
    "text-429": Kind("answer 429 in plain text"),
    "json-429": Kind("answer 429 in JSON, with Retry-After or without", ("plain", "retry-after")),
    "500-json": Kind("answer 500 with a JSON code", ("before", "mismatch")),
    "latency": Kind("do it, and answer late by some seconds", seconds=2.0),
    "reset-after-commit": Kind("do it, then cut the connection"),
    "reset-before": Kind("cut the connection and do nothing"),
    "down": Kind("be away: answer 503, or refuse", ("503", "refuse"), times=None),
    "revoke": Kind("refuse every key", times=None),
}
Work = Callable[[Project, Any], Answer]


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` a second, as many at once."""

    rate: float
    tokens: float
    at: float

    def take(self, now: float) -> bool:
        self.tokens = min(max(self.rate, 1.0), self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Sandbox:
    """A running sandbox Iterable: `url`, and `projects` (by API key) for tests in the same process."""

    def __init__(self, port: int = 0, key: str = API_KEY) -> None:
        self.projects = {key: Project()}
        self.faults = Faults(KINDS)
        self.rates = dict(RATES)
        self.style = "json"
        self.max_bytes = 4_000_000
        self.log: deque[dict[str, Any]] = deque(maxlen=20_000)
        self._buckets: dict[tuple[int, str], Bucket] = {}
        app = web.Application(middlewares=[serve.control_guard], client_max_size=32 * 2**20)
        app.add_routes(self._routes())
        self.listener = serve.Listener(app, port)

    def _routes(self) -> list[web.RouteDef]:
        def post(path: str, work: Work, limit: str | None = None) -> web.RouteDef:
            return web.post(path, self._call(work, limit or path))

        def by_path(work: Callable[[Project, str], Answer]) -> Any:
            return self._call(work, "user", from_path=True)

        control = [
            web.get("/sandbox/users", self._users),
            web.delete("/sandbox/users", self._empty),
            web.get("/sandbox/requests", self._requests),
            web.get("/sandbox/state", self._state),
            web.get("/sandbox/faults", self._faults),
            web.post("/sandbox/faults", self._arm),
            web.delete("/sandbox/faults", self._clear),
            web.get("/sandbox/settings", self._settings),
            web.post("/sandbox/settings", self._set),
            web.post("/sandbox/keys", self._key),
        ]
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
            *control,
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
        return f"sandbox Iterable at {self.url}  api_key={next(iter(self.projects))}"

    def _call(self, work: Callable[[Project, Any], Answer], limit: str, *, from_path: bool = False) -> Any:
        """The handler behind faults, key, limit and size; what it did goes into the request log."""

        async def handle(request: web.Request) -> web.StreamResponse:
            entry: dict[str, Any] = {"began": time.time(), "method": request.method, "path": request.path, "status": None, "users": []}
            self.log.append(entry)
            response = await self._answer(request, work, limit, from_path, entry)
            entry["ended"] = time.time()
            entry["status"] = response.status
            return response

        return handle

    async def _answer(self, request: web.Request, work: Any, limit: str, from_path: bool, entry: dict[str, Any]) -> web.StreamResponse:
        if early := self._broken(request):
            return early
        raw = await request.read()
        project = self.projects.get(request.headers.get("Api-Key") or request.headers.get("api_key") or "")
        if project is None or self.faults.peek("revoke"):
            return _respond(error(401, "BadApiKey", "Invalid API key", {"ip": "127.0.0.1", "endpoint": request.path}))
        if not self._admitted(project, limit):
            return self._limited(request.path, self.rates[limit], project, self.style)
        if len(raw) > self.max_bytes:
            return _respond(error(413, "BatchTooLarge", f"Request body is larger than {self.max_bytes} bytes"))
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
        if away := self.faults.peek("down"):
            self.faults.take("down")
            if away.variant == "refuse" and request.transport:
                request.transport.abort()
            return _respond(error(503, "GenericError", "Service temporarily unavailable"))
        if self.faults.take("reset-before"):
            if request.transport:
                request.transport.abort()
            return web.Response(status=503)
        if self.faults.take("html-404"):
            return web.Response(
                status=404, text="<!DOCTYPE html>\n<html><body><h1>Action not found</h1></body></html>", content_type="text/html"
            )
        if self.faults.take("text-429"):
            return self._limited(request.path, 5, None, "text")
        if armed := self.faults.take("json-429"):
            return self._limited(request.path, 5, None, "retry-after" if armed.variant == "retry-after" else "json")
        if armed := self.faults.take("500-json"):
            code = "RequestFieldsTypesMismatched" if armed.variant == "mismatch" else "GenericError"
            return _respond((500, {"code": code, "msg": "An error occurred"}))
        return None

    async def _after(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """Faults that strike when the work is done."""
        late: Armed | None = self.faults.take("latency")
        if late:
            await asyncio.sleep(late.seconds)
        if self.faults.take("reset-after-commit"):
            if request.transport:
                request.transport.abort()
            return web.Response(status=503)
        if not self.faults.take("cut-body"):
            return _respond(answer)
        body = orjson.dumps(answer[1])
        response = web.StreamResponse(status=answer[0], headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if request.transport:
            request.transport.close()  # what was written still goes out
        return response

    def _admitted(self, project: Project, limit: str) -> bool:
        now = time.monotonic()
        rate = self.rates[limit]
        bucket = self._buckets.setdefault((project.number, limit), Bucket(rate, max(rate, 1.0), now))
        bucket.rate = rate
        return rate <= 0 or bucket.take(now)

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

    def _project(self, request: web.Request) -> Project:
        key = request.query.get("key", next(iter(self.projects)))
        if key not in self.projects:
            raise ValueError("there is no project with that key")
        self.projects[key].settle()
        return self.projects[key]

    async def _users(self, request: web.Request) -> web.Response:
        """Every profile with its fields as they were sent; for oracles."""
        users = self._project(request).profiles.values()
        return serve.json({"users": [{"email": p.email, "userId": p.user_id, "dataFields": p.fields} for p in users]})

    async def _empty(self, request: web.Request) -> web.Response:
        project = self._project(request)
        project.__init__(project.number)  # type: ignore[misc]  # the same project, as new
        return serve.json({"users": []})

    async def _requests(self, _request: web.Request) -> web.Response:
        return serve.json({"requests": list(self.log)})

    async def _state(self, _request: web.Request) -> web.Response:
        counts = {
            key: {"users": len(p.profiles), "fields": len(p.types.known), "forgotten": len(p.forgotten)} for key, p in self.projects.items()
        }
        return serve.json({"projects": counts, "requests": len(self.log), "faults": [a.as_dict() for a in self.faults.armed.values()]})

    async def _faults(self, _request: web.Request) -> web.Response:
        known = {n: {"what": k.what, "variants": k.variants, "times": k.times, "seconds": k.seconds} for n, k in KINDS.items()}
        return serve.json({"armed": [a.as_dict() for a in self.faults.armed.values()], "fired": self.faults.fired, "known": known})

    async def _arm(self, request: web.Request) -> web.Response:
        given = await serve.body(request)
        return serve.json(self.faults.arm_given(given).as_dict())

    async def _clear(self, request: web.Request) -> web.Response:
        self.faults.clear(request.query.get("name"))
        return serve.json({"armed": [a.as_dict() for a in self.faults.armed.values()]})

    async def _settings(self, request: web.Request) -> web.Response:
        project = self._project(request)
        own = {"delete_lag": project.delete_lag, "create_new_fields": project.create_new_fields}
        return serve.json({"rates": self.rates, "style": self.style, "max_bytes": self.max_bytes} | own)

    async def _set(self, request: web.Request) -> web.Response:
        """`{"rates": {endpoint: a second, 0 for no limit}, "style", "max_bytes", "delete_lag", "create_new_fields"}`."""
        given = await serve.body(request)
        project = self._project(request)
        rates = given.get("rates", {})
        if not isinstance(rates, dict) or set(rates) - set(RATES) or not all(_number(r) for r in rates.values()):
            raise ValueError(f"rates: a number from 0 for each of: {', '.join(RATES)}")
        if given.get("style", self.style) not in STYLES:
            raise ValueError(f"style: one of {', '.join(STYLES)}")
        if not _number(given.get("max_bytes", 0)) or not _number(given.get("delete_lag", 0)):
            raise ValueError("max_bytes and delete_lag are numbers from 0")
        if unknown := set(given) - {"rates", "style", "max_bytes", "delete_lag", "create_new_fields"}:
            raise ValueError(f"no setting named {', '.join(sorted(unknown))}")
        self.rates |= rates
        self.style = given.get("style", self.style)
        self.max_bytes = given.get("max_bytes", self.max_bytes)
        project.delete_lag = given.get("delete_lag", project.delete_lag)
        project.create_new_fields = bool(given.get("create_new_fields", project.create_new_fields))
        return await self._settings(request)

    async def _key(self, request: web.Request) -> web.Response:
        """`{"key", "enabled"?}`: a further project under its own key, or an end to one. (`revoke` keeps the project.)"""
        given = await serve.body(request)
        key = given.get("key")
        if not isinstance(key, str) or not key:
            raise ValueError("key: expected text")
        if given.get("enabled", True):
            self.projects.setdefault(key, Project(2158 + len(self.projects)))
        elif len(self.projects) > 1:
            self.projects.pop(key, None)
        else:
            raise ValueError("that is the last key; use the fault revoke")
        return serve.json({"keys": list(self.projects)})


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 10**9


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
