"""All live records of an sObject, read by REST pages in the order of their ids, into the bulk lane.

The rows of a page and how far the run is are one Kafka transaction, so a run that was killed goes on exactly behind the last page that is
in Kafka. `began` is the position that was durable before the page was read: an event above it may be newer than the row, one at or below it
is in the row. A run that repairs (`by`) reads deleted records too, of what changed since a time; in any other there is nothing to undo.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import orjson
import structlog

from models.envelope import Reason
from models.errors import FatalError, PermanentError, SettingsError, TemporaryError
from models.flow import Flow, Salesforce, is_event
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Output
from streams.publish import TransactionalPublisher, read_all
from streams.salesforce.auth import Login
from streams.salesforce.positions import Durable, Positions
from streams.salesforce.rest import PAGE, Answer, Rest, Row
from streams.salesforce.retry import retried
from streams.salesforce.rows import row_output
from streams.salesforce.tokens import Vault
from streams.topics import Topics

log = structlog.get_logger()

Progress = Callable[["Run"], None]


@dataclass(frozen=True, slots=True)
class Run:
    """Value of a snapshot's record in the `runs` topic; its key is `run`.

    source    "<connection>/<sObject>"
    state     wanted (not begun) | running | done | failed; `why` says why it failed
    by        command | first | repair: who asked for it; since: epoch s, of a repair: only what changed since then
    last      id of the last record read, "" before the first; rows: how many are in Kafka; total: how many there were at the begin
    fields    fingerprint of the columns read
    """

    run: str
    source: str
    state: Literal["wanted", "running", "done", "failed"] = "wanted"
    by: Literal["command", "first", "repair"] = "command"
    since: int = 0
    last: str = ""
    rows: int = 0
    total: int = 0
    fields: str = ""
    started: int = 0
    at: int = 0
    why: str = ""

    def output(self, topics: Topics) -> Output:
        """The record that stores the run."""
        value = {"kind": "snapshot"} | asdict(replace(self, at=int(time.time() * 1000)))
        return Output(topics.runs, self.run.encode(), orjson.dumps(value, option=orjson.OPT_SORT_KEYS))

    @property
    def open(self) -> bool:
        """Still to be worked on."""
        return self.state in ("wanted", "running")


def parse_run(key: bytes | None, value: bytes | None) -> Run | None:
    """A snapshot's run; None for a deleted one and for runs of another kind. Raises FatalError."""
    if value is None:
        return None
    try:
        found: dict[str, Any] = orjson.loads(value)
        if found.pop("kind", None) != "snapshot":
            return None
        return Run(**{name: found[name] for name in Run.__dataclass_fields__ if name in found})
    except (ValueError, TypeError, AttributeError) as error:
        raise FatalError(f"run {key!r} in the runs topic is damaged ({error}); delete it and start the snapshot anew") from None


async def snapshot_runs(settings: Settings) -> dict[str, Run]:
    """All snapshot runs by run id. Raises TemporaryError, FatalError."""
    found: dict[str, Run] = {}
    for record in await read_all(settings, Topics(settings.installation).runs):
        if (run := parse_run(record.key, record.value)) is not None:
            found[run.run] = run
    return found


async def run_snapshot(
    settings: Settings,
    flow: Flow,
    source: str,
    fields: Sequence[str],
    *,
    run_id: str | None = None,
    progress: Progress | None = None,
    stop: asyncio.Event | None = None,
    rest: Rest | None = None,
    repair_since: int | None = None,
) -> Run:
    """Read `source` ("acme/Contact") into its bulk in-topic; the finished (or, after `stop`, unfinished) run.

    Without `run_id` an unfinished run of the same source and columns that a command began is continued, else a new one begins.
    `repair_since`: only what changed since then (epoch s, 0 = all), deleted records too; the named run is that of a repair.
    `progress` is called after each page. A Salesforce or Kafka that is away is waited for. Raises SettingsError (no such source),
    PermanentError (a field that does not exist), FatalError (another process works on this run).
    """
    connection, _, sobject = source.partition("/")
    config = flow.connections.get(connection)
    if not isinstance(config, Salesforce) or sobject not in flow.sobjects(connection):
        if is_event(sobject):
            raise SettingsError(f"{source} is a platform event: Salesforce keeps no records of it that could be read")
        raise SettingsError(
            f"no route reads {source}: a snapshot needs a source of the form connection/sObject that a route names in `from:`"
        )
    topics, positions = Topics(settings.installation), Positions(settings)
    own = rest or Rest(connection, config, Login(connection, config, flow.folder, vault=Vault.of(settings)))
    print_of = hashlib.sha256(",".join(sorted(fields)).encode()).hexdigest()[:12]
    begin = Run(run=run_id or "", source=source)
    if repair_since is not None:
        begin = replace(begin, by="repair", since=repair_since)
    work = _Work(settings, topics, own, config, positions, begin, fields, progress)
    waiting = asyncio.create_task((stop or asyncio.Event()).wait())
    task = asyncio.create_task(work.run(print_of))
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return work.at
        return task.result()
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait([task])
        await positions.stop()


