"""Polling: what changed in an sObject, asked for again and again, into the bulk lane. For what no event tells of.

Rows and the cursor behind them are one Kafka transaction, so nothing is left out by a kill -9. A transaction of Salesforce may become
visible minutes after its stamps, so each round reads an overlap again, and hands on only what it has not handed on as it is. All times
are the org's: its stamps and the Date of its answers. In another org stamps mean something else: the epoch rises, and all is read anew.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from models.change_event import FIRST_EPOCH
from models.envelope import Reason
from models.errors import PausedError, PermanentError, TemporaryError
from models.record_id import id18
from models.scrub import scrub
from streams import metrics
from streams.engine.stage import Output
from streams.publish import TransactionalPublisher
from streams.salesforce.changed import changed, deleted, in_bin, print_of, second_of_stamp
from streams.salesforce.context import Context
from streams.salesforce.cursors import Cursor, read_cursors
from streams.salesforce.incidents import Cause, Incident
from streams.salesforce.limits import LimitReachedError, steady
from streams.salesforce.positions import Durable, Position, Positions, output
from streams.salesforce.rest import Here, Row
from streams.salesforce.retry import Backoff, retried
from streams.salesforce.rows import row_output
from streams.salesforce.runs import Run
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics

log = structlog.get_logger()

PURPOSE = "poll"
OVERLAP = 300
"""Seconds before the cursor that are read again: stamps are set before a transaction commits, and it may take long."""
BIN_DAYS = 15
"""So long a deleted record stays in the recycle bin: a cursor older than that begins anew with a full reading."""
KNOWN_DAYS = 29
"""So far back the org tells which records were deleted (a month), less a margin."""
DELETED_SECONDS = 3600
"""So often it is asked: deleted records are rows like others until they are purged, and then only this question shows them."""
IDLE_SECONDS = 3600
"""A cursor that moves on beside a quiet source is stored so often."""


HELD_SECONDS = 1.0
Told = Callable[[str, TemporaryError | PausedError | PermanentError | None], None]
"""Hears of each round of a source: what it ended in, None where all is well."""


@dataclass(slots=True)
class Shared:
    """What all polled sources of one leader have in common."""

    context: Context
    publisher: TransactionalPublisher
    positions: Positions
    topics: Topics
    opened: Callable[[], None]
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)


class Polls:
    """The polling of some sources of one connection, by whoever leads it.

    name       for the producer: one leader at a time has it, a later one fences it
    every      seconds between two rounds, by source
    since      epoch s at which a source begins that has no later cursor; without it, it begins with a full reading
    opened     called when there is a new incident to repair
    incidents  by source: one is closed, and taken out, by the round that begins after `end()`; with it the polling of the source is over
    last       what is stored with the end of the last of them
    """

    def __init__(
        self,
        context: Context,
        name: str,
        every: Mapping[str, float],
        *,
        since: Mapping[str, int] | None = None,
        incidents: dict[str, Incident] | None = None,
        last: Callable[[], list[Output]] = list,
        told: Told | None = None,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        settings = context.settings
        publisher = TransactionalPublisher(settings, f"{settings.installation}.poll.{name}")
        self._c = Shared(context, publisher, Positions(settings), Topics(settings.installation), opened)
        self._every, self._since = every, since or {}
        self._incidents = {} if incidents is None else incidents
        self._last = last
        self._told = told or (lambda source, error: None)  # noqa: ARG005
        self._pause = context.backoff.pause
        self._polls: list[Poll] = []
        self._ending = asyncio.Event()

    @property
    def rows(self) -> int:
        """Handed on so far."""
        return sum(poll.rows for poll in self._polls)

    def end(self) -> None:
        """One more round of each source, begun now."""
        self._ending.set()

    def go_on(self) -> None:
        """Not so: rounds that were to be the last are none."""
        if self._ending.is_set():
            self._ending = asyncio.Event()

    async def run(self) -> None:
        """For ever, or until the end that `end()` asks for. Raises FatalError."""
        settings = self._c.context.settings
        await retried(self._c.publisher.start, PURPOSE)  # fences first
        try:
            stored = await retried(lambda: read_cursors(settings), PURPOSE)  # then reads
            self._polls = [Poll(self._c, source, stored.get(source), self._since.get(source)) for source in self._every]
            async with asyncio.TaskGroup() as group:
                for poll in self._polls:
                    group.create_task(self._again(poll))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._c.publisher.stop()
            await self._c.positions.stop()

    async def _again(self, poll: "Poll") -> None:
        backoff = Backoff(pause=self._pause)
        while True:
            if why := self._c.context.held():
                self._told(poll.source, LimitReachedError(why))
                await asyncio.sleep(HELD_SECONDS)
                continue
            ending = self._ending
            last = ending.is_set()
            try:
                await poll.round(whole=last)
            except (TemporaryError, PausedError, PermanentError) as error:
                self._told(poll.source, error)
                seconds = self._pause if isinstance(error, PermanentError) else backoff.after(error)
                log.warning(
                    "waiting",
                    alert=isinstance(error, PermanentError),
                    what=PURPOSE,
                    source=poll.source,
                    seconds=round(seconds, 1),
                    reason=scrub(error.reason),
                )
                await asyncio.sleep(seconds)
                continue
            self._told(poll.source, None)
            backoff.reset()
            if last and ending is self._ending:
                incident = self._incidents.pop(poll.source)
                await poll.close(incident, [] if self._incidents else self._last())
                return
            waits = [asyncio.create_task(self._ending.wait()), asyncio.create_task(asyncio.sleep(self._every[poll.source]))]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


@dataclass(slots=True)
class Poll:
    """One source. `_seen`: second and fingerprint of what was handed on within the overlap, by id."""

    c: Shared
    source: str
    cursor: Cursor | None
    since: int | None
    rows: int = 0
    calls: int = 0
    _seen: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _stored: float = -IDLE_SECONDS

    async def round(self, *, whole: bool = False) -> None:
        """Everything that changed since the last one. `whole`: ask for purged records too, whatever the time. Raises the four classes."""
        at = await self._begin()
        if at.full:
            at = await self._full(at)
        now, after = 0, None
        while True:
            durable = await self._durable()
            since = at.second - OVERLAP
            answer = await changed(self.c.context.rest, self._sobject, self.c.context.fields[self.source], since, after, PURPOSE)
            self.calls += 1
            if not now and (back := at.turned_back(answer.second, _ms())):
                log.warning("the org's clock was turned back", source=self.source, seconds=back)
                at = await self._store(replace(at, second=at.second - back, now=answer.second, at=_ms()), [])
                continue
            now = now or answer.second
            stamps = [_stamp(row) for row in answer.rows]
            seconds = [second for _, second in stamps]
            newest = min(max(seconds, default=0), now)  # a stamp ahead of the clock moves nothing past it
            at = replace(at, second=max(at.second, newest), now=answer.second, at=_ms())
            await self._hand_on(at, answer.rows, seconds, durable)
            if len(answer.rows) < self.c.context.rest.page_size or seconds[-1] > now:
                break
            after = (stamps[-1][0], str(answer.rows[-1]["Id"]))
        if whole or now - at.deleted >= DELETED_SECONDS:
            at = await self._deleted(at, now)
        at = replace(at, second=max(at.second, now - OVERLAP))  # nothing older can come any more
        self.cursor = at
        if time.monotonic() >= self._stored + IDLE_SECONDS:
            await self._store(at, [])
        self._forget()
        metrics.LAST_POLL.labels(*self.source.split("/")).set(time.time())

    async def close(self, incident: Incident, others: Sequence[Output]) -> None:
        """The last round began after events came again: the incident is over."""
        cursor = self.cursor or Cursor(self.source, 0)
        proof = f"polled through second {cursor.second} of the org's stamps, after events were delivered again"
        await self._store(cursor, [incident.ended("closed", proof, rows=self.rows, calls=self.calls).output(self.c.topics), *others])
        metrics.INCIDENTS.labels(*self.source.split("/"), incident.cause, "closed").inc()
        log.info("incident", id=incident.id, source=self.source, cause=incident.cause, state="closed", rows=self.rows, why=proof)

    @property
    def _sobject(self) -> str:
        return self.source.partition("/")[2]

    async def _durable(self) -> Durable:
        return await self.c.positions.durable(self.source.partition("/")[0], self.c.context.config, self._sobject)

    async def _begin(self) -> Cursor:
        """Where this round begins: full at the first time, and where deleted records may have left the recycle bin since the last."""
        if self.cursor is not None and self.cursor.full:
            return self.cursor
        here = await self.c.context.rest.here()
        if self.cursor is not None and self.cursor.org not in ("", here.org):
            async with self.c.moving:  # one source after another: the epoch rises once
                self.cursor = await self._moved(here)
        now, org = here.second, here.org
        known = self.cursor if self.cursor and self.cursor.org == org else None
        second = max(known.second if known else 0, self.since or 0)
        if second >= now - BIN_DAYS * 86_400:
            return replace(known or Cursor(self.source, second, deleted=second, org=org), second=second)
        run = Run(f"poll-{self.source.replace('/', '-')}-{now}", self.source, by="first" if self.cursor is None else "repair")
        begun = max(self.cursor.deleted if self.cursor else now, now - KNOWN_DAYS * 86_400)
        log.info("full reading first", source=self.source, run=run.run, cursor=second)
        self.cursor = await self._store(Cursor(self.source, now, run.run, begun, org, now, _ms()), [run.output(self.c.topics)])
        return self.cursor

    async def _moved(self, here: Here) -> Cursor:
        """To another org: all is read again, by an incident's repair, in an epoch that wins over whatever its stamps say."""
        c, context, epoch = self.c, self.c.context, FIRST_EPOCH
        connection, channel, outputs = context.connection, context.config.channel_of(self._sobject), []
        position = await c.positions.stored(connection, channel)
        if position is not None and position.org == here.org:
            epoch = position.epoch
        elif channel in context.flow.channels(connection):
            raise TemporaryError(f"{self.source} belongs to another org now: it is polled once the subscription of {channel} knows that")
        else:
            position = position or Position(FIRST_EPOCH, None, None, "", "", here.second * 1000, "new")
            position = replace(position.risen(None, None), org=here.org, instance=here.instance)
            epoch, outputs = position.epoch, [output(c.topics, connection, channel, position)]
        cause: Cause = "org changed"
        if self._sobject in context.config.poll:  # else the subscription says so
            name, why = f"{connection}.poll@{epoch}/{self.source}/{cause}", f"the org is now another one, at {here.instance}"
            incident = Incident(name, self.source, cause, why, opened=int(time.time() * 1000))
            outputs.append(incident.output(c.topics))
            metrics.INCIDENTS.labels(*self.source.split("/"), cause, incident.state).inc()
            log.error("incident", alert=True, id=name, source=self.source, cause=cause, state=incident.state, why=why)
        self._seen.clear()
        cursor = Cursor(self.source, here.second, deleted=here.second, org=here.org, now=here.second, at=_ms())
        cursor = await self._store(cursor, outputs)
        c.opened()
        return cursor

    async def _full(self, at: Cursor) -> Cursor:
        """Every record, by a snapshot's run; what changes meanwhile is read by the first round after it."""
        c = self.c.context
        run = await run_snapshot(c.settings, c.flow, self.source, c.fields[self.source], run_id=at.full, rest=c.rest)
        self.cursor = await self._store(replace(at, full="", second=0 if run.state == "failed" else at.second), [])
        if run.state == "failed":
            raise PermanentError(f"the full reading of {self.source} failed, and begins anew: {run.why}")
        return self.cursor

    async def _hand_on(self, at: Cursor, rows: Sequence[Row], seconds: Sequence[int], durable: Durable) -> None:
        """What was not handed on as it is, with the cursor behind it."""
        fresh = {str(r["Id"]): (second, print_of(r), r) for r, second in zip(rows, seconds, strict=True)}
        fresh = {id: found for id, found in fresh.items() if self._seen.get(id) != found[:2]}
        if not fresh:
            return
        outputs = [self._output(row, durable) for _, _, row in fresh.values()]
        self.cursor = await self._store(at, outputs)
        self._seen |= {id: found[:2] for id, found in fresh.items()}
        self._count(len(fresh))
        self._forget()

    async def _deleted(self, at: Cursor, now: int) -> Cursor:
        """Records that were deleted since the last such question and are no rows any more: purged from the recycle bin."""
        start = max(at.deleted - OVERLAP, now - KNOWN_DAYS * 86_400)
        try:
            ids, covered = await deleted(self.c.context.rest, self._sobject, start, now, PURPOSE)
        except PermanentError as error:
            log.warning("deleted records are not told", source=self.source, reason=scrub(error.reason))
            return replace(at, deleted=now)
        at = replace(at, deleted=max(at.deleted, covered))
        self.calls += 1 + bool(ids)
        missing = {id18(id) for id in ids} - (await in_bin(self.c.context.rest, self._sobject, start, PURPOSE) if ids else set())
        if not missing:
            return at
        durable = await self._durable()
        answer = await self.c.context.rest.by_ids(self._sobject, ["Id"], sorted(missing), PURPOSE)  # it may have been undeleted
        missing -= {id18(str(row["Id"])) for row in answer.rows}
        outputs = [self._output({"attributes": {"type": self._sobject}, "Id": id}, durable, gone=answer.second) for id in missing]
        if outputs:
            at = await self._store(at, outputs)
            self._count(len(outputs))
        return at

    def _output(self, row: Row, durable: Durable, gone: int | None = None) -> Output:
        return row_output(self.c.topics, self.source, row, durable, reason=Reason.POLL, run=None, bulk=True, gone=gone)

    async def _store(self, cursor: Cursor, outputs: Sequence[Output]) -> Cursor:
        await retried(lambda: self.c.publisher.send([*outputs, cursor.output(self.c.topics)]), PURPOSE)
        self._stored = time.monotonic()
        return cursor

    def _count(self, rows: int) -> None:
        self.rows += rows
        metrics.RECEIVED.labels(*self.source.split("/"), Reason.POLL.value).inc(rows)

    def _forget(self) -> None:
        if self.cursor is not None:
            oldest = self.cursor.second - OVERLAP
            self._seen = {id: known for id, known in self._seen.items() if known[0] >= oldest}


def _ms() -> int:
    return int(steady() * 1000)


def _stamp(row: Row) -> tuple[str, int]:
    """A row's stamp as read, and its second. Raises TemporaryError."""
    raw = row.get("SystemModstamp")
    second = second_of_stamp(raw)
    if second is None or not isinstance(row.get("Id"), str):
        raise TemporaryError("Salesforce answered a poll with a row that has no Id or no SystemModstamp")
    return str(raw), second
