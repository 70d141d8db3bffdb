"""Further control paths of the sandbox org: users and their rights, objects added while it runs, channels, what was lost."""

from typing import Any

from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.salesforce import scenario
from deploy.sandbox.salesforce.cometd import Cometd
from deploy.sandbox.salesforce.delivery import Channel
from deploy.sandbox.salesforce.oauth import OAuth
from deploy.sandbox.salesforce.org import CLIENT_ID, USERNAME, Org

_MOST = 1_000_000


class Desk:
    def __init__(self, org: Org, login: OAuth, cometd: Cometd) -> None:
        self.org, self.oauth, self.cometd = org, login, cometd

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/sandbox/users", self._users),
            web.post("/sandbox/users", self._user),
            web.post("/sandbox/grants", self._grant),
            web.delete("/sandbox/grants", self._revoke),
            web.post("/sandbox/objects", self._objects),
            web.post("/sandbox/fill", self._fill),
            web.post("/sandbox/purge", self._purge),
            web.post("/sandbox/channels", self._channel),
            web.get("/sandbox/lost", self._lost),
            web.get("/sandbox/limits", self._limits),
        ]

    async def _users(self, _request: web.Request) -> web.Response:
        rows = self.org.store.live(self.org.schema.objects["User"])
        return serve.json({"users": [{"id": r["Id"], "username": r["Username"], **self.org.access.of(r["Id"]).as_dict()} for r in rows]})

    async def _user(self, request: web.Request) -> web.Response:
        """`{"username", "client_id"?, "client_secret"?, "password"?, "active"?, "hidden"?: {object: [fields]}, "closed"?: [objects],
        "view_all_data"?, "view_all_records"?: [objects], "shared"?: [ids]}`: the user is made where he is not there."""
        given = await serve.body(request)
        username = given.get("username")
        if not isinstance(username, str) or "@" not in username:
            raise ValueError("username: expected one such as reader@example.org")
        known = {
            "username",
            "client_id",
            "client_secret",
            "password",
            "active",
            "hidden",
            "closed",
            "view_all_data",
            "view_all_records",
            "shared",
        }
        if unknown := set(given) - known:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        user_id = scenario.add_user(self.org, username)
        if (active := given.get("active")) is not None:
            row = self.org.store.anywhere(user_id) or {}
            self.org.store.put(self.org.schema.objects["User"], row | {"IsActive": active is not False})
            if active is False:
                self.oauth.end_user(user_id)
        rights = self.org.access.change(user_id, given)
        if given.get("client_id"):
            self.oauth.register(str(given["client_id"]), given.get("client_secret"), None, username)
        if given.get("password"):
            self.oauth.passwords[username] = str(given["password"])
        self.cometd.wake()
        return serve.json({"id": user_id, "username": username} | rights.as_dict())

    async def _grant(self, request: web.Request) -> web.Response:
        """`{"username"?, "client_id"?}`: a refresh token, as the end of a web-server flow gives it."""
        given = await serve.body(request)
        client_id, username = str(given.get("client_id", CLIENT_ID)), str(given.get("username", USERNAME))
        if client_id not in self.oauth.apps:
            raise ValueError(f"client_id: no app {client_id!r}; make it at /sandbox/apps")
        return serve.json({"refresh_token": self.oauth.grant(client_id, username).refresh})

    async def _revoke(self, request: web.Request) -> web.Response:
        """`?username=…`: end what apps were granted for that user, or for all; refresh tokens and access tokens under them."""
        username = request.query.get("username")
        gone = [g for g in self.oauth.grants.live if username in (None, g.username)]
        for grant in gone:
            self.oauth.end_grant(grant)
        self.cometd.wake()
        return serve.json({"ended": len(gone)})

    async def _objects(self, request: web.Request) -> web.Response:
        """`{"Canary__e": {"Nonce__c": "string"}, "Contact": {"Score__c": "double"}}`: what a file of custom fields holds, while it runs;
        a field that is null is taken away."""
        given = await serve.body(request)
        self.org.extend(given)
        return serve.json({"objects": sorted(self.org.schema.objects)})

    async def _fill(self, request: web.Request) -> web.Response:
        """`{"type", "count", "seed"?}`: that many more records of one object, as if they had always been there; no events tell of them."""
        given = await serve.body(request)
        sobject = self._object(given.get("type"))
        count, seed = (n if isinstance(n, int) and not isinstance(n, bool) else -1 for n in (given.get("count"), given.get("seed", 1)))
        if not 0 < count <= _MOST or seed < 0 or sobject.event:
            raise ValueError(f"count: expected a whole number from 1 to {_MOST}; type: an object that keeps records")
        made = scenario.fill(self.org, sobject, count, seed)
        return serve.json({"count": len(made), "first": made[0], "last": made[-1]})

    async def _purge(self, request: web.Request) -> web.Response:
        """`{"type", "ids"?}`: take deleted records out of the recycle bin, all of them without `ids`; no event tells of it."""
        given = await serve.body(request)
        sobject = self._object(given.get("type"))
        wanted = given.get("ids", [i for i, row in self.org.store.tables[sobject.name].rows.items() if row["IsDeleted"]])
        if not isinstance(wanted, list):
            raise ValueError("ids: expected a list of record ids")
        return serve.json({"purged": [i for i in wanted if self.org.store.purge(sobject, str(i))]})

    async def _channel(self, request: web.Request) -> web.Response:
        """`{"name": "/data/Sales__chn", "entities": ["Lead"], "enriched"?: {"Lead": ["Email"]}}`: a custom channel; `/event/…__chn` is one
        of platform events."""
        given = await serve.body(request)
        name, entities, enriched = given.get("name"), given.get("entities"), given.get("enriched", {})
        if not isinstance(name, str) or not name.startswith(("/data/", "/event/")) or not isinstance(entities, list) or not entities:
            raise ValueError('expected {"name": "/data/…__chn", "entities": [object names]}')
        members = [self._object(e) for e in entities]
        if any(o.event != name.startswith("/event/") for o in members):
            raise ValueError(f"{name}: platform events go on channels /event/…__chn, changes of records on /data/…__chn")
        fields = {self._object(o).name: self._fields(o, names) for o, names in (enriched if isinstance(enriched, dict) else {}).items()}
        self.cometd.delivery.custom[name] = Channel({o.name for o in members}, fields)
        return serve.json({"name": name})

    def _object(self, name: Any) -> Any:
        if (found := self.org.schema.get(str(name))) is None:
            raise ValueError(f"no object named {name!r}; there are: {', '.join(self.org.schema.objects)}")
        return found

    def _fields(self, sobject: str, names: Any) -> list[str]:
        found = self._object(sobject)
        if not isinstance(names, list) or len(names) > 10:
            raise ValueError(f"enriched: {sobject} takes a list of at most 10 fields")
        if missing := [n for n in names if str(n).lower() not in found.by_lower]:
            raise ValueError(f"enriched: {sobject} has no field {missing[0]!r}")
        return [found.by_lower[str(n).lower()].name for n in names]

    async def _lost(self, _request: web.Request) -> web.Response:
        """`[replay id, entity, record ids]` of every event that the fault drop-events lost in the bus."""
        return serve.json({"lost": self.org.lost})

    async def _limits(self, _request: web.Request) -> web.Response:
        """What /limits shows, at no cost and without lag, and how many calls were refused."""
        refused = {name.removeprefix("refused by "): n for name, n in self.org.counts.items() if name.startswith("refused by ")}
        return serve.json({"limits": self.org.limits.table(len(self.cometd.alive())), "refused": refused})
