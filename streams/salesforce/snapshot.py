"""All records of an sObject, or those of a condition, into the bulk lane: by REST pages in the order of their ids, or by a Bulk job.

The rows and how far the run is are one Kafka transaction, so a run that was killed goes on exactly behind the last rows that are in Kafka.
`began` is the position that was durable before a page was read, or a job was made: an event above it may be newer than the row, one at or
below it is in the row. A run that repairs (`by`) reads deleted records too, of what changed since a time; in any other nothing is said of
what was not read.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

import orjson
import structlog

from models.envelope import Reason
from models.errors import FatalError, PausedError, PermanentError, SettingsError, TemporaryError
from models.flow import Flow, Salesforce, is_event
from models.settings import Settings
from streams import metrics
from streams.salesforce.auth import Login
from streams.salesforce.brake import Brake
from streams.salesforce.bulk import LIMITS, Bulk
from streams.salesforce.conditions import all_of, changed_since, literal
from streams.salesforce.jobs import JobReader, Query, drop
from streams.salesforce.keeper import Keeper, Progress, StoppedError, others
from streams.salesforce.limits import parse_limits
from streams.salesforce.positions import Durable, Positions
from streams.salesforce.rest import Answer, Rest
from streams.salesforce.retry import ended, retried
from streams.salesforce.rights import same_user
from streams.salesforce.rows import row_outputs
from streams.salesforce.runs import Run, Way, ask, new_id, snapshot_runs
from streams.topics import Topics

log = structlog.get_logger()

BULK_FROM = 50_000
"""From so many records on a job is made. Below, 25 calls of REST are done before Salesforce has as much as begun a job, which takes half a
minute and more; above, a job costs a call for 50,000 rows where REST takes 25."""
SPARE = 0.1
"""Of the org's Bulk jobs of the day, and the space for their results, so much is left to others."""
ALWAYS = ("Id", "IsDeleted", "SystemModstamp")
"""In every row, whatever else was asked for."""
WHAT = "snapshot"


async def run_snapshot(
    settings: Settings,
    flow: Flow,
    source: str,
    fields: Sequence[str],
    *,
    run_id: str | None = None,
    where: str = "",
    only: Sequence[str] = (),
    via: Way | None = None,
    progress: Progress | None = None,
    stop: asyncio.Event | None = None,
    rest: Rest | None = None,
    repair_since: int | None = None,
    plan: str | None = None,
) -> Run:
    """Read `source` ("acme/Contact") into its bulk in-topic; the finished (stopped, or after `stop` unfinished) run.

    Without `run_id` an unfinished run of the same source, columns and condition that a command began is continued, else a new one begins.
    `where`: a checked SOQL condition; `only`: of the fields these; `via`: instead of by size. `repair_since`: only what changed since then
    (epoch s, 0 = all), deleted records too; the named run is that of a repair. `plan`: print of the plan that wants a run of `fields`.
    `progress` is called after each transaction. A Salesforce or Kafka that is away is waited for. Raises SettingsError (no such source or
    field; another process works on the run), PermanentError (Salesforce refuses the query), FatalError (another process took over).
    """
    connection, _, sobject = source.partition("/")
    config = flow.connections.get(connection)
    if not isinstance(config, Salesforce) or sobject not in flow.sobjects(connection):
        if is_event(sobject):
            raise SettingsError(f"{source} is a platform event: Salesforce keeps no records of it that could be read")
        raise SettingsError(
            f"no route reads {source}: a snapshot needs a source of the form connection/sObject that a route names in `from:`"
        )
    own = rest or Rest(connection, config, Login.of(settings, flow, connection, config), settings)
    begin = Run(run_id or "", source, where=where, only=",".join(only), via=via or "")
    if repair_since is not None:
        begin = replace(begin, by="repair", since=repair_since)
    begin = await retried(lambda: _alone(settings, begin, fields), WHAT)
    brake, positions = Brake(settings, flow, source), Positions(settings)
    keeper = Keeper(settings, begin, progress, lambda: brake.why)
    work = _Work(settings, own, config, positions, keeper, fields, shared=rest is not None, plan=plan)
    waiting, braking = asyncio.create_task((stop or asyncio.Event()).wait()), asyncio.create_task(brake.run())
    task = asyncio.create_task(work.run())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await ended(task)
        return keeper.at if task.cancelled() else task.result()
    finally:
        await ended(waiting, task, braking)
        await keeper.leave()
        await positions.stop()
        if rest is None:
            await own.close()


