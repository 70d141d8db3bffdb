"""What the process that leads a channel does beside its subscription: repairs, after them the first snapshots, looks at
the rights, and what parents are polled.

It reads from Salesforce and hands rows to the in-topics; the position is the subscriber's.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from models.errors import PausedError, PermanentError, TemporaryError
from models.scrub import scrub
from streams.salesforce.allocation import CAUSE, Allocation
from streams.salesforce.context import Context
from streams.salesforce.messages import Intake
from streams.salesforce.parent_polls import EVERY, Ask, Asks, ParentPolls
from streams.salesforce.parents import order_of
from streams.salesforce.renames import Followed
from streams.salesforce.repair import Repairs
from streams.salesforce.retry import retried
from streams.salesforce.rights import Rights
from streams.salesforce.runs import snapshot_runs
from streams.salesforce.snapshot import run_snapshot

log = structlog.get_logger()


class Beside:
    """Of one channel, as long as this process leads it."""

    def __init__(self, context: Context, name: str, channel: str, sources: Sequence[str], allocation: Allocation) -> None:
        self._c, self._rest, self._sources = context, context.rest, sources
        self._repairs = Repairs(context, name, sources, others=[CAUSE])
        self._rights = Rights(
            context.settings, context.rest, context.config, context.wanted or context.fields, sources, self._repairs.store
        )
        self._allocation, self._channel = allocation, channel
        self._parents = ParentPolls(context, name, self._asks)
        self._task: asyncio.Task[None] | None = None

    def start(self, intake: Intake, renew: Callable[[str], None]) -> None:
        """Begin. `renew` ends the session of now."""
        self._task = asyncio.create_task(self._run(intake, renew))

    async def stop(self) -> None:
        """End, wherever it is: what is not done is in Kafka and goes on with the next leader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def raise_if_ended(self) -> None:
        """It ends only by an error."""
        if self._task is not None and self._task.done():
            self._task.result()

    def wake(self) -> None:
        """There is a new incident."""
        self._repairs.wake()

    async def subscribed(self) -> None:
        """A new subscription stands: what was withheld until now can be read again."""
        await self._rights.reopen()

    async def _run(self, intake: Intake, renew: Callable[[str], None]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repairs.run())
                group.create_task(self._snapshots())
                group.create_task(self._parents.run())
                group.create_task(self._look(intake, renew))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _asks(self, followed: Followed) -> Asks:
        """One channel of the connection, that of the first source, asks for the parents of which none tells."""
        config, flow = self._c.config, self._c.flow
        first = next(f"{self._c.connection}/{s}" for s in flow.sobjects(self._c.connection) if s not in config.poll)
        parents = followed.polled(config, flow.channels(self._c.connection)) if first == self._sources[0] else ()
        asks = {parent: Ask(config.poll.get(parent, EVERY)) for parent in parents}
        if (since := self._allocation.since) is not None:
            asks |= {parent: Ask(config.poll_instead, since) for parent in followed.carried(config, self._channel)}
        return asks

    async def _snapshots(self) -> None:
        """Those asked for at the first start and not yet done: parents before children, one after another."""
        await self._repairs.idle.wait()
        runs = (await retried(lambda: snapshot_runs(self._c.settings), "runs")).values()
        first = {run.source: run for run in runs if run.open and run.by == "first" and run.source in self._sources}
        head = f"{self._rest.connection}/"
        for sobject in await order_of(self._rest, [source.removeprefix(head) for source in first]):
            run = first[head + sobject]
            try:
                await run_snapshot(self._c.settings, self._c.flow, run.source, self._c.fields[run.source], run_id=run.run, rest=self._rest)
            except PermanentError as error:
                log.warning("snapshot failed", alert=True, source=run.source, run=run.run, reason=scrub(error.reason))

    async def _look(self, intake: Intake, renew: Callable[[str], None]) -> None:
        """Rights that returned count from the next subscription on."""
        await self._repairs.started.wait()
        while True:
            try:
                if second := await self._rights.look(intake.position.proven):
                    user = await self._rest.user()
                    intake.position = replace(intake.position, proven=second, user=user)
                if self._rights.back:
                    renew("the user sees again what was withheld: subscribing anew")
            except (TemporaryError, PausedError) as error:
                log.info("rights unknown", connection=self._rest.connection, reason=scrub(error.reason))
            await asyncio.sleep(self._c.rights_seconds)
