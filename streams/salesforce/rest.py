"""Reading Salesforce by REST: simple-salesforce in threads, with our own address, API version, time-outs and error classes.

It writes nothing but what the canary does. Every value that comes from outside is checked before it stands in SOQL
(`check_id`, `check_name`).
"""

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import orjson
import requests
from simple_salesforce import Salesforce as Client
from simple_salesforce.exceptions import SalesforceError

from models.errors import HeadraceError, PausedError, PermanentError, TemporaryError
from models.flow import Salesforce
from models.platform_event import UUID
from models.scrub import scrub
from models.settings import Settings
from streams import metrics
from streams.salesforce.auth import Login
from streams.salesforce.limits import CEILINGS, DAILY_CALLS, Limit, LimitReachedError, Step, refused_for_a_limit
from streams.salesforce.oauth import Token, second_of

Row = dict[str, Any]
T = TypeVar("T")
TIMEOUT = (10.0, 130.0)
"""Seconds to connect, seconds without a byte. Salesforce ends a query after 120 s."""
HELD_SECONDS = 10.0
"""So long waits who was not let through because people paused the connection."""
IDS_PER_CALL = 200
FIRST_LOOK, LOOK_SECONDS, DESCRIBED_SECONDS = 30.0, 600.0, 3600.0
"""Seconds to the first look at the limits, between two, and so long a describe counts that nobody forgot."""
URI_BYTES = 14_000
"""Salesforce refuses a URI above 16,384 bytes; headers count in some places."""

ID = re.compile(r"[A-Za-z0-9]{15}(?:[A-Z0-5]{3})?")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,120}(?:\.[A-Za-z][A-Za-z0-9_]{0,120}){0,5}")
COLUMN = re.compile(r"(?:No such column|Didn't understand relationship) '([^']{1,200})'")

RETRY = frozenset({"SERVER_UNAVAILABLE", "QUERY_TIMEOUT", "UNKNOWN_EXCEPTION", "REQUEST_RUNNING_TOO_LONG", "INVALID_QUERY_LOCATOR"})
OPERATOR = frozenset({"API_DISABLED_FOR_ORG", "API_CURRENTLY_DISABLED", "STORAGE_LIMIT_EXCEEDED", "USER_NOT_ENABLED"})
LOCKS = ("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access")


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a query, all pages; `total` as Salesforce counted, `second` its clock (epoch s) when it answered the first page."""

    rows: list[Row]
    total: int
    second: int


class Here(NamedTuple):
    """The org's clock (epoch s), the first 15 characters of its id, its address."""

    second: int
    org: str
    instance: str


def check_id(raw: str) -> str:
    """A record id that may stand in SOQL. Raises PermanentError."""
    if not ID.fullmatch(raw):
        raise PermanentError(f"'{scrub(raw, 40)}' is no record id of Salesforce (15 or 18 letters and digits)")
    return raw


def check_name(raw: str) -> str:
    """The name of an sObject or field that may stand in SOQL. Raises PermanentError."""
    if not NAME.fullmatch(raw):
        raise PermanentError(f"'{scrub(raw, 60)}' is no name of a field or sObject", field=scrub(raw, 60))
    return raw


def classify(status: int, content: Any) -> HeadraceError:
    """The error class of a refused call, by its errorCode. `content` is JSON, or text where it was none."""
    first = content[0] if isinstance(content, list) and content else content
    found = first if isinstance(first, dict) else {}
    code = str(found.get("errorCode") or found.get("error") or found.get("statusCode") or "")
    message = scrub(str(found.get("message") or found.get("error_description") or ""), 300)
    said = f"Salesforce answered {status}{f' {code}' if code else ''}{f': {message}' if message else ''}"
    if (limit := refused_for_a_limit(code, message)) is not None:
        return limit
    if any(lock in f"{code} {message}" for lock in LOCKS):
        return TemporaryError(said, whole=False)
    if code in RETRY or code.startswith("TXN_SECURITY"):
        return TemporaryError(said)
    if status == 401:
        return PausedError(f"{said}; give the integration user the right to use the API, or renew its login")
    if code in OPERATOR or code.startswith("INSUFFICIENT_ACCESS"):
        return PausedError(f"{said}; an administrator of the org must grant this")
    if status == 410:
        return PausedError(f"{said}; this API version is retired: set `version` of the connection to a newer one")
    if status >= 500 or status in (408, 420, 429) or not code:
        return TemporaryError(said)
    if column := COLUMN.search(str(found.get("message"))):
        field = scrub(column[1], 100)
        return PermanentError(
            f"{said}; the field is missing or hidden from the user: mend the map or grant it (`headrace check`)", field=field
        )
    return PermanentError(f"{said}; compare the flow with the org (`headrace check`)")