async def _alone(settings: Settings, begin: Run, fields: Sequence[str]) -> Run:
    """The run that is named, else the one that the same command began, else a new one.

    Raises SettingsError while another process works on it. (A subscriber and its repairs lead their channel alone: they need not look.)
    """
    runs = await snapshot_runs(settings)
    if begin.run:
        run = runs.get(begin.run, begin)
    else:
        prints = ("", _print(_columns(fields, begin.only)))
        mine = [run for run in runs.values() if run.open and run.asked == begin.asked and run.fields in prints]
        run = max(mine, key=lambda r: r.started, default=replace(begin, run=new_id()))
    if run.by == "command" and run.open:
        if await others(settings, run):
            raise SettingsError(
                f"process {run.owner} works on run {run.run} of {run.source}: `headrace status` shows how far it is, "
                f"`headrace snapshot {run.run} --stop` ends it"
            )
        if run.run in runs and not begin.run:  # whoever says the command again does not want it paused
            await ask(settings, run.run, "go")
    return run


def _columns(fields: Sequence[str], only: str) -> tuple[str, ...]:
    """What is selected. Raises SettingsError for a field that no route of the source needs."""
    if not only:
        return tuple(fields)
    named = [name for name in only.split(",") if name]
    known = {name.lower(): name for name in fields}
    if unknown := [name for name in named if name.lower() not in known]:
        raise SettingsError(f"--fields: no route reads {', '.join(unknown)}; there are: {', '.join(fields)}")
    return tuple(dict.fromkeys((*(name for name in ALWAYS if name in fields), *(known[name.lower()] for name in named))))


def _print(columns: Sequence[str]) -> str:
    return hashlib.sha256(",".join(sorted(columns)).encode()).hexdigest()[:12]


