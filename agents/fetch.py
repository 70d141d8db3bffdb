"""The fetch agent: reads records again by id, and hands the rows back through the in-topic, where one place merges and maps.

It asks for what an event did not tell (an incomplete record, relationship fields, a redrive). It decides nothing about the rows and calls
no target. A Salesforce that is away stalls this agent only.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from agents.children import Children, parse_children, together_of
from agents.guard import Guard, per_record, split
from agents.maps import InUse
from agents.org_fields import Mend, mended
from models.envelope import Envelope, Kind, Reason
from models.errors import PermanentError, SettingsError, TemporaryError
from models.flow import Flow, Salesforce
from models.record_id import id18
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Chunk, Output, Partition, Record, Result, Stage
from streams.letters import dead_letter_output
from streams.publish import MAX_RECORD
from streams.salesforce.auth import Login
from streams.salesforce.limits import Step
from streams.salesforce.positions import Durable, Positions
from streams.salesforce.renames import children_request, parent_condition, since_request
from streams.salesforce.rest import IDS_PER_CALL, Answer, Rest, Row, check_id
from streams.salesforce.rights import UNPROVEN, sees_all
from streams.salesforce.rows import row_outputs
from streams.topics import Topics

CALLS = 2
"""Calls of one sObject at a time: ids that come meanwhile share the next call, a single id is read at once."""
CALL_SECONDS = 300.0
KEPT_SECONDS = 5.0
"""So long a row that was read answers events that it was read behind: a record changed five times in a second is not read five times."""
KEPT = 5_000
GATHER_SECONDS = 10.0
"""Ids wait so long for others while the org's calls run short."""
STRANGE_SECONDS = 1.0
STAGE = "fetch"


@dataclass(frozen=True, slots=True)
class Request:
    """One record of `fetch.<connection>`: {"sobject", "id"}; reason, run, route, plan come from its headers and go back with the row.

    `after`: epoch and position of the event that asks: a row that was read behind it answers.
    """

    record: Record
    sobject: str
    id: str
    reason: Reason
    run: str | None
    route: str | None
    after: tuple[int, int] | None = None
    plan: str | None = None


@dataclass(slots=True)
class _Read:
    """What one call found: rows by id, where the channel stood before it, the source's second. `proven`: what is missing is not hidden.

    `fields`: the columns that were read, `plan`: the print of the plan that wants them.
    """

    durable: Durable
    rows: dict[str, Row]
    second: int
    proven: bool
    fields: tuple[str, ...]
    plan: str | None = None


@dataclass(slots=True)
class _Batch:
    ids: dict[str, None] = field(default_factory=dict)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[_Read] | None" = None


def fetch_stage(
    connection: str,
    flow: Flow,
    settings: Settings,
    fields: Mapping[str, Sequence[str]],
    maps: InUse | None = None,
    mend: Mend | None = None,
) -> Stage:
    """The stage that answers `fetch.<connection>`. Raises SettingsError for an unknown connection.

    fields   columns to read, by source
    maps     where they may change: what to catch up with when others ask by another plan
    mend     makes the maps go with what the org has, when it refuses a field
    """
    topics = Topics(settings.installation)
    agent = Fetch(connection, flow, settings, fields, maps=maps, mend=mend)
    return Stage(
        name=f"fetch.{connection}",
        word=STAGE,
        live=(topics.fetch(connection),),
        bulk=(),
        handler=agent,
        live_records=2 * IDS_PER_CALL,
        depth=1,
    )


