"""Query jobs of Bulk API 2.0: made, looked at, read in parts, deleted. It keeps nothing: whoever wants to go on keeps id and locator.

A job is a query that Salesforce runs when it finds the time; its result stays for seven days and comes as CSV, in no order, in parts of
which each names the next by a locator. A job is known under the API version only that made it.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import requests
import urllib3

from models.errors import HeadraceError, PermanentError, TemporaryError
from models.scrub import scrub
from streams.salesforce.changed import second_of_stamp
from streams.salesforce.limits import DAILY_SECONDS
from streams.salesforce.rest import Rest, check_id, classify, json_of

PART = 50_000
"""Rows of a part: what Salesforce's own examples ask for. A part is one call."""
LIMITS = ("DailyBulkV2QueryJobs", "DailyBulkV2QueryFileStorageMB")
"""Of jobs and of their results, as /limits has them."""
LOST = frozenset({"NOT_FOUND", "INVALID_QUERY_LOCATOR", "INVALID_VERSION"})
OVER = frozenset({"JobComplete", "Failed", "Aborted"})
NUMBER = re.compile(r"[0-9]{1,12}")
CSV = {"Accept": "text/csv"}
SIGN = {"columnDelimiter": "CARET", "lineEnding": "LF"}
"""By this a job of ours is known among those of its user: a job does not tell its query, and nobody else asks for carets."""
MAKING_SECONDS, CLOCK_SECONDS = 150, 30
"""So long after it was begun a job may have been made: a call's time-out. So much clocks may differ."""


class JobLostError(PermanentError):
    """The job cannot be read to its end (deleted, failed, its locator refused): make another."""


class JobsUsedUpError(TemporaryError):
    """The query jobs of the day, or the space for their results, are used up. Calls of REST are not."""


@dataclass(frozen=True, slots=True)
class Job:
    """A query job: its state, and where it failed why."""

    id: str
    state: str
    why: str = ""


class Part:
    """Rows of one part, read as they come; to be closed. Not to be used by two threads at a time.

    header   names of the columns; number: of its rows; locator: of the next part, "" where this is the last
    """

    def __init__(self, reply: requests.Response) -> None:
        self._reply = reply
        number, locator = reply.headers.get("Sforce-NumberOfRecords", ""), reply.headers.get("Sforce-Locator", "")
        if "csv" not in reply.headers.get("Content-Type", "") or not NUMBER.fullmatch(number) or not locator:
            reply.close()
            raise TemporaryError("Salesforce answered with something that is no part of a Bulk result (maintenance page?)")
        self.number, self.locator = int(number), "" if locator == "null" else locator
        reply.raw.decode_content, reply.raw.auto_close = True, False  # else it closes under the reader at its end
        self._lines = _lines(reply)
        self.header = next(self._lines, [])
        self._left = self.number

    @property
    def done(self) -> bool:
        """All rows were taken."""
        return self._left == 0

    def read(self, most: int) -> list[list[str]]:
        """The next rows, at most so many. Raises TemporaryError when the rest does not come: ask for the part again."""
        found = list(islice(self._lines, min(most, self._left)))
        if len(found) < min(most, self._left):
            raise TemporaryError("a part of a Bulk result was cut off")
        self._left -= len(found)
        return found

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError, urllib3.exceptions.HTTPError):
            self._reply.close()


def _lines(reply: requests.Response) -> Iterator[list[str]]:
    try:
        text = io.TextIOWrapper(io.BufferedReader(cast(Any, reply.raw), 1 << 17), "utf-8", newline="")
        yield from csv.reader(text, delimiter="^")
    except (OSError, UnicodeDecodeError, csv.Error, urllib3.exceptions.HTTPError) as error:
        raise TemporaryError(f"a part of a Bulk result was cut off ({type(error).__name__})") from None


class Bulk:
    """Query jobs of one connection. Each call is one of the org's API calls and goes through the limits guard."""

    def __init__(self, rest: Rest, purpose: str) -> None:
        self._rest, self._purpose = rest, purpose

    async def make(self, soql: str, *, deleted: bool = False) -> Job:
        """A new job. Raises PermanentError (such a query cannot be run by Bulk), JobsUsedUpError, and the other classes."""
        asked = {"operation": _operation(deleted), "query": soql} | SIGN
        return await self._rest.send("jobs/query", self._purpose, _job, method="POST", json=asked, errors=refused)

    async def made(self, sobject: str, since: int, *, deleted: bool) -> set[str]:
        """Ids of our jobs of that kind that were made by this user when one was begun at `since` (epoch s). Raises the four classes."""
        user, found, path = await self._rest.user(), set(), "jobs/query?jobType=V2Query"
        alike = {"object": sobject, "operation": _operation(deleted)} | SIGN
        while path:
            page = await self._rest.send(path, self._purpose, json_of, errors=refused)
            for job in page.get("records") or ():
                made = second_of_stamp(job.get("createdDate"))
                if (
                    alike.items() <= job.items()
                    and str(job.get("createdById"))[:15] == user[:15]
                    and made is not None
                    and since - CLOCK_SECONDS <= made <= since + MAKING_SECONDS
                ):
                    found.add(check_id(str(job.get("id"))))
            following = "" if page.get("done", True) else str(page.get("nextRecordsUrl") or "")
            path = following if following.startswith("/services/data/") and following != path else ""
        return found

    async def look(self, id: str) -> Job:
        """How far it is. Raises JobLostError when it is not there, and the other classes."""
        return await self._rest.send(f"jobs/query/{id}", self._purpose, _job, errors=refused)

    async def part(self, id: str, locator: str) -> Part:
        """The part behind a locator ("": the first). Raises JobLostError, and the other classes."""
        path = f"jobs/query/{id}/results"
        asked = {"maxRecords": str(PART)} | ({"locator": locator} if locator else {})
        return await self._rest.send(path, self._purpose, Part, errors=refused, params=asked, headers=CSV, stream=True)

    async def drop(self, id: str) -> None:
        """End and delete it; one that is gone is fine. Raises the four classes."""
        with suppress(JobLostError):
            if (await self.look(id)).state not in OVER:
                with suppress(PermanentError):  # it ended just now
                    await self._rest.send(
                        f"jobs/query/{id}", self._purpose, _job, method="PATCH", json={"state": "Aborted"}, errors=refused
                    )
            await self._rest.send(f"jobs/query/{id}", self._purpose, lambda _: None, method="DELETE", errors=refused)


def _operation(deleted: bool) -> str:
    return "queryAll" if deleted else "query"


def refused(status: int, content: Any) -> HeadraceError:
    """The error class of a refused call about a job."""
    first = content[0] if isinstance(content, list) and content else content
    code, message = (str(first.get(name) or "") for name in ("errorCode", "message")) if isinstance(first, dict) else ("", "")
    said = f"Salesforce answered {status} {code}: {scrub(message, 300)}"
    if code == "LIMIT_EXCEEDED":
        return JobsUsedUpError(said, retry_after=DAILY_SECONDS)
    if code in LOST or (status == 409 and code):
        return JobLostError(said)
    return classify(status, content)


def _job(reply: requests.Response) -> Job:
    body = json_of(reply)
    if not isinstance(body.get("id"), str) or not isinstance(body.get("state"), str):
        raise TemporaryError("Salesforce answered with something that is no Bulk job")
    return Job(check_id(body["id"]), body["state"], scrub(str(body.get("errorMessage") or ""), 300))
