"""`/sobjects/X/deleted` and `/sobjects/X/updated`: what was deleted or changed within a window. Only reads."""

from bisect import bisect_left
from datetime import datetime
from typing import Any

from aiohttp import web

from deploy.sandbox.salesforce import values
from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.gate import Caller, Gate, V, json, sobject_of
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.store import Row

DAYS = 30


class Replication:
    def __init__(self, org: Org, gate: Gate) -> None:
        self.org, self.gate = org, gate

    def routes(self) -> list[web.RouteDef]:
        made = []
        for name, handler in (("deleted", self._deleted), ("updated", self._updated)):
            made += [web.get(f"{V}/sobjects/{{sobject}}/{name}{end}", self.gate(handler)) for end in ("", "/")]
        return made

    async def _deleted(self, request: web.Request, caller: Caller) -> web.Response:
        rows, start, end = self._window(request, caller)
        purged = self.org.store.tables[sobject_of(request, caller).name].purged
        rows += [row for at, row in purged if start <= at < end]
        gone = [{"id": r["Id"], "deletedDate": _shown(r["SystemModstamp"])} for r in rows if r["IsDeleted"]]
        earliest = _shown(values.iso(self.org.now() - DAYS * 86_400))
        return json({"deletedRecords": gone, "earliestDateAvailable": earliest, "latestDateCovered": self._covered(end)})

    async def _updated(self, request: web.Request, caller: Caller) -> web.Response:
        rows, _, end = self._window(request, caller)
        return json({"ids": [r["Id"] for r in rows if not r["IsDeleted"]], "latestDateCovered": self._covered(end)})

    def _covered(self, end: str) -> str:
        now = self.org.now()
        return _shown(min(end, values.iso(now - now % 60)))

    def _window(self, request: web.Request, caller: Caller) -> tuple[list[Row], str, str]:
        """Rows touched within the window, and its start and end, whole minutes as Salesforce takes them."""
        sobject = sobject_of(request, caller)
        start, end = (_minute(request.query.get(name)) for name in ("start", "end"))
        now = self.org.now()
        if end <= start:
            raise SalesforceError(400, "INVALID_REPLICATION_DATE", "endDate must be after startDate")
        if datetime.fromisoformat(start).timestamp() < now - DAYS * 86_400 - 60:
            raise SalesforceError(400, "INVALID_REPLICATION_DATE", f"startDate cannot be more than {DAYS} days ago")
        stamps = self.org.store.stamps(sobject)
        table: dict[str, Any] = self.org.store.tables[sobject.name].rows
        found = (table[i] for _, i in stamps[bisect_left(stamps, (start, "")) : bisect_left(stamps, (end, ""))])
        return [r for r in found if caller.sees is None or caller.sees(r)], start, end


def _minute(given: str | None) -> str:
    """The kept form of a moment, its seconds cut off. A `+` that came as a blank is taken."""
    moment = values.datetime_text(given.replace(" ", "+")) if given else None
    if moment is None or moment < "1970":
        raise SalesforceError(400, "MALFORMED_QUERY", "start and end are date-times such as 2026-05-04T09:30:11Z")
    whole = datetime.fromisoformat(moment).replace(second=0, microsecond=0)
    return whole.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _shown(kept: str) -> str:
    return kept[:-1] + "+0000"
