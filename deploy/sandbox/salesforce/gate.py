"""The way into REST and Bulk: version, token, limits and the faults of a call, in this order; errors in Salesforce's form."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from deploy.sandbox.salesforce.errors import SalesforceError, not_found
from deploy.sandbox.salesforce.oauth import OAuth
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.query import Sees
from deploy.sandbox.salesforce.schema import Schema, SObject
from deploy.sandbox.salesforce.store import Row, Transaction

OLDEST, NEWEST = 31, 68
V = "/services/data/v{version}"
_STATUS = {"SERVER_UNAVAILABLE": 503, "QUERY_TIMEOUT": 400, "UNKNOWN_EXCEPTION": 500, "REQUEST_RUNNING_TOO_LONG": 503}


@dataclass(slots=True)
class Caller:
    """Who calls, and what he may see."""

    user_id: str
    schema: Schema
    sees: Sees | None


Handler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]


class Gate:
    def __init__(self, org: Org, oauth: OAuth) -> None:
        self.org, self.oauth = org, oauth

    def __call__(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.org.counts["rest requests"] += 1
            try:
                self._version(request)
                user_id = self.oauth.user_of(request)
                self.org.limits.call()
                self._faults(request)
                caller = Caller(user_id, self.org.access.schema(user_id), self.org.access.sees(user_id))
                response = await handler(request, caller)
            except SalesforceError as error:
                response = json(error.body(), error.status)
            if not response.prepared:
                response.headers.update(self.headers())
            return response

        return answer

    def headers(self) -> dict[str, str]:
        """What every reply carries; a reply that is written piece by piece sets them itself."""
        return {"Sforce-Limit-Info": self.org.limits.info()}

    def _version(self, request: web.Request) -> None:
        text = request.match_info.get("version", "67.0")
        version = float(text) if re.fullmatch(r"\d{1,3}\.0", text) else 0
        if 0 < version < OLDEST:
            raise SalesforceError(410, "UNSUPPORTED_API_VERSION", "Requested API version has been retired")
        if not OLDEST <= version <= NEWEST:
            raise not_found()

    def _faults(self, request: web.Request) -> None:
        take = self.org.faults.take
        if take("rest-limit"):
            raise SalesforceError(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
        if take("concurrent-limit"):
            raise SalesforceError(403, "REQUEST_LIMIT_EXCEEDED", "ConcurrentPerOrgLongTxn Limit exceeded.")
        if armed := take("rest-error"):
            raise SalesforceError(_STATUS[armed.variant], armed.variant, "An unexpected error occurred. Please try again later.")
        if request.method != "GET" and "/jobs/" not in request.path and "/composite/sobjects" not in request.path:
            self.lock()

    def lock(self, record_id: str | None = None) -> None:
        """The fault `lock-row`. Errors: UNABLE_TO_LOCK_ROW."""
        if armed := self.org.faults.take("lock-row"):
            rows = f" or 1 records: {record_id}" if record_id else ""
            raise SalesforceError(int(armed.variant), "UNABLE_TO_LOCK_ROW", f"unable to obtain exclusive access to this record{rows}", [])


def api(request: web.Request) -> str:
    return f"/services/data/v{request.match_info['version']}"


def origin(request: web.Request, kind: str = "rest") -> str:
    """The changeOrigin of a write: the API, its version, and the client that `Sforce-Call-Options` names."""
    client = re.search(r"client=([^,;]+)", request.headers.get("Sforce-Call-Options", ""))
    base = f"com/salesforce/api/{kind}/{request.match_info.get('version', '67.0')}"
    return f"{base};client={client[1].strip()}" if client else base


def sobject_of(request: web.Request, caller: Caller) -> SObject:
    """The object named in the address, as the caller sees it. Errors: NOT_FOUND."""
    if (found := caller.schema.get(request.match_info["sobject"])) is None:
        raise not_found()
    return found


async def body(request: web.Request) -> Row:
    """The JSON object of a request. Errors: JSON_PARSER_ERROR, UNSUPPORTED_MEDIA_TYPE."""
    if "json" not in request.content_type:
        raise SalesforceError(415, "UNSUPPORTED_MEDIA_TYPE", f"Content type '{request.content_type}' is not supported for this operation")
    try:
        read = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise SalesforceError(400, "JSON_PARSER_ERROR", f"Unexpected character at [line:{error.lineno}, column:{error.colno}]") from None
    if not isinstance(read, dict):
        raise SalesforceError(400, "JSON_PARSER_ERROR", "Cannot deserialize instance of sobject from START_ARRAY or a plain value")
    return read


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(content), status=status, headers={"Content-Type": "application/json;charset=UTF-8", **(headers or {})}
    )


def writable(org: Org, caller: Caller, sobject: SObject, written: Row, record_id: str | None = None) -> SObject:
    """The object with all its fields, for a write the caller may make. Errors: INVALID_FIELD, INSUFFICIENT_ACCESS_OR_READONLY."""
    org.access.check_written(caller.user_id, sobject, written)
    row = org.store.anywhere(record_id) if record_id and caller.sees is not None else None
    if row is not None and caller.sees is not None and not caller.sees(row):
        raise SalesforceError(403, "INSUFFICIENT_ACCESS_OR_READONLY", "insufficient access rights on object id", [])
    return org.schema.objects[sobject.name]


def commit(org: Org, request: web.Request, transaction: Transaction) -> None:
    org.trigger(transaction)
    org.commit(transaction, origin(request))
