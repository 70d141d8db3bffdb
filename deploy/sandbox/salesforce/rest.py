"""The REST API of the sandbox org: query, describe, single-record writes, limits. Answers and errors in Salesforce's shapes."""

import re
import secrets
from collections import OrderedDict
from typing import Any

from aiohttp import web

from deploy.sandbox.salesforce import describe, ids, permissions, query, values
from deploy.sandbox.salesforce.cometd import Cometd
from deploy.sandbox.salesforce.errors import SalesforceError, bad, not_found
from deploy.sandbox.salesforce.gate import NEWEST, OLDEST, Caller, Gate, V, api, body, commit, json, sobject_of, writable
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import SObject
from deploy.sandbox.salesforce.store import Row

_CURSORS = 50


class Rest:
    def __init__(self, org: Org, gate: Gate, cometd: Cometd) -> None:
        self.org, self.gate, self.cometd = org, gate, cometd
        self._cursors: OrderedDict[str, query.Result] = OrderedDict()

    def routes(self) -> list[web.RouteDef]:
        v = V
        return [
            web.get("/services/data", self._versions),
            web.get("/services/data/", self._versions),
            web.get(f"{v}/limits", self.gate(self._limits)),
            web.get(f"{v}/limits/", self.gate(self._limits)),
            web.get(f"{v}/query", self.gate(self._query)),
            web.get(f"{v}/query/", self.gate(self._query)),
            web.get(f"{v}/query/{{locator}}", self.gate(self._more)),
            web.get(f"{v}/queryAll", self.gate(self._query)),
            web.get(f"{v}/queryAll/", self.gate(self._query)),
            web.get(f"{v}/queryAll/{{locator}}", self.gate(self._more)),
            web.get(f"{v}/sobjects", self.gate(self._objects)),
            web.get(f"{v}/sobjects/", self.gate(self._objects)),
            web.get(f"{v}/sobjects/{{sobject}}/describe", self.gate(self._describe)),
            web.get(f"{v}/sobjects/{{sobject}}/describe/", self.gate(self._describe)),
            web.post(f"{v}/sobjects/{{sobject}}", self.gate(self._create)),
            web.post(f"{v}/sobjects/{{sobject}}/", self.gate(self._create)),
            web.post(f"{v}/sobjects/{{sobject}}/{{id}}/undelete", self.gate(self._undelete)),
            web.get(f"{v}/sobjects/{{sobject}}/{{id}}", self.gate(self._read)),
            web.patch(f"{v}/sobjects/{{sobject}}/{{id}}", self.gate(self._update)),
            web.delete(f"{v}/sobjects/{{sobject}}/{{id}}", self.gate(self._delete)),
            web.get(f"{v}/sobjects/{{sobject}}/{{field}}/{{value}}", self.gate(self._read_external)),
            web.patch(f"{v}/sobjects/{{sobject}}/{{field}}/{{value}}", self.gate(self._upsert)),
            web.delete(f"{v}/sobjects/{{sobject}}/{{field}}/{{value}}", self.gate(self._delete_external)),
            web.route("*", "/services/{rest:.*}", self.gate(self._nothing)),
        ]

    async def _versions(self, _request: web.Request) -> web.Response:
        return json([{"label": f"Release {n}", "url": f"/services/data/v{n}.0", "version": f"{n}.0"} for n in range(OLDEST, NEWEST)])

    async def _nothing(self, _request: web.Request, _caller: Caller) -> web.Response:
        raise not_found()

    async def _limits(self, _request: web.Request, _caller: Caller) -> web.Response:
        return json(self.org.limits.table(len(self.cometd.alive())))

    async def _query(self, request: web.Request, caller: Caller) -> web.Response:
        if not (text := request.query.get("q")):
            raise SalesforceError(400, "MALFORMED_QUERY", "A query string has to be specified")
        if len(request.raw_path) > 16_384:
            raise SalesforceError(414, "URI_TOO_LONG", "The length of the URI exceeds the 16,384 byte limit")
        deleted = "/queryAll" in request.path
        result = permissions.answer(self.org, text, caller.user_id)
        if result is None:
            result = query.run(self.org.store, text, api(request), deleted=deleted, schema=caller.schema, sees=caller.sees)
        self.org.queries.append((text, result.total))
        return self._page(request, result, 0, None)

    async def _more(self, request: web.Request, _caller: Caller) -> web.Response:
        name, _, start = request.match_info["locator"].rpartition("-")
        result = self._cursors.get(name)
        if result is None or not start.isdecimal() or not 0 < int(start[:9]) < len(result.rows):
            raise SalesforceError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
        return self._page(request, result, int(start), name)

    def _page(self, request: web.Request, result: query.Result, start: int, locator: str | None) -> web.Response:
        size = self.org.settings.page_size
        if wish := re.search(r"batchSize=(\d{1,6})", request.headers.get("Sforce-Query-Options", "")):
            size = min(max(int(wish[1]), 200), 2000)
        size = self.org.page(size)
        rows = result.rows[start : start + size]
        body: dict[str, Any] = {"totalSize": result.total, "done": start + size >= len(result.rows)}
        if not body["done"]:
            if locator is None:
                locator = "01g" + ids.make("01g", secrets.randbelow(62**8))[3:]
                self._cursors[locator] = result
                while len(self._cursors) > _CURSORS:
                    self._cursors.popitem(last=False)
            body["nextRecordsUrl"] = f"{api(request)}/query/{locator}-{start + size}"
        body["records"] = [result.project(row) for row in rows]
        return json(body)

    async def _objects(self, request: web.Request, caller: Caller) -> web.Response:
        return json(describe.objects(caller.schema, api(request)))

    async def _describe(self, request: web.Request, caller: Caller) -> web.Response:
        return json(describe.one(caller.schema, sobject_of(request, caller), api(request)))

    async def _read(self, request: web.Request, caller: Caller) -> web.Response:
        sobject = sobject_of(request, caller)
        return self._record(request, sobject, self._row(sobject, self._id(request, caller), caller))

    async def _read_external(self, request: web.Request, caller: Caller) -> web.Response:
        sobject, _, _, found = self._external(request, caller)
        if len(found) > 1:
            return self._several(request, sobject, found)
        if not found:
            raise not_found()
        return self._record(request, sobject, self._row(sobject, found[0], caller))

    def _record(self, request: web.Request, sobject: SObject, row: Row) -> web.Response:
        names = request.query.get("fields")
        wanted = [n.strip() for n in names.split(",")] if names else [f.name for f in sobject.fields.values() if f.type != "address"]
        out: Row = {"attributes": {"type": sobject.name, "url": f"{api(request)}/sobjects/{sobject.name}/{row['Id']}"}}
        for name in wanted:
            if (found := sobject.by_lower.get(name.lower())) is None:
                raise bad("INVALID_FIELD", f"No such column '{name}' on sobject of type {sobject.name}")
            out[found.name] = values.rest_form(found, row.get(found.name))
        return json(out)

    async def _create(self, request: web.Request, caller: Caller) -> web.Response:
        sobject, written = sobject_of(request, caller), await body(request)
        if sobject.event:
            return json(self.org.publish_event(sobject, written, caller.user_id), 201)
        transaction = self.org.begin(caller.user_id)
        record_id = transaction.create(writable(self.org, caller, sobject, written), written)
        commit(self.org, request, transaction)
        location = {"Location": f"{api(request)}/sobjects/{sobject.name}/{record_id}"}
        return json({"id": record_id, "success": True, "errors": []}, 201, location)

    async def _update(self, request: web.Request, caller: Caller) -> web.Response:
        sobject, written = sobject_of(request, caller), await body(request)
        transaction = self.org.begin(caller.user_id)
        record_id = self._id(request, caller)
        transaction.update(writable(self.org, caller, sobject, written, record_id), record_id, written)
        commit(self.org, request, transaction)
        return web.Response(status=204)

    async def _delete(self, request: web.Request, caller: Caller) -> web.Response:
        return self._deleted(request, caller, sobject_of(request, caller), self._id(request, caller))

    async def _delete_external(self, request: web.Request, caller: Caller) -> web.Response:
        sobject, _, _, found = self._external(request, caller)
        if len(found) > 1:
            return self._several(request, sobject, found)
        if not found:
            raise not_found()
        return self._deleted(request, caller, sobject, found[0])

    def _deleted(self, request: web.Request, caller: Caller, sobject: SObject, record_id: str) -> web.Response:
        transaction = self.org.begin(caller.user_id)
        transaction.delete(writable(self.org, caller, sobject, {}, record_id), record_id)
        commit(self.org, request, transaction)
        return web.Response(status=204)

    async def _undelete(self, request: web.Request, caller: Caller) -> web.Response:
        """Not in Salesforce's REST (there it is SOAP or Apex); offered so that a test needs no other client."""
        transaction = self.org.begin(caller.user_id)
        record_id = self._id(request, caller)
        transaction.undelete(writable(self.org, caller, sobject_of(request, caller), {}, record_id), record_id)
        commit(self.org, request, transaction)
        return web.Response(status=204)

    async def _upsert(self, request: web.Request, caller: Caller) -> web.Response:
        sobject, field, value, found = self._external(request, caller)
        written = await body(request)
        if len(found) > 1:
            return self._several(request, sobject, found)
        whole = writable(self.org, caller, sobject, written, found[0] if found else None)
        if any(name.lower() == field.lower() for name in written):
            raise bad("INVALID_FIELD", f"The {field} field should not be specified in the sobject data.")
        transaction = self.org.begin(caller.user_id)
        if found:
            transaction.update(whole, found[0], written)
        record_id = found[0] if found else transaction.create(whole, written | {field: value})
        commit(self.org, request, transaction)
        return json({"id": record_id, "success": True, "errors": [], "created": not found}, 200 if found else 201)

    def _id(self, request: web.Request, caller: Caller) -> str:
        given = request.match_info["id"]
        sobject = sobject_of(request, caller)
        if (found := ids.normalize(given)) is None or not found.startswith(sobject.prefix):
            if len(given) in (15, 18):
                raise bad("MALFORMED_ID", f"{sobject.name} ID: id value of incorrect type: {given}", "Id")
            raise not_found(f"Provided external ID field does not exist or is not accessible: {given[:80]}")
        return found

    def _row(self, sobject: SObject, record_id: str, caller: Caller) -> Row:
        row = self.org.store.find(sobject, record_id)
        if row is None or (caller.sees is not None and not caller.sees(row)):
            raise not_found()
        if row["IsDeleted"]:
            raise SalesforceError(404, "ENTITY_IS_DELETED", "entity is deleted", [])
        return row

    def _external(self, request: web.Request, caller: Caller) -> tuple[SObject, str, Any, list[str]]:
        """Object, field, value in the field's form, ids that have it."""
        sobject, name = sobject_of(request, caller), request.match_info["field"]
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
        return json([f"{api(request)}/sobjects/{sobject.name}/{i}" for i in found], 300)
