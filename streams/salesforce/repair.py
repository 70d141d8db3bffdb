"""Repairs what a channel's incidents name: reads it again, hands the rows to the in-topics, and closes the incident with the last of them.

Works in the process that leads the channel, beside its subscription, one repair after another; repairs go before snapshots. It calls no
target and merges nothing: rows go the way of all rows, where one place decides what is newer.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

import structlog

from models.errors import PermanentError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Output
from streams.publish import TransactionalPublisher
from streams.salesforce.incidents import Incident, open_ones, read_incidents
from streams.salesforce.messages import id18
from streams.salesforce.positions import Positions
from streams.salesforce.rest import IDS_PER_CALL, Rest
from streams.salesforce.retry import retried
from streams.salesforce.rows import read_again
from streams.salesforce.runs import snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics

log = structlog.get_logger()

PURPOSE = "repair"


class Repairs:
    """The repairs of one channel. `name` is the channel's, for the producer; `fields`: columns to read, by source."""

    def __init__(
        self,
        settings: Settings,
        flow: Flow,
        name: str,
        config: Salesforce,
        sources: Sequence[str],
        fields: Mapping[str, Sequence[str]],
        rest: Rest,
    ) -> None:
        self._settings, self._flow, self._config, self._sources = settings, flow, config, tuple(sources)
        self._fields, self._rest = fields, rest
        self._topics = Topics(settings.installation)
        self._publisher = TransactionalPublisher(settings, f"{settings.installation}.repair.{name}")
        self._positions = Positions(settings)
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        """Nothing is open."""

    def wake(self) -> None:
        """There is a new incident."""
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Repair what is open and what will be, until cancelled. Raises FatalError."""
        await retried(self._publisher.start, PURPOSE)
        try:
            while True:
                self._wake.clear()
                found = open_ones((await retried(lambda: read_incidents(self._settings), PURPOSE)).values(), self._sources)
                self._gauges(found)
                if not found:
                    self.idle.set()
                    await self._wake.wait()
                elif named := [i for i in found if i.ids]:
                    await self._ids(named)
                else:
                    await self._changed([i for i in found if i.source == found[0].source])
        finally:
            await self._publisher.stop()
            await self._positions.stop()

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
        except PermanentError as error:
            await self._end([first.ended("failed", error.reason)])
            return
        calls = self._rest.calls[PURPOSE] - before
        proof = f"run {run.run} read all that changed since {run.since}, deleted records included"
        await self._end([i.ended("closed", proof, rows=run.rows, calls=calls) for i in ([first] if goes_on else incidents)])

    async def _end(self, incidents: Sequence[Incident], rows: Sequence[Output] = ()) -> None:
        outputs = [*rows, *(incident.output(self._topics) for incident in incidents)]
        await retried(lambda: self._publisher.send(outputs), PURPOSE)
        for i in incidents:
            metrics.INCIDENTS.labels(*i.source.split("/"), i.cause, i.state).inc()
            say = log.error if i.state == "failed" else log.info
            say("incident", alert=i.state == "failed", id=i.id, source=i.source, cause=i.cause, state=i.state, rows=i.rows, gone=i.gone,
                why=i.proof)  # fmt: skip

    def _gauges(self, incidents: Sequence[Incident]) -> None:
        counts: dict[str, int] = defaultdict(int)
        for incident in incidents:
            counts[incident.source] += 1
        for source in self._sources:
            metrics.OPEN_INCIDENTS.labels(*source.split("/")).set(counts[source])
