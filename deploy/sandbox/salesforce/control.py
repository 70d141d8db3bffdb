"""The control paths of the sandbox org, `/sandbox/...`: what a test or a person at the desk does to it. For this machine only."""

import asyncio
from typing import Any, get_args

import orjson
from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.salesforce import changes, events, oauth
from deploy.sandbox.salesforce.bus import ALL
from deploy.sandbox.salesforce.cometd import Cometd
from deploy.sandbox.salesforce.conversion import convert
from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, PASSWORD, USERNAME, Org
from deploy.sandbox.salesforce.schema import SObject, channel_name
from deploy.sandbox.salesforce.store import Transaction
from deploy.sandbox.salesforce.strike import Strike

_MAX_CHANGES = 1_000_000


class Control:
    def __init__(self, org: Org, login: oauth.OAuth, cometd: Cometd) -> None:
        self.org, self.oauth, self.cometd = org, login, cometd
        self.strike = Strike(org, login, cometd)
        self._runs: list[tuple[changes.Changes, asyncio.Task[None]]] = []

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/sandbox/transaction", self._transaction),
            web.post("/sandbox/gap", self._gap),
            web.post("/sandbox/emit", self._emit),
            web.get("/sandbox/faults", self._faults),
            web.post("/sandbox/faults", self._arm),
            web.delete("/sandbox/faults", self._clear),
            web.get("/sandbox/state", self._state),
            web.get("/sandbox/credentials", self._credentials),
            web.post("/sandbox/apps", self._app),
            web.get("/sandbox/records", self._records),
            web.get("/sandbox/commits", self._commits),
            web.get("/sandbox/queries", self._queries),
            web.post("/sandbox/retention", self._retention),
            web.get("/sandbox/settings", self._settings),
            web.post("/sandbox/settings", self._set),
            web.post("/sandbox/change", self._change),
            web.get("/sandbox/change", self._changing),
            web.delete("/sandbox/change", self._stop_changing),
        ]

    async def _transaction(self, request: web.Request) -> web.Response:
        return self._run(await serve.body(request), "normal")

    async def _gap(self, request: web.Request) -> web.Response:
        """The changes are made; instead of them a gap, an overflow or a wildcard is told, or nothing (`lost`)."""
        return self._run(await serve.body(request), "gap")

    def _run(self, given: dict[str, Any], deliver: events.Deliver) -> web.Response:
        """`{"changes": [{"op", "type", "id", "values"}], "origin"?, "user"?, "deliver"?, "late"?}` committed as one transaction;
        `late`: so many seconds before now its records were stamped."""
        deliver = given.get("deliver", deliver)
        if deliver not in get_args(events.Deliver):
            raise ValueError(f"deliver: expected one of {', '.join(get_args(events.Deliver))}, got {deliver!r}")
        wanted = given.get("changes")
        if not isinstance(wanted, list) or not wanted:
            raise ValueError('changes: expected a list such as [{"op": "update", "type": "Contact", "id": "003…", "values": {…}}]')
        late = given.get("late", 0)
        if isinstance(late, bool) or not isinstance(late, int | float) or not 0 <= late <= 3600:
            raise ValueError("late: expected seconds from 0 to 3600")
        transaction = self.org.begin(given.get("user"))
        transaction.now -= late
        made = []
        for number, change in enumerate(wanted):
            try:
                made.append(self._apply(transaction, change))
            except SalesforceError as error:
                return serve.json({"error": f"changes[{number}]: {error}", "errors": error.body()}, 400)
            except ValueError as error:
                raise ValueError(f"changes[{number}]: {error}; nothing was committed") from None
        replay_ids = self.org.commit(transaction, str(given.get("origin", "")), deliver)
        return serve.json({"ids": made, "replayIds": replay_ids})

    def _apply(self, transaction: Transaction, change: Any) -> str | None:
        if not isinstance(change, dict):
            raise ValueError("expected an object")
        op, record_id, written = change.get("op"), str(change.get("id", "")), change.get("values", {})
        if op == "unselected":
            transaction.unselected()
            return None
        sobject = self._sobject(str(change.get("type")))
        if not isinstance(written, dict):
            raise ValueError("values: expected an object")
        if sobject.event:
            raise ValueError(f"{sobject.name} is a platform event: publish it with POST /services/data/v67.0/sobjects/{sobject.name}")
        match op:
            case "create":
                return transaction.create(sobject, written)
            case "update":
                transaction.update(sobject, record_id, written)
            case "delete":
                transaction.delete(sobject, record_id)
            case "undelete":
                transaction.undelete(sobject, record_id)
            case "convert":
                lead = self.org.store.find(sobject, record_id)
                if sobject.name != "Lead" or lead is None:
                    raise ValueError(f"there is no lead {record_id}")
                convert(
                    transaction,
                    lead,
                    written.get("AccountId"),
                    written.get("ContactId"),
                    opportunity=written.get("opportunity") is not False,
                )
            case _:
                raise ValueError(f"op: expected create, update, delete, undelete, convert or unselected, got {op!r}")
        return record_id

    def _sobject(self, name: str) -> SObject:
        if (found := self.org.schema.get(name)) is None:
            raise ValueError(f"no object named {name!r}; there are: {', '.join(self.org.schema.objects)}")
        return found

    async def _emit(self, request: web.Request) -> web.Response:
        """Lines of JSON, each published as it stands; `?keep=1` also keeps the replay ids that they bring."""
        keep = request.query.get("keep") in ("1", "true")
        ready: list[tuple[dict[str, Any], str | None]] = []
        for number, line in enumerate((await request.read()).split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                read = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error}); nothing was published") from None
            if isinstance(read, dict) and set(read) >= {"source", "message"}:
                read = read["message"]
            whole = isinstance(read, dict) and isinstance(read.get("data"), dict)
            data = read["data"] if whole else read
            if not isinstance(data, dict) or not isinstance(data.get("event", {}), dict):
                raise ValueError(f"line {number} is neither a CometD message nor the data of one; nothing was published")
            ready.append((data, read.get("channel") if whole else None))
        published = [self._publish(data, channel, keep) for data, channel in ready]
        self.org.bus.wake()
        return serve.json({"published": len(published), "replayIds": published})

    def _publish(self, data: dict[str, Any], channel: str | None, keep: bool) -> int:
        payload = data.get("payload")
        header = payload.get("ChangeEventHeader") if isinstance(payload, dict) else None
        header = header if isinstance(header, dict) else {}
        entity = str(header.get("entityName", ""))
        record_ids = header.get("recordIds")
        channels = {ALL, f"/data/{channel_name(entity)}"} if entity else {ALL}
        if isinstance(channel, str) and channel.startswith("/"):
            channels = channels | {channel} if entity else {channel}
        replay_id = data.get("event", {}).get("replayId")
        kept = replay_id if keep and isinstance(replay_id, int) else None
        return self.org.bus.publish(entity, record_ids if isinstance(record_ids, list) else [], data, frozenset(channels), kept)

    async def _faults(self, _request: web.Request) -> web.Response:
        return serve.json(self.org.faults.overview())

    async def _arm(self, request: web.Request) -> web.Response:
        """`{"name", "times"?, "variant"?, "seconds"?, "rate"?}`; times 0 means until cleared."""
        return serve.json(self.strike.arm(await serve.body(request)).as_dict())

    async def _clear(self, request: web.Request) -> web.Response:
        self.org.faults.clear(request.query.get("name"))
        self.cometd.wake()
        return serve.json({"armed": self.org.faults.as_list()})

    async def _state(self, _request: web.Request) -> web.Response:
        sessions = [
            {"clientId": s.client_id, "channels": sorted(s.channels), "holding": s.holding, "user": s.user_id} for s in self.cometd.alive()
        ]
        bus = self.org.bus
        counted = {
            name: {"records": len(t.rows), "deleted": sum(r["IsDeleted"] for r in t.rows.values())}
            for name, t in self.org.store.tables.items()
        }
        stream = {
            "lastReplayId": bus.last_replay_id,
            "oldestReplayId": bus.oldest(),
            "events": bus.end - bus.start,
            "published": bus.published,
        }
        org = {
            "orgId": self.org.id,
            "tokens": len(self.oauth.tokens),
            "counts": self.org.counts,
            "selected": sorted(self.org.schema.selected),
        }
        return serve.json(org | stream | {"objects": counted, "sessions": sessions, "faults": self.org.faults.as_list()})

    async def _credentials(self, request: web.Request) -> web.Response:
        address = {"url": oauth.base_url(request), "orgId": self.org.id}
        return serve.json(address | {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "username": USERNAME, "password": PASSWORD})

    async def _app(self, request: web.Request) -> web.Response:
        """`{"client_id", "client_secret"?, "public_key"? (PEM, key or certificate), "username"?}`."""
        given = await serve.body(request)
        client_id = given.get("client_id", CLIENT_ID)
        if not isinstance(client_id, str) or not client_id:
            raise ValueError("client_id: expected text")
        self.oauth.register(client_id, given.get("client_secret"), given.get("public_key"), given.get("username", USERNAME))
        return serve.json({"client_id": client_id})

    async def _records(self, request: web.Request) -> web.Response:
        """Every field of every record of a type, the deleted ones too, as kept. For oracles that must not go through SOQL."""
        sobject = self._sobject(request.query.get("type", ""))
        return serve.json({"records": [self.org.store.tables[sobject.name].rows[i] for i in self.org.store.tables[sobject.name].order]})

    async def _commits(self, request: web.Request) -> web.Response:
        """`[replay id, wall clock of the commit in ms, entity, record ids]` for each event after a replay id."""
        after = int(request.query.get("after", "0"))
        commits = [(e.replay_id, e.committed, e.entity, e.record_ids) for e in self.org.bus.after(after)]
        return serve.json({"commits": commits, "last": self.org.bus.last_replay_id})

    async def _queries(self, _request: web.Request) -> web.Response:
        """`[SOQL, rows found]` of the last 1000 queries of REST that were answered."""
        return serve.json({"queries": list(self.org.queries)})

    async def _retention(self, request: web.Request) -> web.Response:
        """`{"upto": replay id}`: everything up to it can no longer be asked for."""
        upto = (await serve.body(request)).get("upto")
        if isinstance(upto, bool) or not isinstance(upto, int):
            raise ValueError("upto: expected a replay id")
        return serve.json({"dropped": self.org.bus.drop_until(upto), "oldestReplayId": self.org.bus.oldest()})

    async def _settings(self, _request: web.Request) -> web.Response:
        return serve.json({name: getattr(self.org.settings, name) for name in self.org.settings.__slots__})

    async def _set(self, request: web.Request) -> web.Response:
        """Settings by name; `selected` is the list of objects whose changes become events."""
        given = await serve.body(request)
        selected = given.pop("selected", None)
        if selected is not None:
            if not isinstance(selected, list):
                raise ValueError("selected: expected a list of object names")
            self.org.schema.selected = {self._sobject(str(name)).name for name in selected}
        self.org.settings.change(given)
        self.cometd.wake()
        return await self._settings(request)

    async def _change(self, request: web.Request) -> web.Response:
        """`{"rate": transactions a second, "seconds", "seed"?, "rename_parents"?}`; runs in the background."""
        given = await serve.body(request)
        rate, seconds, seed = given.get("rate", 50), given.get("seconds", 60), given.get("seed", 1)
        if any(isinstance(n, bool) or not isinstance(n, int | float) or n <= 0 for n in (rate, seconds)) or not isinstance(seed, int):
            raise ValueError("rate and seconds are numbers above 0, seed a whole number")
        if rate * seconds > _MAX_CHANGES:
            raise ValueError(f"that would be {rate * seconds:.0f} transactions; at most {_MAX_CHANGES} a run")
        run = changes.Changes(self.org, rate, max(1, round(rate * seconds)), seed, given.get("rename_parents", True) is not False)
        self._runs.append((run, asyncio.get_running_loop().create_task(run.run())))
        return serve.json({"run": len(self._runs) - 1} | run.as_dict())

    async def _changing(self, _request: web.Request) -> web.Response:
        for run, task in self._runs:
            if task.done() and not run.finished and not task.cancelled() and (error := task.exception()):
                raise error
        return serve.json({"runs": [run.as_dict() for run, _ in self._runs]})

    async def _stop_changing(self, _request: web.Request) -> web.Response:
        for run, task in self._runs:
            task.cancel()
            run.finished = True
        return serve.json({"runs": [run.as_dict() for run, _ in self._runs]})

    async def close(self) -> None:
        for _, task in self._runs:
            task.cancel()
