"""Reconciliation of one source: what Salesforce holds against the table `records`, and the rows that mend what differs.

It reads the table's changelog and Salesforce, and sends rows the way of all rows; it calls no target and writes no state. What is on its
way is no difference: only what differs in every round, after the workers had their time, is one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import uuid4

import structlog

from agents.rules.merge import RecordState
from agents.rules.plan import Plan
from agents.rules.reconcile import (
    WIDE,
    Compared,
    Known,
    Range,
    changed_since,
    difference,
    known,
    narrower,
    range_agrees,
    ranges,
    second_of,
    suspects,
)
from agents.tables import RECORDS, records_key
from models.errors import PermanentError, TemporaryError
from models.flow import Flow, Salesforce
from models.record_id import id18
from models.settings import Settings
from streams import metrics
from streams.consume import read_batches
from streams.engine.stage import Output
from streams.lag import LagWatch
from streams.publish import TransactionalPublisher
from streams.salesforce.auth import Login
from streams.salesforce.conditions import literal
from streams.salesforce.incidents import Incident
from streams.salesforce.limits import LimitReachedError
from streams.salesforce.messages import BUFFER_SECONDS
from streams.salesforce.positions import Durable, Positions
from streams.salesforce.rest import IDS_PER_CALL, Answer, Rest, Row, check_name
from streams.salesforce.retry import Backoff
from streams.salesforce.rights import UNPROVEN, sees_all
from streams.salesforce.rows import read_again
from streams.topics import Topics

log = structlog.get_logger()
T = TypeVar("T")
Show = Callable[[int, int | None], None]
PURPOSE = "verify"
ROUNDS = 3
"""So often must a record differ to be a difference."""
PAUSE = 2.0
"""Seconds an event may be on its way from Salesforce to Kafka."""
WORKERS_SECONDS = 30.0
"""So long the workers are waited for."""
TRIES = 5
MOST = 20_000
"""Whole rows are kept in memory until they are sent; where more differ, a snapshot is the remedy."""

States = dict[str, RecordState]
Seen = Callable[[str, RecordState], None]


@dataclass(slots=True)
class Found(Compared):
    """Of one source. `through`: Salesforce's clock (epoch s) before anything was read; thin, whole: rows read; calls: of the REST API."""

    source: str
    run: str
    through: int = 0
    thin: int = 0
    whole: int = 0
    calls: int = 0