class _Work:
    """One run, read to its end."""

    def __init__(
        self,
        settings: Settings,
        rest: Rest,
        config: Salesforce,
        positions: Positions,
        keeper: Keeper,
        fields: Sequence[str],
        *,
        shared: bool,
        plan: str | None = None,
    ) -> None:
        self._shared = shared  # the subscriber's own login
        self._rest, self._config, self._positions, self._keeper, self._all = rest, config, positions, keeper, fields
        self._topics = Topics(settings.installation)
        self._connection, _, self._sobject = keeper.at.source.partition("/")
        repairs = keeper.at.by == "repair"
        self._reason, self._deleted = Reason.REPAIR if repairs else Reason.SNAPSHOT, repairs
        self._plan, self._quiet = plan, keeper.at.by == "fields"  # only what the rows change is to be told of
        self._bulk = Bulk(rest, self._reason.value)
        self._fields: tuple[str, ...] = ()
        self._where = ""

    async def run(self) -> Run:
        k = self._keeper
        await k.start()
        self._fields = _columns(self._all, k.at.only)
        self._where = all_of([k.at.where, changed_since(k.at.since) if k.at.since else ""])
        if not k.at.open:
            return k.at
        try:
            await k.gate()
            if not self._shared:
                await k.read(self._same_user)
            if k.at.fields != _print(self._fields):  # not begun, or the map asks for other columns now: read from the start
                await drop(self._bulk, self._keeper.at.job)
                await self._begin()
            if k.at.way == "rest" or not await self._jobs():
                await self._pages()
        except StoppedError:
            await drop(self._bulk, self._keeper.at.job)
            await k.keep(replace(k.at, state="stopped", note=""))
        except PermanentError as error:
            await drop(self._bulk, self._keeper.at.job)
            await k.keep(replace(k.at, state="failed", why=error.reason, note=""))
            raise
        return k.at

    async def _same_user(self) -> None:
        stored = await self._positions.stored(self._connection, self._config.channel_of(self._sobject))
        await same_user(self._rest, stored.user if stored else "")

    async def _begin(self) -> None:
        async def count() -> Answer | None:
            try:
                return await self._rest.count(self._sobject, self._reason.value, where=self._where, deleted=self._deleted)
            except TemporaryError as error:
                if "QUERY_TIMEOUT" in error.reason:  # so many that they cannot be counted
                    return None
                raise

        found, at = await self._keeper.read(count), self._keeper.at.anew()
        many = found is None or found.total >= BULK_FROM
        why = await self._short() if many and not at.via else ""
        way: Way = at.via or ("bulk" if many and not why else "rest")
        total, second = (found.total, found.second) if found else (0, int(time.time()))
        begun = replace(at, state="running", way=way, why=why, total=total, fields=_print(self._fields), started=second * 1000)
        await self._keeper.keep(begun)
        log.info("snapshot", run=at.run, source=at.source, way=way, total=total, why=why)

    async def _short(self) -> str:
        """Why the org has no Bulk job to spare today, others making them too; "" where it has one."""
        try:
            limits = parse_limits(await self._keeper.read(self._rest.limits))
        except PermanentError:  # then the first job tells
            return ""
        short = [
            f"{limits[n].left:,} of {limits[n].most:,} {n}" for n in LIMITS if n in limits and limits[n].left <= SPARE * limits[n].most
        ]
        return f"read by REST: the org has {' and '.join(short)} left today" if short else ""

    async def _pages(self) -> None:
        """REST: a page is read while the one before goes into Kafka."""
        k = self._keeper
        coming = asyncio.create_task(self._read(k.at.last))
        try:
            while k.at.open:
                durable, answer = await coming
                rows, done = answer.rows, len(answer.rows) < self._rest.page_size
                last = str(rows[-1]["Id"]) if rows else k.at.last
                if rows and not done and last == k.at.last:
                    raise FatalError(f"Salesforce gave the same page of {k.at.source} twice: the run {k.at.run} does not move")
                if not done:
                    coming = asyncio.create_task(self._read(last))
                await k.gate()
                pairs = [(row["Id"].encode(), orjson.dumps(row)) for row in rows]
                await self._commit(replace(k.at, last=last, rows=k.at.rows + len(rows)), pairs, durable, done)
        finally:
            await ended(coming)

    async def _jobs(self) -> bool:
        """Bulk; False when REST must do it."""
        query = Query(self._sobject, self._fields, self._where, self._deleted)
        return await JobReader(self._rest, self._bulk, self._keeper, query, self._durable, self._commit).run()

    async def _durable(self) -> Durable:
        return await self._positions.durable(self._connection, self._config, self._sobject)

    async def _read(self, last: str) -> tuple[Durable, Answer]:
        async def read() -> tuple[Durable, Answer]:
            durable = await self._durable()
            reason = self._reason.value
            answer = await self._rest.page(self._sobject, self._fields, last, reason, deleted=self._deleted, where=self._where)
            if not all(isinstance(row.get("Id"), str) for row in answer.rows):
                raise TemporaryError(f"Salesforce answered with rows of {self._sobject} that have no Id")
            return durable, answer

        return await self._keeper.read(read)

    async def _commit(self, at: Run, rows: Sequence[tuple[bytes, bytes]], durable: Durable, done: bool) -> None:
        """Rows (key, JSON) that were read at `durable`, and where the run is after them."""
        before = self._keeper.at.rows
        at = replace(at, state="done", note="") if done else at
        reason, run = (Reason.POLL, None) if self._quiet else (self._reason, at.run)
        outputs = row_outputs(self._topics, at.source, rows, durable, reason=reason, run=run, bulk=True, plan=self._plan)
        await self._keeper.keep(at, outputs)
        metrics.SNAPSHOT_ROWS.labels(self._connection, self._sobject).inc(at.rows - before)
        metrics.RECEIVED.labels(self._connection, self._sobject, self._reason.value).inc(at.rows - before)
        if done:
            await drop(self._bulk, at.job)
            await self._check()
            log.info("snapshot done", run=at.run, source=at.source, rows=at.rows, counted=self._keeper.at.counted)

    async def _check(self) -> None:
        """Compare with COUNT() as it is now, and where it differs with what was made, deleted or changed meanwhile; nobody waits for it."""
        at = self._keeper.at
        if self._deleted or (counted := await self._now(self._where)) is None:
            return
        changed = -1
        if counted != at.rows:
            begun = literal(at.started / 1000 - 5)
            made = await self._now(f"{'SystemModstamp' if at.where else 'CreatedDate'} >= {begun}", deleted=True)
            gone = await self._now(f"IsDeleted = true AND SystemModstamp >= {begun}", deleted=True)
            changed = -1 if made is None or gone is None else made + gone
        await self._keeper.keep(replace(at, counted=counted, changed=changed))

    async def _now(self, where: str, *, deleted: bool = False) -> int | None:
        """COUNT(); None where Salesforce does not say."""
        try:
            return (await self._rest.count(self._sobject, self._reason.value, where=where, deleted=deleted)).total
        except (TemporaryError, PermanentError, PausedError) as error:
            log.warning("not counted", run=self._keeper.at.run, source=self._keeper.at.source, reason=error.reason)
            return None