class Rest:
    """REST of one connection. Calls may run side by side; each takes a thread while it waits.

    With `settings` its calls are shared out with the other processes of the installation (leases.py), and `close` ends that.
    """

    def __init__(self, connection: str, config: Salesforce, login: Login, settings: Settings | None = None) -> None:
        self.connection, self._version, self._login, self._settings = connection, config.version, login, settings
        self.page_size = config.page
        self.calls: Counter[str] = Counter()
        """Made so far, by purpose."""
        self.held: Callable[[], str] = str
        """Why people want nothing read from the org now, "" when it may be. What a person waits for is done all the same."""
        self.reshaped = asyncio.Event()
        """The org's fields are others than they were: an event names a new schema, a field was refused."""
        self._described: dict[str | None, tuple[float, Row]] = {}
        self._made: tuple[Token, Client] | None = None
        self._making = threading.Lock()

    async def close(self) -> None:
        """Give back what was leased and not used."""
        await self._login.close()

    @property
    def step(self) -> Step:
        """What must be done without now, to stay within the org's limits."""
        return self._login.budget.step

    def limit(self, name: str) -> Limit | None:
        """A limit of the org, as it last said."""
        return self._login.budget.limits.get(name)

    async def query(self, soql: str, purpose: str, *, deleted: bool = False) -> Answer:
        """All rows of a query; `deleted` adds those in the recycle bin. Raises the four classes."""
        body, second = await self._get(f"{'queryAll' if deleted else 'query'}?q={quote(soql)}", purpose)
        rows, total = list(_records(body)), int(body.get("totalSize") or 0)
        while not body.get("done", True):
            following = str(body.get("nextRecordsUrl") or "")
            if not following.startswith("/services/data/"):
                raise TemporaryError("Salesforce promised more rows and named no address for them")
            body, _ = await self._get(following, purpose)
            rows += _records(body)
        return Answer(rows, total, second)

    async def count(self, sobject: str, purpose: str, *, where: str = "", deleted: bool = False) -> Answer:
        """How many records there are (`total`), of those that `where` says (checked SOQL); live ones, or `deleted` ones too."""
        only = f" WHERE {where}" if where else ""
        return await self.query(f"SELECT COUNT() FROM {check_name(sobject)}{only}", purpose, deleted=deleted)  # noqa: S608

    async def by_ids(self, sobject: str, fields: Sequence[str], ids: Sequence[str], purpose: str) -> Answer:
        """Rows of these ids, deleted ones too, in any order; those that are not there are missing. At most 200 ids a call."""
        groups, wanted = split_fields(fields), [check_id(i) for i in ids]
        rows: dict[str, Row] = {}
        second: int | None = None
        for start in range(0, len(wanted), IDS_PER_CALL):
            part = ",".join(f"'{i}'" for i in wanted[start : start + IDS_PER_CALL])
            for group in groups:
                soql = f"SELECT {','.join(group)} FROM {check_name(sobject)} WHERE Id IN ({part})"  # noqa: S608
                answer = await self.query(soql, purpose, deleted=True)
                second = answer.second if second is None else min(second, answer.second)
                join(rows, answer.rows)
        return Answer(list(rows.values()), len(rows), second or 0)

    async def page(
        self, sobject: str, fields: Sequence[str], after: str, purpose: str, *, deleted: bool = False, where: str = ""
    ) -> Answer:
        """The next rows by Id, of those that `where` says (checked SOQL); fewer than `page_size` are the last ones."""
        first, *others = split_fields(fields)
        terms = [f"Id > '{check_id(after)}'"] if after else []
        only = f" WHERE {' AND '.join([*terms, *([where] if where else [])])}" if terms or where else ""
        soql = f"SELECT {','.join(first)} FROM {check_name(sobject)}{only} ORDER BY Id LIMIT {self.page_size}"  # noqa: S608
        return await self.whole(sobject, await self.query(soql, purpose, deleted=deleted), others, purpose)

    async def here(self) -> Here:
        """When and where, as the last login told."""
        token = await self._login.token()
        return Here(int(time.time() + token.skew), token.org, token.instance_url)

    async def whole(self, sobject: str, answer: Answer, others: Sequence[Sequence[str]], purpose: str) -> Answer:
        """An answer with the columns that did not fit beside its own."""
        if others and answer.rows:
            rows = {row["Id"]: row for row in answer.rows}
            more = await self.by_ids(sobject, [f for group in others for f in group], list(rows), purpose)
            join(rows, [row for row in more.rows if row["Id"] in rows])
            return Answer(list(rows.values()), answer.total, answer.second)
        return answer

    async def user(self) -> str:
        """Id of the user who is logged in; "" where the login did not say."""
        return (await self._login.token()).user

    async def describe(self, sobject: str | None = None, purpose: str = "describe", *, age: float = DESCRIBED_SECONDS) -> Row:
        """Describe of one sObject, or the list of all; one that was told before and not forgotten, if that is at most `age` seconds ago."""
        at, kept = self._described.get(sobject, (0.0, None))
        if kept is None or time.monotonic() - at > age:
            kept, _ = await self._get(f"sobjects/{check_name(sobject)}/describe" if sobject else "sobjects", purpose)
            self._described[sobject] = time.monotonic(), kept
        return kept

    def forget(self) -> None:
        """Fields may be others now: what was described is asked for anew, and who waits for `reshaped` is told."""
        self._described.clear()
        self.reshaped.set()

    async def publish(self, event: str, values: Row, purpose: str) -> str | None:
        """Publish a platform event; its EventUuid, where the reply names it."""
        path = f"sobjects/{check_name(event)}"
        body = await self.send(path, purpose, lambda reply: json_of(reply, path), method="POST", json=values)
        told = body.get("errors")
        named = told[0].get("message") if isinstance(told, list) and told and isinstance(told[0], dict) else None
        return named if isinstance(named, str) and UUID.fullmatch(named) else None

    async def limits(self) -> Row:
        """Limits of the org by name."""
        body, _ = await self._get("limits", "limits")
        self._login.budget.told(body)
        for name, limit in self._login.budget.limits.items():
            metrics.LIMIT_LEFT.labels(self.connection, name).set(limit.left)
        return body

    async def watch_limits(self) -> None:
        """Look at them for ever, for the forecast and those who watch it."""
        while True:
            await asyncio.sleep(FIRST_LOOK if not self.calls["limits"] else LOOK_SECONDS)
            with suppress(TemporaryError, PausedError, PermanentError):
                await self.limits()

    async def _get(self, path: str, purpose: str) -> tuple[Row, int]:
        """Body and the source's clock."""
        return await self.send(path, purpose, lambda reply: (json_of(reply, path), clock_of(reply)))

    async def send(
        self,
        path: str,
        purpose: str,
        read: Callable[[requests.Response], T],
        *,
        method: str = "GET",
        errors: Callable[[int, Any], HeadraceError] = classify,
        **how: Any,
    ) -> T:
        """One call, as what `read` makes of its reply in a thread; `how` is as `requests` takes it. A 401 gets one new token, once.

        Raises the four classes, of a refused call what `errors` makes of status and content.
        """

        def call(token: Token) -> tuple[T, str | None]:
            client = self._client(token)
            url = f"{token.instance_url}{path}" if path.startswith("/") else f"{client.base_url}{path}"
            try:
                reply = client._call_salesforce(method, url, timeout=TIMEOUT, allow_redirects=False, **how)
            except SalesforceError as error:
                if error.status == 401 and "not valid for use with the REST API" not in str(error.content):
                    raise _ExpiredError from None
                raise errors(error.status, error.content) from None
            except (requests.RequestException, OSError) as error:
                raise TemporaryError(f"Salesforce ({self.connection}) is not to be reached by REST ({type(error).__name__})") from None
            return read(reply), reply.headers.get("Sforce-Limit-Info")

        token = await self._login.token()
        try:
            return await self._admitted(token, purpose, call)
        except _ExpiredError:
            self._login.reject(token)
        token = await self._login.token()
        try:
            return await self._admitted(token, purpose, call)
        except _ExpiredError:
            self._login.reject(token)
            raise TemporaryError(f"Salesforce does not accept a token of {self.connection} that it has just given") from None

    async def _admitted(self, token: Token, purpose: str, call: Callable[[Token], tuple[T, str | None]]) -> T:
        """One call, if nobody paused the connection and the limits guard lets it through."""
        if purpose in CEILINGS and (why := self.held()):
            raise LimitReachedError(why, retry_after=HELD_SECONDS)
        async with self._login.slot(purpose, self._settings):
            return await self._guarded(token, purpose, call)

    async def _guarded(self, token: Token, purpose: str, call: Callable[[Token], tuple[T, str | None]]) -> T:
        budget, header, outcome = self._login.budget, None, "failed"
        try:
            budget.admit(purpose)
        except LimitReachedError:
            metrics.API_HELD.labels(self.connection, purpose).inc()
            raise
        self.calls[purpose] += 1
        try:
            found, header = await asyncio.to_thread(call, token)
            outcome = "ok"
        except (PermanentError, PausedError) as error:
            outcome = "refused"
            if isinstance(error, PermanentError) and error.field is not None:
                self.forget()
            raise
        except LimitReachedError as error:
            outcome = "limit"
            budget.refused(error)
            raise
        finally:
            budget.heard(header, ok=outcome in ("ok", "refused"))
            metrics.API_CALLS.labels(self.connection, purpose, outcome).inc()
            metrics.API_STEP.labels(self.connection).set(budget.step)
            metrics.API_SHARE.labels(self.connection).set(budget.of_share())
            if budget.left is not None:
                metrics.LIMIT_LEFT.labels(self.connection, DAILY_CALLS).set(budget.left)
                metrics.API_FORECAST.labels(self.connection).set((budget.forecast() or 0) / budget.most)
        return found

    def _client(self, token: Token) -> Client:
        with self._making:
            if self._made is None or self._made[0] is not token:
                client = Client(instance_url=token.instance_url, session_id=token.value, version=self._version)
                client.base_url = f"{token.instance_url}/services/data/v{self._version}/"  # simple-salesforce knows only https
                client.headers = {
                    "Authorization": f"Bearer {token.value}",
                    "Accept": "application/json",
                    "Sforce-Call-Options": "client=headrace",
                }
                self._made = (token, client)
            return self._made[1]