class SourceCheck:
    """One run over one source of the flow, which must be a Salesforce's. Close it."""

    def __init__(
        self,
        settings: Settings,
        flow: Flow,
        source: str,
        plan: Plan,
        children: Callable[[Sequence[str]], list[Output]],
        rest: Rest | None = None,
    ) -> None:
        self._children = children
        connection, _, self._sobject = source.partition("/")
        config = flow.connections[connection]
        if not isinstance(config, Salesforce):
            raise PermanentError(f"{source} is no source of Salesforce")
        self._settings, self._flow, self._plan, self._config, self._connection = settings, flow, plan, config, connection
        self._topics = Topics(settings.installation)
        self._rest = rest or Rest(connection, config, Login.of(settings, flow, connection, config), settings)
        self._own = rest is None
        self._before = self._rest.calls[PURPOSE]
        self._positions = Positions(settings)
        self.found = Found(source, f"verify-{uuid4().hex[:12]}")
        self._rows: dict[str, Row] = {}
        self._read = Durable("", 0, -1), 0

    async def close(self) -> None:
        """Close its clients."""
        if self._own:
            await self._rest.close()
        await self._positions.stop()

    async def run(self, *, since: int, show: Show, seen: Seen) -> Found:
        """Compare everything. With `since` (epoch s), when all was equal, only the stamps of what changed since then are read, and of the
        rest COUNT and MAX, to find what was purged; `seen` gets every state once or more.

        Raises PermanentError, TemporaryError (Salesforce or Kafka away, or the org's calls run short), FatalError.
        """
        found = self.found
        held: dict[str, Known] = {}
        await self._clock()
        if not await patiently(lambda: sees_all(self._rest, self._sobject, PURPOSE)):
            raise PermanentError(f"{found.source} cannot be verified: {UNPROVEN}")
        if behind := await workers_done(self._settings, self._flow, only=lanes(self._settings, found.source)):
            raise TemporaryError(f"the workers are {behind:,} records of {found.source} behind: verify when they are through")

        def keep(id: str, state: RecordState) -> None:
            held[id] = known(state)
            seen(id, state)

        await read_states(self._settings, found.source, keep)
        doubtful: set[str] = set()
        done = 0
        if since:
            doubtful = changed_since(held, await self._stamped(since - BUFFER_SECONDS))
        for wide in ranges(sorted(held), WIDE):
            for part in () if since and await self._agrees(wide, held) else narrower(wide):
                doubtful |= suspects(part, held, await self._stamps(part))
            show(done := done + len(wide.ids), len(held))
        found.compared = len(held.keys() | doubtful)
        await self._settle(doubtful)
        found.calls = self._rest.calls[PURPOSE] - self._before
        return found

    async def repair(self) -> None:
        """Send the whole rows of what differs, each 200 in one transaction with the incident that names them."""
        found = self.found
        if not found.differences:
            return
        durable, second = self._read
        publisher = TransactionalPublisher(self._settings, f"{self._settings.installation}.{found.run}")
        await patiently(publisher.start)
        try:
            for start in range(0, len(found.differences), IDS_PER_CALL):
                some = [one.id for one in found.differences[start : start + IDS_PER_CALL]]
                outputs = read_again(self._topics, found.source, some, self._rows, durable, second, run=found.run)
                incident = self._incident(some, start, durable)
                await patiently(partial(publisher.send, [*outputs, *self._children(some), incident.output(self._topics)]))
                counted(incident)
                found.repaired += len(some)
        finally:
            await publisher.stop()

    def _incident(self, ids: Sequence[str], start: int, durable: Durable) -> Incident:
        now, found = int(time.time() * 1000), self.found
        detail = f"{len(ids)} records differed from the org without any event that told of it"
        opened = Incident(f"{found.run}-{start // IDS_PER_CALL}", found.source, "verify", detail, tuple(ids), opened=now)
        proof = f"read at position {durable.position} of epoch {durable.epoch}"
        there = sum(id in self._rows for id in ids)
        return opened.ended("closed", proof, rows=there, gone=len(ids) - there, calls=found.calls if start == 0 else 0)

    async def _clock(self) -> None:
        """What Salesforce's clock says before anything else is read."""
        answer = await self._ask(f"SELECT Id FROM {check_name(self._sobject)} ORDER BY Id LIMIT 1")  # noqa: S608 - checked
        self.found.through = answer.second

    async def _agrees(self, part: Range, held: Mapping[str, Known]) -> bool:
        soql = f"SELECT COUNT(Id) n, MAX(SystemModstamp) m FROM {check_name(self._sobject)}{part.where()}"  # noqa: S608 - checked
        rows = (await self._ask(soql)).rows
        if len(rows) != 1 or not isinstance(count := rows[0].get("n"), int):
            raise TemporaryError(f"Salesforce did not count a range of {self._sobject}")
        return range_agrees(part, held, count, second_of(rows[0].get("m")) if count else None)

    async def _stamped(self, second: int) -> list[tuple[str, int, bool]]:
        """All records with a stamp of this second (epoch) or later: id, stamp, whether deleted."""
        only = f"WHERE SystemModstamp >= {literal(second)}"
        soql = f"SELECT Id, SystemModstamp, IsDeleted FROM {check_name(self._sobject)} {only}"  # noqa: S608 - checked
        rows = (await patiently(lambda: self._rest.query(soql, PURPOSE, deleted=True))).rows
        self.found.thin += len(rows)
        return [(id18(str(row.get("Id"))), second_of(row.get("SystemModstamp")), row.get("IsDeleted") is True) for row in rows]

    async def _stamps(self, part: Range) -> dict[str, int]:
        soql = f"SELECT Id, SystemModstamp FROM {check_name(self._sobject)}{part.where()} ORDER BY Id"  # noqa: S608 - checked
        rows = (await self._ask(soql)).rows
        self.found.thin += len(rows)
        return {id18(str(row.get("Id"))): second_of(row.get("SystemModstamp")) for row in rows}

    async def _ask(self, soql: str) -> Answer:
        return await patiently(lambda: self._rest.query(soql, PURPOSE))

    async def _settle(self, doubtful: Iterable[str]) -> None:
        """Those that differ in every round are differences."""
        found, left = self.found, sorted(doubtful)
        for round in range(ROUNDS):
            if not left:
                break
            if round:
                await asyncio.sleep(PAUSE)
                await workers_done(self._settings, self._flow)
            if len(left) > MOST:
                raise PermanentError(
                    f"{len(left):,} records of {found.source} differ: read all anew (`headrace snapshot {found.source}`), then verify"
                )
            durable = await patiently(lambda: self._positions.durable(self._connection, self._config, self._sobject))
            answer = await patiently(partial(self._rest.by_ids, self._sobject, self._plan.select, left, PURPOSE))
            found.whole += len(answer.rows)
            self._read, self._rows = (durable, answer.second), {id18(str(row["Id"])): row for row in answer.rows}
            states = await states_of(self._settings, found.source, left)
            told = [difference(id, states.get(id), self._rows.get(id), self._plan) for id in left]
            found.differences = [one for one in told if one is not None]
            left = [one.id for one in found.differences]


