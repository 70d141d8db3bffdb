"""The REST API of the sandbox org: query, describe, single-record writes, limits. Answers and errors in Salesforce's shapes."""

import re
import secrets
from collections import OrderedDict
from typing import Any

import orjson
from aiohttp import web

from deploy.sandbox.salesforce import describe, ids, query, values
from deploy.sandbox.salesforce.errors import SalesforceError, bad, not_found
from deploy.sandbox.salesforce.oauth import OAuth
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import SObject
from deploy.sandbox.salesforce.store import Row, Transaction

_CURSORS = 50
_OLDEST, _NEWEST = 31, 68


class Rest:
    def __init__(self, org: Org, oauth: OAuth) -> None:
        self.org, self.oauth = org, oauth
        self._cursors: OrderedDict[str, query.Result] = OrderedDict()

    def routes(self) -> list[web.RouteDef]:
        v = "/services/data/v{version}"
        return [
            web.get("/services/data", self._versions),
            web.get("/services/data/", self._versions),
            web.get(f"{v}/limits", self._call(self._limits)),
            web.get(f"{v}/limits/", self._call(self._limits)),
            web.get(f"{v}/query", self._call(self._query)),
            web.get(f"{v}/query/", self._call(self._query)),
            web.get(f"{v}/query/{{locator}}", self._call(self._more)),
            web.get(f"{v}/queryAll", self._call(self._query)),
            web.get(f"{v}/queryAll/", self._call(self._query)),
            web.get(f"{v}/queryAll/{{locator}}", self._call(self._more)),
            web.get(f"{v}/sobjects", self._call(self._objects)),
            web.get(f"{v}/sobjects/", self._call(self._objects)),
            web.get(f"{v}/sobjects/{{sobject}}/describe", self._call(self._describe)),
            web.get(f"{v}/sobjects/{{sobject}}/describe/", self._call(self._describe)),
            web.post(f"{v}/sobjects/{{sobject}}", self._call(self._create)),
            web.post(f"{v}/sobjects/{{sobject}}/", self._call(self._create)),
            web.post(f"{v}/sobjects/{{sobject}}/{{id}}/undelete", self._call(self._undelete)),
            web.get(f"{v}/sobjects/{{sobject}}/{{id}}", self._call(self._read)),
            web.patch(f"{v}/sobjects/{{sobject}}/{{id}}", self._call(self._update)),
            web.delete(f"{v}/sobjects/{{sobject}}/{{id}}", self._call(self._delete)),
            web.get(f"{v}/sobjects/{{sobject}}/{{field}}/{{value}}", self._call(self._read_external)),
            web.patch(f"{v}/sobjects/{{sobject}}/{{field}}/{{value}}", self._call(self._upsert)),
            web.delete(f"{v}/sobjects/{{sobject}}/{{field}}/{{value}}", self._call(self._delete_external)),
            web.route("*", "/services/{rest:.*}", self._call(self._nothing)),
        ]

    def _call(self, handler: Any) -> Any:
        """The handler behind version, token and limit, its errors in Salesforce's form."""

        async def answer(request: web.Request) -> web.StreamResponse:
            self.org.counts["rest requests"] += 1
            used, most = self.org.counts["rest requests"], self.org.settings.daily_requests
            headers = {"Sforce-Limit-Info": f"api-usage={used}/{most}"}
            try:
                version = (
                    float(request.match_info.get("version", "67.0"))
                    if re.fullmatch(r"\d+\.0", request.match_info.get("version", "67.0"))
                    else 0
                )
                if 0 < version < _OLDEST:
                    raise SalesforceError(410, "UNSUPPORTED_API_VERSION", "Requested API version has been retired")
                if not _OLDEST <= version <= _NEWEST:
                    raise not_found()
                user = self.oauth.user_of(request)
                if used > most or self.org.faults.take("rest-limit"):
                    raise SalesforceError(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
                if request.method != "GET" and self.org.faults.take("lock-row"):
                    raise SalesforceError(500, "UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access to this record")
                response: web.StreamResponse = await handler(request, user)
                response.headers.update(headers)
                return response
            except SalesforceError as error:
                return _json(error.body(), error.status, headers)

        return answer

    async def _versions(self, _request: web.Request) -> web.Response:
        return _json([{"label": f"Release {n}", "url": f"/services/data/v{n}.0", "version": f"{n}.0"} for n in range(_OLDEST, _NEWEST)])

    async def _nothing(self, _request: web.Request, _user: str) -> web.Response:
        raise not_found()

    async def _limits(self, _request: web.Request, _user: str) -> web.Response:
        used, events = self.org.counts["rest requests"], self.org.counts["delivered"]
        most = self.org.settings.daily_requests
        daily = self.org.settings.daily_events or 50_000
        limits = {"DailyApiRequests": (most, used), "DailyDeliveredPlatformEvents": (daily, events), "DailyBulkV2QueryJobs": (10_000, 0)}
        limits |= {
            "StreamingApiConcurrentClients": (2000, 0),
            "DurableStreamingApiConcurrentClients": (2000, 0),
            "HourlyPublishedPlatformEvents": (250_000, 0),
        }
        return _json({name: {"Max": top, "Remaining": max(0, top - gone)} for name, (top, gone) in limits.items()})

    async def _query(self, request: web.Request, _user: str) -> web.Response:
        if not (text := request.query.get("q")):
            raise SalesforceError(400, "MALFORMED_QUERY", "A query string has to be specified")
        if len(request.raw_path) > 16_384:
            raise SalesforceError(414, "URI_TOO_LONG", "The length of the URI exceeds the 16,384 byte limit")
        deleted = "/queryAll" in request.path
        return self._page(request, query.run(self.org.store, text, _api(request), deleted=deleted), 0, None)

    async def _more(self, request: web.Request, _user: str) -> web.Response:
        name, _, start = request.match_info["locator"].rpartition("-")
        result = self._cursors.get(name)
        if result is None or not start.isdecimal() or not 0 < int(start[:9]) < len(result.rows):
            raise SalesforceError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
        return self._page(request, result, int(start), name)

    def _page(self, request: web.Request, result: query.Result, start: int, locator: str | None) -> web.Response:
        size = self.org.settings.page_size
        if wish := re.search(r"batchSize=(\d{1,6})", request.headers.get("Sforce-Query-Options", "")):
            size = min(max(int(wish[1]), 200), 2000)
        rows = result.rows[start : start + size]
        body: dict[str, Any] = {"totalSize": result.total, "done": start + size >= len(result.rows)}
        if not body["done"]:
            if locator is None:
                locator = "01g" + ids.make("01g", secrets.randbelow(62**8))[3:]
                self._cursors[locator] = result
                while len(self._cursors) > _CURSORS:
                    self._cursors.popitem(last=False)
            body["nextRecordsUrl"] = f"{_api(request)}/query/{locator}-{start + size}"
        body["records"] = [result.project(row) for row in rows]
        return _json(body)

    async def _objects(self, request: web.Request, _user: str) -> web.Response:
        return _json(describe.objects(self.org.schema, _api(request)))

    async def _describe(self, request: web.Request, _user: str) -> web.Response:
        return _json(describe.one(self.org.schema, self._sobject(request), _api(request)))

    async def _read(self, request: web.Request, _user: str) -> web.Response:
        sobject = self._sobject(request)
        return self._record(request, sobject, self._row(sobject, self._id(request)))

    async def _read_external(self, request: web.Request, _user: str) -> web.Response:
        sobject, _, _, found = self._external(request)
        if len(found) > 1:
            return self._several(request, sobject, found)
        if not found:
            raise not_found()
        return self._record(request, sobject, self._row(sobject, found[0]))

    def _record(self, request: web.Request, sobject: SObject, row: Row) -> web.Response:
        names = request.query.get("fields")
        wanted = [n.strip() for n in names.split(",")] if names else [f.name for f in sobject.fields.values() if f.type != "address"]
        out: Row = {"attributes": {"type": sobject.name, "url": f"{_api(request)}/sobjects/{sobject.name}/{row['Id']}"}}
        for name in wanted:
            if (found := sobject.by_lower.get(name.lower())) is None:
                raise bad("INVALID_FIELD", f"No such column '{name}' on sobject of type {sobject.name}")
            out[found.name] = values.rest_form(found, row.get(found.name))
        return _json(out)

    async def _create(self, request: web.Request, user: str) -> web.Response:
        sobject, written = self._sobject(request), await _body(request)
        transaction = self.org.begin(user)
        record_id = transaction.create(sobject, written)
        self._commit(request, transaction)
        location = {"Location": f"{_api(request)}/sobjects/{sobject.name}/{record_id}"}
        return _json({"id": record_id, "success": True, "errors": []}, 201, location)

    async def _update(self, request: web.Request, user: str) -> web.Response:
        sobject, written = self._sobject(request), await _body(request)
        transaction = self.org.begin(user)
        transaction.update(sobject, self._id(request), written)
        self._commit(request, transaction)
        return web.Response(status=204)

    async def _delete(self, request: web.Request, user: str) -> web.Response:
        return self._deleted(request, user, self._sobject(request), self._id(request))

    async def _delete_external(self, request: web.Request, user: str) -> web.Response:
        sobject, _, _, found = self._external(request)
        if len(found) > 1:
            return self._several(request, sobject, found)
        if not found:
            raise not_found()
        return self._deleted(request, user, sobject, found[0])

    def _deleted(self, request: web.Request, user: str, sobject: SObject, record_id: str) -> web.Response:
        transaction = self.org.begin(user)
        transaction.delete(sobject, record_id)
        self._commit(request, transaction)
        return web.Response(status=204)

    async def _undelete(self, request: web.Request, user: str) -> web.Response:
        """Not in Salesforce's REST (there it is SOAP or Apex); offered so that a test needs no other client."""
        transaction = self.org.begin(user)
        transaction.undelete(self._sobject(request), self._id(request))
        self._commit(request, transaction)
        return web.Response(status=204)

    async def _upsert(self, request: web.Request, user: str) -> web.Response:
        sobject, field, value, found = self._external(request)
        written = await _body(request)
        if len(found) > 1:
            return self._several(request, sobject, found)
        if any(name.lower() == field.lower() for name in written):
            raise bad("INVALID_FIELD", f"The {field} field should not be specified in the sobject data.")
        transaction = self.org.begin(user)
        if found:
            transaction.update(sobject, found[0], written)
        record_id = found[0] if found else transaction.create(sobject, written | {field: value})
        self._commit(request, transaction)
        return _json({"id": record_id, "success": True, "errors": [], "created": not found}, 200 if found else 201)

    def _commit(self, request: web.Request, transaction: Transaction) -> None:
        self.org.commit(transaction, origin(request))

    def _sobject(self, request: web.Request) -> SObject:
        if (found := self.org.schema.get(request.match_info["sobject"])) is None:
            raise not_found()
        return found

    def _id(self, request: web.Request) -> str:
        given = request.match_info["id"]
        sobject = self._sobject(request)
        if (found := ids.normalize(given)) is None or not found.startswith(sobject.prefix):
            if len(given) in (15, 18):
                raise bad("MALFORMED_ID", f"{sobject.name} ID: id value of incorrect type: {given}", "Id")
            raise not_found(f"Provided external ID field does not exist or is not accessible: {given[:80]}")
        return found

    def _row(self, sobject: SObject, record_id: str) -> Row:
        row = self.org.store.find(sobject, record_id)
        if row is None:
            raise not_found()
        if row["IsDeleted"]:
            raise SalesforceError(404, "ENTITY_IS_DELETED", "entity is deleted", [])
        return row

    def _external(self, request: web.Request) -> tuple[SObject, str, Any, list[str]]:
        """Object, field, value in the field's form, ids that have it."""
        sobject, name = self._sobject(request), request.match_info["field"]
        value: Any = request.match_info["value"]
        found = sobject.by_lower.get(name.lower())
        if found is not None and found.name == "Id":
            record_id = ids.normalize(value)
            return sobject, "Id", value, [record_id] if record_id and self.org.store.find(sobject, record_id) else []
        if found is None or not found.external_id:
            raise not_found(f"Provided external ID field does not exist or is not accessible: {name[:80]}")
        if found.type in ("int", "double"):
            value = float(value) if re.fullmatch(r"-?\d{1,15}(\.\d+)?", value) else value
            value = int(value) if found.type == "int" and isinstance(value, float) else value
        return sobject, found.name, value, self.org.store.by_external(sobject, found.name, str(value))

    def _several(self, request: web.Request, sobject: SObject, found: list[str]) -> web.Response:
        return _json([f"{_api(request)}/sobjects/{sobject.name}/{i}" for i in found], 300)


def origin(request: web.Request) -> str:
    """The changeOrigin of a REST write: the API version, and the client that `Sforce-Call-Options` names."""
    client = re.search(r"client=([^,;]+)", request.headers.get("Sforce-Call-Options", ""))
    base = f"com/salesforce/api/rest/{request.match_info.get('version', '67.0')}"
    return f"{base};client={client[1].strip()}" if client else base


def _api(request: web.Request) -> str:
    return f"/services/data/v{request.match_info['version']}"


async def _body(request: web.Request) -> Row:
    if "json" not in request.content_type:
        raise SalesforceError(415, "UNSUPPORTED_MEDIA_TYPE", f"Content type '{request.content_type}' is not supported for this operation")
    try:
        read = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise SalesforceError(400, "JSON_PARSER_ERROR", f"Unexpected character at [line:{error.lineno}, column:{error.colno}]") from None
    if not isinstance(read, dict):
        raise SalesforceError(400, "JSON_PARSER_ERROR", "Cannot deserialize instance of sobject from START_ARRAY or a plain value")
    return read


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers={"Content-Type": "application/json;charset=UTF-8", **(headers or {})}
    )
