"""sObject collections: up to 200 records in one call, each with a fate of its own, and reads by ids. HTTP 200 whatever becomes of them."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from deploy.sandbox.salesforce import ids, values
from deploy.sandbox.salesforce.errors import SalesforceError, bad, not_found
from deploy.sandbox.salesforce.gate import Caller, Gate, V, api, body, commit, json, sobject_of, writable
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import SObject
from deploy.sandbox.salesforce.store import Row, Transaction

MOST, MOST_READ = 200, 2_000
_ROLLED_BACK = "Record rolled back because not all records were valid and the request was using AllOrNone header"
Result = dict[str, Any]
One = Callable[[Transaction, Any], Result]


class Composite:
    def __init__(self, org: Org, gate: Gate) -> None:
        self.org, self.gate = org, gate

    def routes(self) -> list[web.RouteDef]:
        base = f"{V}/composite/sobjects"
        return [
            web.post(base, self.gate(self._create)),
            web.post(f"{base}/", self.gate(self._create)),
            web.patch(base, self.gate(self._update)),
            web.patch(f"{base}/", self.gate(self._update)),
            web.delete(base, self.gate(self._delete)),
            web.delete(f"{base}/", self.gate(self._delete)),
            web.patch(f"{base}/{{sobject}}/{{field}}", self.gate(self._upsert)),
            web.post(f"{base}/{{sobject}}", self.gate(self._read)),
            web.get(f"{base}/{{sobject}}", self.gate(self._read)),
        ]

    async def _create(self, request: web.Request, caller: Caller) -> web.Response:
        def one(transaction: Transaction, record: Any) -> Result:
            sobject = self._type(record, caller)
            written = {k: v for k, v in record.items() if k != "id"}
            if sobject.event:
                return self.org.publish_event(sobject, written, caller.user_id)
            self.gate.lock()
            return _good(transaction.create(writable(self.org, caller, sobject, written), written))

        records, strict = await self._records(request)
        return self._done(request, caller, records, strict, one)

    async def _update(self, request: web.Request, caller: Caller) -> web.Response:
        seen: set[str] = set()

        def one(transaction: Transaction, record: Any) -> Result:
            sobject = self._type(record, caller)
            written = {k: v for k, v in record.items() if k.lower() != "id"}
            given = next((v for k, v in record.items() if k.lower() == "id"), None)
            if given is None:
                raise bad("MISSING_ARGUMENT", "Id not specified in an update call")
            record_id = _once(given, sobject, seen)
            self.gate.lock(record_id)
            transaction.update(writable(self.org, caller, sobject, written, record_id), record_id, written)
            return _good(record_id)

        records, strict = await self._records(request)
        return self._done(request, caller, records, strict, one)

    async def _delete(self, request: web.Request, caller: Caller) -> web.Response:
        given = [i.strip() for i in request.query.get("ids", "").split(",") if i.strip()]
        seen: set[str] = set()

        def one(transaction: Transaction, given_id: Any) -> Result:
            sobject = caller.schema.by_prefix(str(given_id))
            if sobject is None:
                raise bad("MALFORMED_ID", f"malformed id {str(given_id)[:80]}", "Id")
            record_id = _once(given_id, sobject, seen)
            self.gate.lock(record_id)
            transaction.delete(writable(self.org, caller, sobject, {}, record_id), record_id)
            return _good(record_id)

        if not given:
            raise SalesforceError(400, "MISSING_ARGUMENT", "The ids parameter is missing")
        _at_most(len(given), MOST)
        return self._done(request, caller, given, request.query.get("allOrNone", "false").lower() == "true", one)

    async def _upsert(self, request: web.Request, caller: Caller) -> web.Response:
        sobject = sobject_of(request, caller)
        found = sobject.by_lower.get(request.match_info["field"].lower())
        if found is None or not (found.external_id or found.name == "Id"):
            raise not_found(f"Provided external ID field does not exist or is not accessible: {request.match_info['field'][:80]}")
        seen: set[str] = set()

        def one(transaction: Transaction, record: Any) -> Result:
            if self._type(record, caller).name != sobject.name:
                raise bad("INVALID_TYPE", f"all records must be of type {sobject.name}")
            key = next((v for k, v in record.items() if k.lower() == found.name.lower()), None)
            if key is None or key == "":
                raise bad("MISSING_ARGUMENT", f"{found.name} not specified")
            folded = str(key).lower()
            if folded in seen:
                raise bad("DUPLICATE_VALUE", f"Duplicate external id specified: {key}", found.name)
            seen.add(folded)
            written = {k: v for k, v in record.items() if k.lower() not in ("id", found.name.lower())}
            there = self.org.store.by_external(sobject, found.name, str(key)) if found.name != "Id" else [str(ids.normalize(key))]
            if len(there) > 1:
                raise SalesforceError(300, "DUPLICATE_EXTERNAL_ID", f"duplicate value found: {found.name}: more than one record found", [])
            self.gate.lock(there[0] if there else None)
            whole = writable(self.org, caller, sobject, written, there[0] if there else None)
            if there:
                transaction.update(whole, there[0], written)
                return _good(there[0]) | {"created": False}
            return _good(transaction.create(whole, written | {found.name: key})) | {"created": True}

        records, strict = await self._records(request)
        return self._done(request, caller, records, strict, one)

    async def _read(self, request: web.Request, caller: Caller) -> web.Response:
        """Records by ids, in the order asked for; null for those that are not there or not seen."""
        sobject = sobject_of(request, caller)
        if request.method == "GET":
            given = {name: request.query.get(name, "").split(",") for name in ("ids", "fields")}
        else:
            given = await body(request)
        wanted, names = given.get("ids"), given.get("fields")
        if not isinstance(wanted, list) or not isinstance(names, list) or not all(names):
            raise SalesforceError(400, "MISSING_ARGUMENT", "The ids and fields parameters are required")
        _at_most(len(wanted), MOST_READ if request.method == "POST" else 800)
        fields = []
        for name in names:
            if (found := sobject.by_lower.get(str(name).lower())) is None:
                raise bad("INVALID_FIELD", f"No such column '{name}' on sobject of type {sobject.name}")
            fields.append(found)
        out: list[Row | None] = []
        for each in wanted:
            row = self.org.store.find(sobject, ids.normalize(each) or "")
            if row is None or row["IsDeleted"] or (caller.sees is not None and not caller.sees(row)):
                out.append(None)
                continue
            made: Row = {"attributes": {"type": sobject.name, "url": f"{api(request)}/sobjects/{sobject.name}/{row['Id']}"}}
            out.append(made | {"Id": row["Id"]} | {f.name: values.rest_form(f, row.get(f.name)) for f in fields})
        return json(out)

    def _type(self, record: Any, caller: Caller) -> SObject:
        if not isinstance(record, dict):
            raise bad("JSON_PARSER_ERROR", "a record is not an object")
        attributes = record.get("attributes")
        name = attributes.get("type") if isinstance(attributes, dict) else None
        if (found := caller.schema.get(str(name))) is None:
            raise bad("INVALID_TYPE", f"sObject type '{name}' is not supported.")
        return found

    async def _records(self, request: web.Request) -> tuple[list[Any], bool]:
        given = await body(request)
        records = given.get("records")
        if not isinstance(records, list) or not records:
            raise SalesforceError(400, "JSON_PARSER_ERROR", "The records element is missing or empty")
        _at_most(len(records), MOST)
        return records, given.get("allOrNone") is True

    def _done(self, request: web.Request, caller: Caller, records: list[Any], strict: bool, one: One) -> web.Response:
        """One transaction of those that went well; with `strict`, of none where one did not."""
        transaction = self.org.begin(caller.user_id)
        results: list[Result] = []
        for record in records:
            try:
                results.append(one(transaction, record))
            except SalesforceError as error:
                told = {"statusCode": error.code, "message": error.message, "fields": error.fields or []}
                results.append({"success": False, "errors": [told]})
        if strict and not all(r["success"] for r in results):
            told = {"statusCode": "ALL_OR_NONE_OPERATION_ROLLED_BACK", "message": _ROLLED_BACK, "fields": []}
            return json([r if not r["success"] else {"id": r["id"], "success": False, "errors": [told]} for r in results])
        if transaction.touched():
            commit(self.org, request, transaction)
        return json(results)


def _good(record_id: str) -> Result:
    return {"id": record_id, "success": True, "errors": []}


def _once(given: Any, sobject: SObject, seen: set[str]) -> str:
    record_id = ids.normalize(given)
    if record_id is None or not record_id.startswith(sobject.prefix):
        raise bad("MALFORMED_ID", f"{sobject.name} ID: id value of incorrect type: {str(given)[:80]}", "Id")
    if record_id in seen:
        raise bad("DUPLICATE_VALUE", f"duplicate id specified: {record_id}", "Id")
    seen.add(record_id)
    return record_id


def _at_most(count: int, most: int) -> None:
    if count > most:
        raise SalesforceError(400, "EXCEEDED_ID_LIMIT", f"record limit reached. cannot submit more than {most} records into this call")