class Fetch:
    """Handler of the stage. Makes its clients at the first chunk."""

    def __init__(
        self,
        connection: str,
        flow: Flow,
        settings: Settings,
        fields: Mapping[str, Sequence[str]],
        *,
        guard: Guard | None = None,
        maps: InUse | None = None,
        mend: Mend | None = None,
    ) -> None:
        config = flow.connections.get(connection)
        if not isinstance(config, Salesforce):
            raise SettingsError(f"{connection} is no Salesforce connection of the flow: nothing can be fetched from it")
        self._connection, self._config, self._fields, self._maps = connection, config, fields, maps
        self._sobjects = frozenset(flow.sobjects(connection))
        self._topics = Topics(settings.installation)
        self._guard = guard or Guard(STAGE, connection)
        self._rest = Rest(connection, config, Login.of(settings, flow, connection, config), settings)
        self._mend = partial(mend, self._rest) if mend else None
        self._positions = Positions(settings)
        self._open: dict[str, _Batch] = {}
        self._kept: OrderedDict[tuple[str, str], tuple[float, _Read]] = OrderedDict()
        self._slots: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(CALLS))

    async def close(self) -> None:
        """Close its clients."""
        await self._rest.close()
        await self._positions.stop()

    async def __call__(self, chunk: Chunk, partition: Partition) -> Result:
        dead: list[Output] = []
        wanted: dict[str, dict[str, list[Request]]] = defaultdict(lambda: defaultdict(list))
        children: list[Children] = []
        for record in chunk.records:
            request = per_record(STAGE, record, partial(self._parse, record), topics=self._topics, redrive_to=chunk.topic, dead=dead)
            if isinstance(request, Children):
                children.append(request)
            elif request is not None and not any(_same(request, other) for other in wanted[request.sobject][request.id]):
                wanted[request.sobject][request.id].append(request)
        await self._catch_up({(s, r.plan) for s, by_id in wanted.items() for some in by_id.values() for r in some if r.plan}, partition)
        outputs: list[Output] = []
        for sobject, by_id in wanted.items():
            ids = list(by_id)
            for start in range(0, len(ids), IDS_PER_CALL):
                await self._answer(partition, sobject, {i: by_id[i] for i in ids[start : start + IDS_PER_CALL]}, outputs, dead)
        for together in together_of(children):
            await self._page(partition, together, outputs, dead)
        return Result(outputs=[*outputs, *dead])

    async def _catch_up(self, plans: set[tuple[str, str]], partition: Partition) -> None:
        """What is asked for by a plan that is not ours may need columns of a version that we have not read yet. Where it is the asker
        who is behind, it will ask again, so we are in no hurry.
        """
        if self._maps is not None and any(self._print(sobject) != print for sobject, print in plans):
            await self._guard.call(partition, self._maps.catch_up, self._maps.catch_up, CALL_SECONDS)
            if any(self._print(sobject) != print for sobject, print in plans):
                await self._guard.wait(partition, STRANGE_SECONDS, "ids are asked for by other maps than ours")

    def _print(self, sobject: str) -> str | None:
        plan = self._maps.now.plan(f"{self._connection}/{sobject}") if self._maps else None
        return plan.print if plan else None

    def _parse(self, record: Record) -> Request | Children:
        """Raises PermanentError, and what orjson raises."""
        body = orjson.loads(record.value or b"")
        if isinstance(body, dict) and "through" in body:
            return parse_children(record, body, self._sobjects, self._connection)
        if not isinstance(body, dict) or not isinstance(body.get("id"), str) or not isinstance(body.get("sobject"), str):
            raise PermanentError('a fetch request must be {"sobject": …, "id": …}')
        if body["sobject"] not in self._sobjects:
            raise PermanentError(
                f"no route reads '{body['sobject'][:60]}' of {self._connection}: name it in a route's `from:`, then redrive"
            )
        headers = dict(record.headers)

        def text(name: str) -> str | None:
            return None if (raw := headers.get(name)) is None else raw.decode()

        epoch, position = text("epoch"), text("position")
        after = (int(epoch), int(position)) if epoch and position else None
        reason, id = Reason(text("reason") or "fetch"), id18(check_id(body["id"]))
        return Request(record, body["sobject"], id, reason, text("run"), text("route"), after, text("plan"))

    async def _page(self, partition: Partition, requests: Sequence[Children], outputs: list[Output], dead: list[Output]) -> None:
        """A page of the children of some parents; where there are more, a request for the next. Many go through the bulk lane."""
        one, since = requests[0], min(request.since for request in requests)
        parents = list(dict.fromkeys(parent for request in requests for parent in request.parents))
        try:
            call = mended(partial(self._children, one, parents, since), self._maps, self._mend)
            durable, answer = await self._guard.call(partition, call, self._probe, CALL_SECONDS)
        except PermanentError as error:
            letter = partial(dead_letter_output, STAGE, topics=self._topics)
            dead += [letter(request.record, error, redrive_to=request.record.topic) for request in requests]
            metrics.FETCHED.labels(self._connection, one.sobject, "dead").inc(len(requests))
            return
        source, many = f"{self._connection}/{one.sobject}", bool(one.after) or len(answer.rows) > IDS_PER_CALL
        pairs = [(_id_of(row).encode(), orjson.dumps(row)) for row in answer.rows]
        reason = Reason.POLL if many else Reason.PARENT
        outputs += row_outputs(self._topics, source, pairs, durable, reason=reason, run=None, bulk=many)
        metrics.FETCHED.labels(self._connection, one.sobject, "row").inc(len(pairs))
        if len(pairs) == self._rest.page_size:
            topic, last = self._topics.fetch(self._connection), pairs[-1][0].decode()
            if parents:
                outputs.append(children_request(topic, one.sobject, one.through, parents, last))
            else:
                outputs.append(since_request(topic, one.sobject, one.through, since, last))

    async def _children(self, one: Children, parents: Sequence[str], since: int) -> tuple[Durable, Answer]:
        async with self._slots[one.sobject]:
            durable = await self._positions.durable(self._connection, self._config, one.sobject)
            where = parent_condition(one.through, parents, since)
            fields = self._fields[f"{self._connection}/{one.sobject}"]
            return durable, await self._rest.page(one.sobject, fields, one.after, STAGE, where=where)

    async def _answer(
        self, partition: Partition, sobject: str, requests: Mapping[str, Sequence[Request]], outputs: list[Output], dead: list[Output]
    ) -> None:
        def give_up(ids: Sequence[str], error: PermanentError | TemporaryError) -> None:
            for request in (r for i in ids for r in requests[i]):
                letter = dead_letter_output(
                    STAGE, request.record, error, topics=self._topics, redrive_to=request.record.topic, route=request.route
                )
                dead.append(letter)
            metrics.FETCHED.labels(self._connection, sobject, "dead").inc(len(ids))

        async def some(ids: Sequence[str]) -> None:
            left = []
            for record_id in ids:
                if (kept := self._answers(sobject, record_id, requests[record_id])) is None:
                    left.append(record_id)
                else:
                    self._rows(sobject, record_id, requests[record_id], kept, outputs, dead)
            if left:
                await call(left)

        async def call(ids: Sequence[str]) -> None:
            try:
                read = mended(partial(self._read, sobject, ids), self._maps, self._mend)
                found = await self._guard.call(partition, read, self._probe, CALL_SECONDS)
            except PermanentError as error:
                if error.field is None:
                    raise  # may be the fault of one id: split
                give_up(ids, error)  # a field that is not there is everybody's
                return
            if hidden := [] if found.proven else [record_id for record_id in ids if record_id not in found.rows]:
                give_up(hidden, PermanentError(f"{sobject} is not found in Salesforce; {UNPROVEN}, and redrive", field="Id"))
            for record_id in (id for id in ids if id not in hidden):
                self._rows(sobject, record_id, requests[record_id], found, outputs, dead)

        await split(list(requests), some, lambda record_id, error: give_up([record_id], error))

    def _answers(self, sobject: str, record_id: str, requests: Sequence[Request]) -> _Read | None:
        """A read of a moment ago, where the positions say that it began behind every event that asks."""
        at, found = self._kept.get((sobject, record_id), (0.0, None))
        if found is None or time.monotonic() - at > KEPT_SECONDS or found.fields != tuple(self._fields[f"{self._connection}/{sobject}"]):
            return None
        behind = (found.durable.epoch, found.durable.position)
        return found if all(request.after is not None and request.after <= behind for request in requests) else None

    def _keep(self, sobject: str, found: _Read) -> None:
        at = time.monotonic()
        for record_id in found.rows:
            self._kept[sobject, record_id] = (at, found)
            self._kept.move_to_end((sobject, record_id))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _rows(
        self, sobject: str, record_id: str, requests: Sequence[Request], found: _Read, outputs: list[Output], dead: list[Output]
    ) -> None:
        row = found.rows.get(record_id)
        value = orjson.dumps(row if row is not None else {"attributes": {"type": sobject}, "Id": record_id})
        topic = self._topics.inbound(f"{self._connection}/{sobject}")
        metrics.FETCHED.labels(self._connection, sobject, "gone" if row is None else "row").inc()
        for request in requests:
            if len(value) + 2_000 > MAX_RECORD:
                error = PermanentError(f"the row is too large for Kafka ({len(value):,} bytes): map fewer large fields of {sobject}")
                dead.append(dead_letter_output(STAGE, request.record, error, topics=self._topics, redrive_to=request.record.topic))
                continue
            envelope = Envelope(
                kind=Kind.ROW,
                reason=request.reason,
                received=int(time.time() * 1000),
                channel=found.durable.channel,
                epoch=found.durable.epoch,
                began=found.durable.position,
                gone=found.second if row is None else None,
                run=request.run,
                route=request.route,
                plan=found.plan or request.plan,
            )
            outputs.append(Output(topic, record_id.encode(), value, envelope.headers()))

    async def _probe(self) -> None:
        """Whether the connection answers again."""
        await self._rest.limits()

    async def _read(self, sobject: str, ids: Sequence[str]) -> _Read:
        """Rows of these ids, in a call shared with the other partitions. Raises the classes of Rest."""
        batch = self._open.get(sobject)
        if batch is None or len(batch.ids.keys() | set(ids)) > IDS_PER_CALL:
            if batch is not None:
                batch.full.set()  # nobody joins it any more
            batch = self._open[sobject] = _Batch()
            batch.task = asyncio.create_task(self._call(sobject, batch))
            batch.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # those who asked may be gone
        batch.ids.update(dict.fromkeys(ids))
        if len(batch.ids) == IDS_PER_CALL:
            batch.full.set()
        if batch.task is None:
            raise RuntimeError("a batch without its task")
        return await asyncio.shield(batch.task)

    async def _call(self, sobject: str, batch: _Batch) -> _Read:
        async with self._slots[sobject]:
            if self._rest.step >= Step.BATCH:  # the calls of the day run short: ids wait a while to share one
                with suppress(TimeoutError):
                    await asyncio.wait_for(batch.full.wait(), GATHER_SECONDS)
            if self._open.get(sobject) is batch:
                del self._open[sobject]  # from here on nobody joins
            durable = await self._positions.durable(self._connection, self._config, sobject)
            plan, fields = self._print(sobject), tuple(self._fields[f"{self._connection}/{sobject}"])
            answer = await self._rest.by_ids(sobject, fields, list(batch.ids), "fetch")
            rows = {_id_of(row): row for row in answer.rows}
            proven = len(rows) >= len(batch.ids) or await sees_all(self._rest, sobject, STAGE)
            found = _Read(durable, rows, answer.second, proven, fields, plan)
            self._keep(sobject, found)
            return found


def _id_of(row: Row) -> str:
    found: Any = row.get("Id")
    if not isinstance(found, str):
        raise TemporaryError("Salesforce answered with a row that has no Id")
    return id18(found)


def _same(one: Request, other: Request) -> bool:
    return (one.reason, one.run, one.route) == (other.reason, other.run, other.route)