def counted(incident: Incident) -> None:
    """In the metrics and the log."""
    metrics.INCIDENTS.labels(*incident.source.split("/"), incident.cause, incident.state).inc()
    log.info("incident", id=incident.id, source=incident.source, cause=incident.cause, state=incident.state, why=incident.detail)


async def read_states(settings: Settings, source: str, seen: Seen, only: Collection[str] | None = None) -> None:
    """Every state of a source from the changelog of `records`, older ones of an id before newer ones; `only`: of these ids."""
    head = records_key(source, "")
    async with aclosing(read_batches(settings, Topics(settings.installation).changelog(RECORDS))) as batches:
        async for batch in batches:
            for record in batch:
                key = record.key or b""
                if record.value is None or not key.startswith(head):
                    continue
                id = key[len(head) :].decode()
                if only is None or id in only:
                    seen(id, RecordState.decode(record.value, id))


async def living(settings: Settings, flow: Flow, source: str) -> set[str]:
    """Ids of a source that we hold to be alive, once its events in Kafka are merged, or half a minute is over."""
    await workers_done(settings, flow, only=[Topics(settings.installation).inbound(source)])
    found: set[str] = set()

    def keep(id: str, state: RecordState) -> None:
        (found.discard if state.deleted else found.add)(id)

    await read_states(settings, source, keep)
    return found


async def states_of(settings: Settings, source: str, ids: Iterable[str]) -> States:
    """The states of these ids, as committed now. Raises TemporaryError, FatalError."""
    states: States = {}
    await read_states(settings, source, states.__setitem__, frozenset(ids))
    return states


def lanes(settings: Settings, source: str) -> list[str]:
    """The in-topics of a source."""
    topics = Topics(settings.installation)
    return [topics.inbound(source), topics.inbound(source, bulk=True)]


async def workers_done(settings: Settings, flow: Flow, seconds: float = WORKERS_SECONDS, only: Collection[str] = ()) -> int:
    """Wait until the stages are through with what was in Kafka at the call; how many records they still were behind after `seconds`.

    `only`: of these topics.
    """
    began, watch = time.time(), LagWatch(settings, flow)
    try:
        while True:
            lags = await patiently(watch.read)
            waited = time.time() - began
            behind = sum(lag.records for lag in lags if lag.records and lag.oldest >= waited and (not only or lag.topic in only))
            if not behind or waited > seconds:
                return behind
            await asyncio.sleep(0.5)
    finally:
        await watch.close()


async def patiently(action: Callable[[], Awaitable[T]]) -> T:
    """`await action()`, a few times where it is away; where the org's calls run short, at once the error, which says so."""
    backoff = Backoff(cap=5.0)
    for _ in range(TRIES):
        try:
            return await action()
        except LimitReachedError:
            raise
        except TemporaryError as error:
            await asyncio.sleep(min(backoff.after(error), 10.0))
    return await action()