class _Work:
    """One run, page by page."""

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        rest: Rest,
        config: Salesforce,
        positions: Positions,
        begin: Run,
        fields: Sequence[str],
        progress: Progress | None,
    ) -> None:
        self._settings, self._topics, self._rest, self._config, self._positions = settings, topics, rest, config, positions
        self._connection, _, self._sobject = begin.source.partition("/")
        self._fields, self._progress = tuple(fields), progress
        self._reason = Reason.REPAIR if begin.by == "repair" else Reason.SNAPSHOT
        self.at = begin

    async def run(self, print_of: str) -> Run:
        source = self.at.source
        asked: str | None = self.at.run or None
        run_id = asked or await retried(lambda: self._unfinished(source, print_of), "snapshot") or f"snapshot-{uuid.uuid4().hex[:12]}"
        publisher = TransactionalPublisher(self._settings, f"{self._settings.installation}.snapshot.{run_id}")
        await retried(publisher.start, "snapshot")
        try:
            known = (await retried(lambda: snapshot_runs(self._settings), "snapshot")).get(run_id)
            self.at = known or replace(self.at, run=run_id)
            if self.at.source != source:
                raise SettingsError(f"run {run_id} is one of {self.at.source}, not of {source}")
            if self.at.state == "running" and self.at.fields != print_of:  # the map asks for other columns now: read from the start
                self.at = replace(self.at, state="wanted", last="", rows=0)
            if self.at.open:
                await self._pages(publisher, print_of)
        finally:
            await publisher.stop()
        return self.at

    async def _unfinished(self, source: str, print_of: str) -> str | None:
        runs = (await snapshot_runs(self._settings)).values()
        mine = [r for r in runs if r.open and r.source == source and r.by == "command" and r.fields in ("", print_of)]
        return max(mine, key=lambda r: r.started).run if mine else None

    async def _pages(self, publisher: TransactionalPublisher, print_of: str) -> None:
        if self.at.state == "wanted":
            total = 0 if self.at.since else await retried(lambda: self._rest.count(self._sobject, self._reason.value), "snapshot")
            at = replace(self.at, state="running", total=total, fields=print_of, started=int(time.time() * 1000))
            await self._commit(publisher, at, [])
        log.info("snapshot", run=self.at.run, source=self.at.source, rows=self.at.rows, total=self.at.total)
        while self.at.open:
            try:
                durable, answer = await retried(self._read, "snapshot")
            except PermanentError as error:
                await self._commit(publisher, replace(self.at, state="failed", why=error.reason), [])
                raise
            rows, done = answer.rows, len(answer.rows) < PAGE
            if rows and not (done or str(rows[-1]["Id"]) != self.at.last):
                raise FatalError(f"Salesforce gave the same page of {self.at.source} twice: the run {self.at.run} does not move")
            last = str(rows[-1]["Id"]) if rows else self.at.last
            at = replace(self.at, last=last, rows=self.at.rows + len(rows), state="done" if done else "running")
            await self._commit(publisher, at, self._rows(answer.rows, durable))
            metrics.SNAPSHOT_ROWS.labels(self._connection, self._sobject).inc(len(rows))
            metrics.RECEIVED.labels(self._connection, self._sobject, self._reason.value).inc(len(rows))
        log.info("snapshot done", run=self.at.run, source=self.at.source, rows=self.at.rows)

    async def _read(self) -> tuple[Durable, Answer]:
        durable = await self._positions.durable(self._connection, self._config, self._sobject)
        last, since, deleted = self.at.last, self.at.since, self.at.by == "repair"
        answer = await self._rest.page(self._sobject, self._fields, last, self._reason.value, deleted=deleted, since=since, limit=PAGE)
        if not all(isinstance(row.get("Id"), str) for row in answer.rows):
            raise TemporaryError(f"Salesforce answered with rows of {self._sobject} that have no Id")
        return durable, answer

    async def _commit(self, publisher: TransactionalPublisher, at: Run, rows: list[Output]) -> None:
        outputs = [*rows, at.output(self._topics)]
        await retried(lambda: publisher.send(outputs), "snapshot")
        self.at = at
        if self._progress is not None:
            self._progress(at)

    def _rows(self, rows: Sequence[Row], durable: Durable) -> list[Output]:
        at = self.at
        return [row_output(self._topics, at.source, row, durable, reason=self._reason, run=at.run, bulk=True) for row in rows]


def first_runs(sources: Mapping[str, str]) -> list[Run]:
    """Runs of a first start, to be stored with its position: source by run id."""
    return [Run(run=run, source=source, by="first") for run, source in sources.items()]
