"""Bulk API 2.0 query jobs of the sandbox org on the wire: the states of a job, its result in parts, and what is refused."""

import asyncio
import csv
import io
from typing import Any

import aiohttp
import pytest

from tests.support.sandbox_wire import Wire, org

ASK = "SELECT Id, Name, Account.Name, CreatedDate, HasOptedOutOfEmail, Description FROM Contact"


async def made(at: Wire, text: str = ASK, **options: Any) -> Any:
    status, job = await at.rest("POST", "/jobs/query", {"operation": "query", "query": text} | options)
    assert status == 200, job
    return job


async def until(at: Wire, job: str, state: str = "JobComplete") -> Any:
    async with asyncio.timeout(25):
        while True:
            status, body = await at.rest("GET", f"/jobs/query/{job}")
            assert status == 200, body
            if body["state"] == state:
                return body
            await asyncio.sleep(0.01)


async def part(at: Wire, job: str, **params: Any) -> tuple[list[list[str]], str, int]:
    """The rows of one part (header first), the locator, the number that the header names."""
    url = f"{at.sandbox.url}/services/data/v67.0/jobs/query/{job}/results"
    async with at.http.get(url, params=params, headers=at.headers) as reply:
        assert (reply.status, reply.content_type) == (200, "text/csv"), await reply.text()
        assert reply.headers["Sforce-Limit-Info"].startswith("api-usage=")
        rows = list(csv.reader(io.StringIO(await reply.text(), newline="")))
        return rows, reply.headers["Sforce-Locator"], int(reply.headers["Sforce-NumberOfRecords"])


async def everything(at: Wire, job: str, **params: Any) -> list[list[str]]:
    """All rows without the headers."""
    rows, locator, number = await part(at, job, **params)
    found = rows[1:]
    assert number == len(found)
    while locator != "null":
        rows, locator, number = await part(at, job, locator=locator, **params)
        assert number == len(rows) - 1 > 0
        found += rows[1:]
    return found


async def test_a_job_goes_through_its_states_and_its_parts_are_the_whole() -> None:
    async with org(records=300) as at:
        job = await made(at)
        assert job["id"].startswith("750")
        assert (job["state"], job["object"], job["apiVersion"], job["operation"]) == ("UploadComplete", "Contact", 67.0, "query")
        done = await until(at, job["id"])
        live = {r["Id"]: r for r in (await at.control("GET", "records?type=Contact"))["records"]}
        assert (done["numberRecordsProcessed"], done["retries"], done["jobType"]) == (len(live), 0, "V2Query")
        (header, *_), _, _ = await part(at, job["id"])
        assert header == ["Id", "Name", "Account.Name", "CreatedDate", "HasOptedOutOfEmail", "Description"]
        rows = await everything(at, job["id"], maxRecords=40)
        assert sorted(r[0] for r in rows) == sorted(live)
        for row in rows:
            record = live[row[0]]
            assert (row[1], row[3], row[4]) == (record["Name"], record["CreatedDate"][:-1] + "+0000", "false")
            assert (row[2] == "") == (record["AccountId"] is None)


async def test_rows_without_an_order_come_in_none_and_with_one_in_it() -> None:
    async with org(records=300) as at:
        job = await made(at, "SELECT Id FROM Contact")
        await until(at, job["id"])
        rows = [r[0] for r in await everything(at, job["id"])]
        assert rows != sorted(rows)
        job = await made(at, "SELECT Id FROM Contact ORDER BY Id")
        await until(at, job["id"])
        assert [r[0] for r in await everything(at, job["id"], maxRecords=7)] == sorted(rows)


async def test_any_text_comes_back_from_the_csv_as_it_was_and_delimiters_are_those_asked_for() -> None:
    async with org(records=0) as at:
        texts = ['a "quoted" word', "two\r\nlines", "comma, semicolon; tab\tpipe|", "Zoë 漢", '"', "x"]
        for text in texts:
            await at.change({"op": "create", "type": "Contact", "values": {"LastName": "L", "Description": text}})
        for delimiter, sign in (("COMMA", ","), ("SEMICOLON", ";"), ("TAB", "\t"), ("PIPE", "|"), ("CARET", "^"), ("BACKQUOTE", "`")):
            job = await made(at, "SELECT Description, Id FROM Contact", columnDelimiter=delimiter, lineEnding="CRLF")
            await until(at, job["id"])
            url = f"{at.sandbox.url}/services/data/v67.0/jobs/query/{job['id']}/results"
            async with at.http.get(url, headers=at.headers) as reply:
                raw = await reply.text()
            assert raw.startswith(f'"Description"{sign}"Id"\r\n')
            rows = list(csv.reader(io.StringIO(raw, newline=""), delimiter=sign))
            assert sorted(r[0] for r in rows[1:]) == sorted(texts)


async def test_query_all_gives_the_deleted_and_a_running_job_sees_what_was_committed_before_it_ran() -> None:
    async with org(records=30) as at:
        gone = at.sandbox.org.store.tables["Contact"].order[0]
        await at.change({"op": "delete", "type": "Contact", "id": gone})
        for operation, there in (("query", False), ("queryAll", True)):
            job = await made(at, "SELECT Id, IsDeleted FROM Contact", operation=operation)
            await until(at, job["id"])
            assert ([gone, "true"] in await everything(at, job["id"])) is there


