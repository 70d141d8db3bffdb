"""Repairs what a channel's incidents name: reads it again, hands the rows to the in-topics, and closes the incident with the last of them.

Works in the process that leads the channel, beside its subscription, one repair after another; repairs go before snapshots. It calls no
target and merges nothing: rows go the way of all rows, where one place decides what is newer.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import get_args

import structlog

from models.errors import PermanentError
from models.record_id import id18
from streams import metrics
from streams.engine.stage import Output
from streams.losses import accept_removed
from streams.publish import TransactionalPublisher
from streams.salesforce.context import Context, Living
from streams.salesforce.incidents import Cause, Incident, open_ones, read_incidents
from streams.salesforce.positions import Positions
from streams.salesforce.rest import IDS_PER_CALL
from streams.salesforce.retry import retried
from streams.salesforce.rights import UNPROVEN, sees_all
from streams.salesforce.rows import read_again
from streams.salesforce.runs import snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics

log = structlog.get_logger()

PURPOSE = "repair"


LOOK_SECONDS = 30.0
"""So often is looked for incidents that other processes opened."""
LOSS_SECONDS = 300.0
"""So often for losses of Kafka's that nobody need decide about: all dead letters are read for it."""


class Repairs:
    """The repairs of one channel, or of what is polled. `name`: for the producer; `others`: causes that somebody else closes."""

    def __init__(self, context: Context, name: str, sources: Sequence[str], *, others: Collection[Cause] = ()) -> None:
        c = context
        self._settings, self._flow, self._config, self._fields, self._rest, self._living = (
            c.settings, c.flow, c.config, c.fields, c.rest, c.living,
        )  # fmt: skip
        self._sources, self._elsewhere = tuple(sources), frozenset(others)
        self._topics = Topics(c.settings.installation)
        self._publisher = TransactionalPublisher(c.settings, f"{c.settings.installation}.repair.{name}")
        self._positions = Positions(c.settings)
        self._wake = asyncio.Event()
        self.started = asyncio.Event()
        self.idle = asyncio.Event()
        """Nothing is open."""

    def wake(self) -> None:
        """There is a new incident."""
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Repair what is open and what will be, until cancelled. Raises FatalError."""
        await retried(self._publisher.start, PURPOSE)
        self.started.set()
        next_loss = 0.0
        try:
            while True:
                self._wake.clear()
                if time.monotonic() >= next_loss:
                    await retried(lambda: accept_removed(self._settings, self._flow, self._sources), PURPOSE)
                    next_loss = time.monotonic() + LOSS_SECONDS
                known = (await retried(lambda: read_incidents(self._settings), PURPOSE)).values()
                self._gauges(known)
                found = open_ones(known, self._sources)
                found = [i for i in found if i.cause not in self._elsewhere]
                if not found:
                    self.idle.set()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
                elif named := [i for i in found if i.ids]:
                    await self._ids(named)
                else:
                    await self._changed([i for i in found if i.source == found[0].source])
        finally:
            await self._publisher.stop()
            await self._positions.stop()

    async def store(self, incidents: Sequence[Incident]) -> None:
        """Keep what somebody else found out about incidents, and look at it."""
        await self._end(incidents)
        self.wake()

    async def _ids(self, incidents: Sequence[Incident]) -> None:
        """Read the records that incidents of one source name, as many as a call takes."""
        source = incidents[0].source
        some: list[Incident] = []
        count = 0
        for incident in incidents:
            if incident.source == source and (not some or count + len(incident.ids) <= IDS_PER_CALL):
                some.append(incident)
                count += len(incident.ids)
        connection, _, sobject = source.partition("/")
        ids, before = list(dict.fromkeys(id for incident in some for id in incident.ids)), self._rest.calls[PURPOSE]
        durable = await retried(lambda: self._positions.durable(connection, self._config, sobject), PURPOSE)
        try:
            answer = await retried(lambda: self._rest.by_ids(sobject, self._fields[source], ids, PURPOSE), PURPOSE)
        except PermanentError as error:
            await self._end([incident.ended("failed", error.reason) for incident in some])
            return
        rows = {id18(str(row["Id"])): row for row in answer.rows if row.get("Id")}
        if len(rows) < len(ids) and not await self._sees_all(sobject):
            await self._end([replace(incident, state="waiting", proof=UNPROVEN) for incident in some])
            return
        outputs = read_again(self._topics, source, ids, rows, durable, answer.second, run=f"repair-{some[0].id}")
        calls, proof = self._rest.calls[PURPOSE] - before, f"read at position {durable.position} of epoch {durable.epoch}"
        ended = [
            i.ended("closed", proof, rows=sum(id in rows for id in i.ids), gone=sum(id not in rows for id in i.ids), calls=calls)
            for i in some
        ]
        await self._end(ended, outputs)

    async def _changed(self, incidents: Sequence[Incident]) -> None:
        """Read everything of one source that changed since the earliest of these incidents, deleted records included.

        A run answers for all that were open before it began; of one that goes on after a crash nobody knows but the first, whose name it
        bears. (No clock decides that: those of two processes differ, and one may be set back.)
        """
        first, before = incidents[0], self._rest.calls[PURPOSE]
        run_id = f"repair-{first.id}-{first.opened}"
        goes_on = run_id in await retried(lambda: snapshot_runs(self._settings), PURPOSE)
        answered = [first] if goes_on else incidents
        outputs: list[Output] = []
        gone = 0
        try:
            run = await run_snapshot(
                self._settings,
                self._flow,
                first.source,
                self._fields[first.source],
                run_id=run_id,
                repair_since=min(incident.since for incident in incidents),
                rest=self._rest,
            )
            if self._living is not None and any(incident.cause != "wildcard" for incident in answered):
                outputs, gone = await self._absent(first.source, self._living, run.run)
        except PermanentError as error:
            await self._end([first.ended("failed", error.reason)])
            return
        if not await self._sees_all(first.source.partition("/")[2]):
            await self._end([replace(incident, state="waiting", proof=UNPROVEN) for incident in answered])
            return
        proof = f"run {run.run} read all that changed since {run.since}, deleted records included"
        if gone:
            proof += f"; {gone} that we held are in the org no more, not even deleted"
        calls = self._rest.calls[PURPOSE] - before
        while len(outputs) > IDS_PER_CALL:
            await retried(partial(self._publisher.send, outputs[:IDS_PER_CALL]), PURPOSE)
            del outputs[:IDS_PER_CALL]
        await self._end([i.ended("closed", proof, rows=run.rows, gone=gone, calls=calls) for i in answered], outputs)

    async def _absent(self, source: str, living: Living, run: str) -> tuple[list[Output], int]:
        """Records that we hold to be alive and that no query shows: purged from the recycle bin, whose event was withheld, or just made."""
        sobject = source.partition("/")[2]
        held, last = await retried(lambda: living(source), PURPOSE), ""
        more = bool(held)
        while more:
            page = await retried(partial(self._rest.page, sobject, ("Id",), last, PURPOSE, deleted=True), PURPOSE)
            ids = [id18(str(row["Id"])) for row in page.rows]
            held.difference_update(ids)
            more, last = len(ids) == self._rest.page_size, ids[-1] if ids else last
        outputs: list[Output] = []
        gone, missing = 0, sorted(held)
        for start in range(0, len(missing), IDS_PER_CALL):
            some = missing[start : start + IDS_PER_CALL]
            durable = await retried(lambda: self._positions.durable(source.partition("/")[0], self._config, sobject), PURPOSE)
            answer = await retried(partial(self._rest.by_ids, sobject, self._fields[source], some, PURPOSE), PURPOSE)
            rows = {id18(str(row["Id"])): row for row in answer.rows}
            outputs += read_again(self._topics, source, some, rows, durable, answer.second, run=run)
            gone += len(some) - len(rows)
        return outputs, gone

    async def _sees_all(self, sobject: str) -> bool:
        """Asked after the reading: what a user may not see looks like what is not there."""
        return await retried(lambda: sees_all(self._rest, sobject, PURPOSE), PURPOSE)

    async def _end(self, incidents: Sequence[Incident], rows: Sequence[Output] = ()) -> None:
        outputs = [*rows, *(incident.output(self._topics) for incident in incidents)]
        await retried(lambda: self._publisher.send(outputs), PURPOSE)
        for i in incidents:
            metrics.INCIDENTS.labels(*i.source.split("/"), i.cause, i.state).inc()
            bad = i.state in ("failed", "waiting")
            say = log.error if bad else log.info
            say("incident", alert=bad, id=i.id, source=i.source, cause=i.cause, state=i.state, rows=i.rows, gone=i.gone,
                why=i.proof or i.detail)  # fmt: skip

    def _gauges(self, incidents: Iterable[Incident]) -> None:
        counts = Counter((incident.source, incident.cause) for incident in incidents if incident.state in ("open", "waiting"))
        for source in self._sources:
            for cause in get_args(Cause):
                metrics.OPEN_INCIDENTS.labels(*source.split("/"), cause).set(counts[source, cause])
