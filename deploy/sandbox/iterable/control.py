"""The control paths of the sandbox Iterable, `/sandbox/...`: for tests and for a person at the desk, on this machine only."""

from typing import Any

from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.iterable.project import Project
from deploy.sandbox.iterable.state import RATES, STYLES, State


class Control:
    def __init__(self, state: State) -> None:
        self.state = state

    def routes(self) -> list[web.RouteDef]:
        return [
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

    def _project(self, request: web.Request) -> Project:
        key = request.query.get("key", next(iter(self.state.projects)))
        if key not in self.state.projects:
            raise ValueError("there is no project with that key")
        self.state.projects[key].settle()
        return self.state.projects[key]

    async def _users(self, request: web.Request) -> web.Response:
        """Every profile with its fields as they were sent; for oracles."""
        users = self._project(request).profiles.values()
        return serve.json({"users": [{"email": p.email, "userId": p.user_id, "dataFields": p.fields} for p in users]})

    async def _empty(self, request: web.Request) -> web.Response:
        project = self._project(request)
        project.__init__(project.number)  # type: ignore[misc]  # the same project, as new
        return serve.json({"users": []})

    async def _requests(self, _request: web.Request) -> web.Response:
        return serve.json({"requests": list(self.state.log)})

    async def _state(self, _request: web.Request) -> web.Response:
        counts = {
            key: {"users": len(p.profiles), "fields": len(p.types.known), "forgotten": len(p.forgotten)}
            for key, p in self.state.projects.items()
        }
        return serve.json({"projects": counts, "requests": len(self.state.log), "faults": self.state.faults.as_list()})

    async def _faults(self, _request: web.Request) -> web.Response:
        return serve.json(self.state.faults.overview())

    async def _arm(self, request: web.Request) -> web.Response:
        given = await serve.body(request)
        return serve.json(self.state.faults.arm_given(given).as_dict())

    async def _clear(self, request: web.Request) -> web.Response:
        self.state.faults.clear(request.query.get("name"))
        return serve.json({"armed": self.state.faults.as_list()})

    async def _settings(self, request: web.Request) -> web.Response:
        project = self._project(request)
        own = {"delete_lag": project.delete_lag, "create_new_fields": project.create_new_fields}
        return serve.json({"rates": self.state.rates, "style": self.state.style, "max_bytes": self.state.max_bytes} | own)

    async def _set(self, request: web.Request) -> web.Response:
        """`{"rates": {endpoint: a second, 0 for no limit}, "style", "max_bytes", "delete_lag", "create_new_fields"}`."""
        given = await serve.body(request)
        project = self._project(request)
        rates = given.get("rates", {})
        if not isinstance(rates, dict) or set(rates) - set(RATES) or not all(_number(r) for r in rates.values()):
            raise ValueError(f"rates: a number from 0 for each of: {', '.join(RATES)}")
        if given.get("style", self.state.style) not in STYLES:
            raise ValueError(f"style: one of {', '.join(STYLES)}")
        if not _number(given.get("max_bytes", 0)) or not _number(given.get("delete_lag", 0)):
            raise ValueError("max_bytes and delete_lag are numbers from 0")
        if unknown := set(given) - {"rates", "style", "max_bytes", "delete_lag", "create_new_fields"}:
            raise ValueError(f"no setting named {', '.join(sorted(unknown))}")
        self.state.rates |= rates
        self.state.style = given.get("style", self.state.style)
        self.state.max_bytes = given.get("max_bytes", self.state.max_bytes)
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
            self.state.projects.setdefault(key, Project(2158 + len(self.state.projects)))
        elif len(self.state.projects) > 1:
            self.state.projects.pop(key, None)
        else:
            raise ValueError("that is the last key; use the fault revoke")
        return serve.json({"keys": list(self.state.projects)})


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 10**9