async def test_a_job_can_be_aborted_then_deleted_and_nothing_else_out_of_turn() -> None:
    async with org() as at:
        await at.fault("bulk-stuck")
        job = (await made(at))["id"]
        await until(at, job, "InProgress")
        assert (await at.rest("GET", f"/jobs/query/{job}/results"))[1][0]["errorCode"] == "INVALIDJOBSTATE"
        assert (await at.rest("DELETE", f"/jobs/query/{job}"))[0] == 400
        status, body = await at.rest("PATCH", f"/jobs/query/{job}", {"state": "Aborted"})
        assert (status, body["state"]) == (200, "Aborted")
        assert (await at.rest("PATCH", f"/jobs/query/{job}", {"state": "Aborted"}))[0] == 400
        assert (await at.rest("GET", "/jobs/query"))[1]["records"][0]["state"] == "Aborted"
        assert (await at.rest("DELETE", f"/jobs/query/{job}"))[0] == 204
        assert (await at.rest("GET", f"/jobs/query/{job}"))[0] == 404


async def test_a_job_belongs_to_its_api_version_and_a_failed_one_says_why() -> None:
    async with org() as at:
        job = (await made(at))["id"]
        await until(at, job)
        assert (await at.rest("GET", f"/services/data/v66.0/jobs/query/{job}"))[0] == 409
        await at.fault("bulk-failed")
        failed = await until(at, (await made(at))["id"], "Failed")
        assert failed["errorMessage"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"operation": "query", "query": "SELECT COUNT() FROM Contact"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT OwnerId FROM Contact GROUP BY OwnerId"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT Id FROM Contact OFFSET 5"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT MailingAddress FROM Contact"}, "API_ERROR"),
        ({"operation": "query", "query": "SELECT Nope FROM Contact"}, "INVALID_FIELD"),
        ({"operation": "query", "query": "SELECT Id FROM Contact WHERE Nope = 1"}, "INVALID_FIELD"),
        ({"operation": "query", "query": "nonsense"}, "MALFORMED_QUERY"),
        ({"operation": "query"}, "MALFORMED_QUERY"),
        ({"operation": "insert", "query": "SELECT Id FROM Contact"}, "INVALIDJOB"),
        ({"operation": "query", "query": "SELECT Id FROM Contact", "columnDelimiter": "SPACE"}, "INVALIDJOB"),
        ([], "JSON_PARSER_ERROR"),
    ],
)
async def test_a_job_that_cannot_run_is_refused_when_it_is_made(body: Any, code: str) -> None:
    async with org() as at:
        status, reply = await at.rest("POST", "/jobs/query", body)
        assert (status, reply[0]["errorCode"]) == (400, code)
        assert at.sandbox.bulk.jobs == {}


@pytest.mark.parametrize("params", [{"locator": "x"}, {"locator": "OTk5OTk"}, {"locator": "LTE"}, {"maxRecords": "0"}, {"maxRecords": "x"}])
async def test_a_wrong_locator_or_size_is_refused(params: dict[str, str]) -> None:
    async with org() as at:
        job = (await made(at))["id"]
        await until(at, job)
        status, reply = await at.rest("GET", f"/jobs/query/{job}/results", params=params)
        assert (status, reply[0]["errorCode"]) == (400, "INVALID_QUERY_LOCATOR")


async def test_the_jobs_of_a_day_are_counted_and_refused_past_the_limit() -> None:
    async with org() as at:
        await at.control("POST", "settings", {"daily_bulk_jobs": 2})
        for _ in range(2):
            await made(at)
        status, reply = await at.rest("POST", "/jobs/query", {"operation": "query", "query": ASK})
        assert (status, reply[0]["errorCode"]) == (400, "LIMIT_EXCEEDED")
        assert reply[0]["message"] == "Max bulk v2 query jobs (2) per 24 hrs has been reached (2)"
        assert (await at.rest("GET", "/limits"))[1]["DailyBulkV2QueryJobs"] == {"Max": 2, "Remaining": 0}
        await at.control("POST", "settings", {"daily_bulk_jobs": 9})
        await at.fault("daily-limit", variant="bulk-storage")
        assert "result size" in (await at.rest("POST", "/jobs/query", {"operation": "query", "query": ASK}))[1][0]["message"]


async def test_parts_of_changing_size_and_a_cut_part_lose_nothing_to_who_follows_the_locator() -> None:
    async with org(records=200) as at:
        job = (await made(at, "SELECT Id FROM Contact"))["id"]
        await until(at, job)
        whole = await everything(at, job)
        await at.fault("page-size")
        sizes = [(await part(at, job, maxRecords=1000))[2] for _ in range(3)]
        assert sizes
        assert await everything(at, job, maxRecords=20) == whole
        await at.fault("cut-results")
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
            await part(at, job)
        assert await everything(at, job) == whole


async def test_many_rows_leave_room_for_events_between_them() -> None:
    async with org(records=6000) as at:
        job = (await made(at, "SELECT Id, Name, Email, Phone, Title FROM Contact"))["id"]
        await until(at, job)
        await at.open()
        reading = asyncio.create_task(everything(at, job))
        await at.person("Meanwhile")
        assert len(await at.poll()) == 1
        assert len(await reading) == 2700
