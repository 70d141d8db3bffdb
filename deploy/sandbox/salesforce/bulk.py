"""Bulk API 2.0 query jobs: a query runs beside everything else, its result is fetched as CSV in parts.

The rows are those of the moment the job ran, not of when it was made or fetched. Without ORDER BY they come in chunks by Id, in no order.
"""

import asyncio
import base64
import binascii
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.salesforce import ids, query, values
from deploy.sandbox.salesforce.errors import SalesforceError, not_found
from deploy.sandbox.salesforce.gate import Caller, Gate, V, body, json
from deploy.sandbox.salesforce.limits import JOBS, STORAGE
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import Field
from deploy.sandbox.salesforce.store import Row

_DELIMITERS = {"COMMA": ",", "SEMICOLON": ";", "TAB": "\t", "PIPE": "|", "CARET": "^", "BACKQUOTE": "`"}
_LINES = {"LF": "\n", "CRLF": "\r\n"}
_CHUNKS = 6
_WRITE = 500  # rows written at a time, so that events go out between them
_OVER = ("JobComplete", "Failed", "Aborted")


@dataclass(slots=True)
class Job:
    """A query job; `rows` once it is complete."""

    id: str
    number: int
    operation: str
    sobject: str
    user_id: str
    version: str
    delimiter: str
    line: str
    columns: query.Columns
    created: float
    state: str = "UploadComplete"
    rows: list[Row] = field(default_factory=list)
    error: str | None = None
    task: "asyncio.Task[None] | None" = None

    def as_dict(self) -> dict[str, Any]:
        moment = values.iso(self.created)[:-1] + "+0000"
        made: dict[str, Any] = {
            "id": self.id,
            "operation": self.operation,
            "object": self.sobject,
            "createdById": self.user_id,
            "createdDate": moment,
            "systemModstamp": moment,
            "state": self.state,
            "concurrencyMode": "Parallel",
            "contentType": "CSV",
            "apiVersion": float(self.version),
            "jobType": "V2Query",
            "lineEnding": self.line,
            "columnDelimiter": self.delimiter,
        }
        if self.state != "UploadComplete":
            made |= {"numberRecordsProcessed": len(self.rows), "retries": 0, "totalProcessingTime": 100, "isPkChunkingSupported": True}
        return made | ({"errorMessage": self.error} if self.error else {})