class _ExpiredError(Exception):
    """A 401 that a new token may cure."""


def json_of(reply: requests.Response, path: str = "") -> Row:
    """The JSON object of a reply; the list of all sObjects as one. Raises TemporaryError where it is none."""
    try:
        body = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        raise TemporaryError("Salesforce answered with something that is no JSON (maintenance page?)") from None
    if isinstance(body, list) and path == "sobjects":
        body = {"sobjects": body}
    if not isinstance(body, dict):
        raise TemporaryError(f"Salesforce answered with an odd body ({type(body).__name__})")
    return body


def clock_of(reply: requests.Response) -> int:
    """The source's clock when it answered, epoch s; ours where it says none."""
    second = second_of(reply.headers.get("Date"))
    return int(time.time()) if second is None else second


def _records(body: Row) -> list[Row]:
    records = body.get("records", [])
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise TemporaryError("Salesforce answered a query without a list of records")
    return records


def split_fields(fields: Sequence[str], room: int = URI_BYTES - IDS_PER_CALL * 27 - 600) -> list[list[str]]:
    """Checked fields in groups whose SELECT fits a URI beside 200 ids; each group has Id and SystemModstamp so that rows can be joined."""
    groups: list[list[str]] = [[]]
    size = 0
    always = [f for f in ("Id", "SystemModstamp") if f in fields]
    for name in dict.fromkeys(check_name(f) for f in fields):
        if size + len(name) + 3 > room:
            groups.append(list(always))
            size = sum(len(f) + 3 for f in always)
        if name not in groups[-1]:
            groups[-1].append(name)
            size += len(name) + 3
    for group in groups:
        if "Id" not in group:
            group.insert(0, "Id")
    return groups


def join(rows: dict[str, Row], more: Sequence[Row]) -> None:
    """Add columns read by a second call. A row that changed between the calls keeps the older stamp: a newer event then corrects it."""
    for row in more:
        known = rows.get(row["Id"])
        if known is None:
            rows[row["Id"]] = row
            continue
        stamps = [s for s in (known.get("SystemModstamp"), row.get("SystemModstamp")) if isinstance(s, str)]
        for name, value in row.items():
            if isinstance(value, dict) and isinstance(known.get(name), dict) and name != "attributes":
                known[name] = known[name] | value
            else:
                known[name] = value
        if stamps:
            known["SystemModstamp"] = min(stamps)