class Bulk:
    def __init__(self, org: Org, gate: Gate, seed: int) -> None:
        self.org, self.gate = org, gate
        self.jobs: dict[str, Job] = {}
        self._rng = random.Random(seed)

    def routes(self) -> list[web.RouteDef]:
        jobs, one = f"{V}/jobs/query", f"{V}/jobs/query/{{job}}"
        return [
            web.post(jobs, self.gate(self._create)),
            web.post(f"{jobs}/", self.gate(self._create)),
            web.get(jobs, self.gate(self._list)),
            web.get(f"{jobs}/", self.gate(self._list)),
            web.get(one, self.gate(self._state)),
            web.get(f"{one}/", self.gate(self._state)),
            web.patch(one, self.gate(self._abort)),
            web.delete(one, self.gate(self._delete)),
            web.get(f"{one}/results", self.gate(self._results)),
            web.get(f"{one}/results/", self.gate(self._results)),
        ]

    async def close(self) -> None:
        for job in self.jobs.values():
            if job.task is not None:
                job.task.cancel()

    async def _create(self, request: web.Request, caller: Caller) -> web.Response:
        given = await body(request)
        operation, text = given.get("operation"), given.get("query")
        if operation not in ("query", "queryAll"):
            raise SalesforceError(400, "INVALIDJOB", f"Invalid operation: {operation}")
        if not isinstance(text, str) or not text:
            raise SalesforceError(400, "MALFORMED_QUERY", "A query string has to be specified")
        delimiter, line = str(given.get("columnDelimiter", "COMMA")), str(given.get("lineEnding", "LF"))
        if delimiter not in _DELIMITERS or line not in _LINES or given.get("contentType", "CSV") != "CSV":
            raise SalesforceError(400, "INVALIDJOB", "columnDelimiter, lineEnding or contentType is not supported")
        if self.org.faults.take("bulk-unfit"):
            raise SalesforceError(400, "INVALIDENTITY", "Entity is not supported by the Bulk API.")
        columns = query.columns(self.org.store, text, deleted=operation == "queryAll", schema=caller.schema, sees=caller.sees)
        most = self.org.settings.daily_bulk_jobs
        if self.org.limits.spent(JOBS):
            raise SalesforceError(400, "LIMIT_EXCEEDED", f"Max bulk v2 query jobs ({most}) per 24 hrs has been reached ({most})")
        if self.org.limits.spent(STORAGE):
            text = "Max bulk v2 query result size stored (1000000000) kb per 24 hrs has been exceeded"
            raise SalesforceError(400, "LIMIT_EXCEEDED", text)
        self.org.limits.spend(JOBS)
        number = self.org.counts["bulk jobs"] + 1
        job = Job(
            ids.make("750", 62**4 + number), number, operation, columns.sobject, caller.user_id, request.match_info["version"],
            delimiter, line, columns, self.org.now(),
        )  # fmt: skip
        self.jobs[job.id] = job
        self.org.counts["bulk jobs"] += 1
        job.task = asyncio.get_running_loop().create_task(self._run(job))
        return json(job.as_dict())

    async def _run(self, job: Job) -> None:
        """The states of a job; the rows are taken half way through."""
        await asyncio.sleep(self.org.settings.bulk_seconds / 4)
        job.state = "InProgress"
        await asyncio.sleep(self.org.settings.bulk_seconds / 4)
        while self.org.faults.peek("bulk-stuck"):  # noqa: ASYNC110 - cleared from outside, seldom waited for
            await asyncio.sleep(0.05)
        if self.org.faults.take("bulk-failed"):
            job.state, job.error = "Failed", "InternalServerError : Retried more than fifteen times"
            return
        rows = job.columns.rows()
        if not job.columns.ordered:
            size = max(1, -(-len(rows) // _CHUNKS))
            chunks = [rows[at : at + size] for at in range(0, len(rows), size)]
            self._rng.shuffle(chunks)
            rows = [row for chunk in chunks for row in chunk]
        await asyncio.sleep(self.org.settings.bulk_seconds / 2)
        job.rows, job.state = rows, "JobComplete"
        self.org.limits.spend(STORAGE, len(rows) * len(job.columns.names) * 12 // 2**20)

    def _job(self, request: web.Request) -> Job:
        job = self.jobs.get(ids.normalize(request.match_info["job"]) or "")
        if job is None:
            raise not_found()
        if job.version != request.match_info["version"]:
            raise SalesforceError(409, "INVALID_VERSION", f"The job was made with API version {job.version}; use the same for every call")
        return job

    async def _list(self, _request: web.Request, _caller: Caller) -> web.Response:
        jobs = sorted(self.jobs.values(), key=lambda j: -j.number)[:1000]
        return json({"done": True, "records": [j.as_dict() for j in jobs], "nextRecordsUrl": None})

    async def _state(self, request: web.Request, _caller: Caller) -> web.Response:
        return json(self._job(request).as_dict())

    async def _abort(self, request: web.Request, _caller: Caller) -> web.Response:
        job = self._job(request)
        if (await body(request)).get("state") != "Aborted":
            raise SalesforceError(400, "INVALIDJOBSTATE", "A query job can only be set to Aborted")
        if job.state in _OVER:
            raise SalesforceError(400, "INVALIDJOBSTATE", f"Aborting already {job.state.removeprefix('Job')} Job not allowed")
        if job.task is not None:
            job.task.cancel()
        job.state = "Aborted"
        return json(job.as_dict())

    async def _delete(self, request: web.Request, _caller: Caller) -> web.Response:
        job = self._job(request)
        if job.state not in _OVER:
            raise SalesforceError(400, "INVALIDJOBSTATE", "A job can be deleted once it is complete, failed or aborted")
        del self.jobs[job.id]
        return web.Response(status=204)

    async def _results(self, request: web.Request, _caller: Caller) -> web.StreamResponse:
        job = self._job(request)
        if job.state != "JobComplete":
            raise SalesforceError(400, "INVALIDJOBSTATE", f"The job is in state {job.state}; its results are there when it is JobComplete")
        if "locator" in request.query and self.org.faults.take("bulk-locator"):
            raise SalesforceError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
        start = _offset(request.query.get("locator"), len(job.rows))
        size = self.org.page(self.org.settings.bulk_page)
        if (wish := request.query.get("maxRecords")) is not None:
            if not re.fullmatch(r"[1-9]\d{0,8}", wish):
                raise SalesforceError(400, "INVALID_QUERY_LOCATOR", f"maxRecords: {wish[:20]} is no number above 0")
            size = min(size, int(wish))
        rows = job.rows[start : start + size]
        end = start + len(rows)
        locator = base64.urlsafe_b64encode(str(end).encode()).decode().rstrip("=") if end < len(job.rows) else "null"
        headers = {"Content-Type": "text/csv;charset=UTF-8", "Sforce-Locator": locator, "Sforce-NumberOfRecords": str(len(rows))}
        response = web.StreamResponse(headers=headers | self.gate.headers())
        await response.prepare(request)
        write = writer(job.columns, _DELIMITERS[job.delimiter], _LINES[job.line])
        await response.write(write(None))
        for at in range(0, len(rows), _WRITE):
            part = b"".join(map(write, rows[at : at + _WRITE]))
            if self.org.faults.take("cut-results"):
                return await serve.stall(request, response, part)
            if serve.STALLED in request:
                return await serve.stall(request, response, part, request[serve.STALLED])
            await response.write(part)
            await asyncio.sleep(0)
        await response.write_eof()
        return response


def _offset(locator: str | None, total: int) -> int:
    if locator is None:
        return 0
    try:
        start = int(base64.urlsafe_b64decode(locator + "=" * (-len(locator) % 4)).decode())
    except (binascii.Error, ValueError):
        start = -1
    if not 0 < start < total:
        raise SalesforceError(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
    return start


def writer(columns: query.Columns, delimiter: str, line: str) -> Callable[[Row | None], bytes]:
    """A row as a line of CSV; None gives the header. Everything is quoted, quotes doubled, null is empty."""
    getters = [(get, _form(f)) for get, f in zip(columns.getters, columns.fields, strict=True)]

    def write(row: Row | None) -> bytes:
        texts = columns.names if row is None else ["" if (v := get(row)) is None else form(v) for get, form in getters]
        return (delimiter.join(f'"{t.replace(chr(34), chr(34) * 2) if chr(34) in t else t}"' for t in texts) + line).encode()

    return write


def _form(f: Field) -> Callable[[Any], str]:
    if f.type == "datetime":
        return lambda v: v[:-1] + "+0000"
    if f.type == "boolean":
        return lambda v: "true" if v else "false"
    if f.type in ("double", "currency", "percent"):
        return lambda v: str(float(v))
    return str
