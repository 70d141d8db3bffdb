"""The sObjects of a connection that the flow file polls: one process leads, polls them and repairs what incidents name of them."""

import asyncio

from models.errors import PausedError, PermanentError, TemporaryError
from models.scrub import scrub
from streams import metrics
from streams.salesforce.context import Context
from streams.salesforce.leader import Leadership
from streams.salesforce.parent_polls import EVERY, Ask, Asks, ParentPolls
from streams.salesforce.poll import Polls
from streams.salesforce.positions import position_key
from streams.salesforce.renames import Followed
from streams.salesforce.repair import Repairs
from streams.salesforce.retry import retried


class Polled:
    """Waits for its turn to lead, then polls. Without snapshots, no full reading at the first time, only what changes from now on."""

    def __init__(self, context: Context) -> None:
        self._c, connection = context, context.connection
        self._name = f"{connection}.poll"
        self._every = {f"{connection}/{sobject}": seconds for sobject, seconds in context.config.poll.items()}
        self._leadership = Leadership(context.settings, self._name, position_key(connection, "poll"))

    async def run(self) -> None:
        """Never returns; raises FatalError."""
        for source in self._every:
            metrics.POLLED.labels(*source.split("/")).set(1)
        await self._leadership.whenever_mine(self._lead, self._standby)

    async def _lead(self) -> None:
        since = None if self._c.snapshot else dict.fromkeys(self._every, (await retried(self._c.rest.here, "poll")).second)
        repairs = Repairs(self._c, self._name, tuple(self._every))
        polls = Polls(self._c, self._name, self._every, since=since, told=self._told, opened=repairs.wake)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(polls.run())
                group.create_task(repairs.run())
                if set(self._c.flow.sobjects(self._c.connection)) <= self._c.config.poll.keys():  # else a channel sees to it
                    group.create_task(ParentPolls(self._c, self._name, self._asks).run())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._c.paused.difference_update(self._every)

    def _asks(self, followed: Followed) -> Asks:
        every = self._c.config.poll
        return {parent: Ask(every.get(parent, EVERY)) for parent in followed.polled(self._c.config, ())}

    def _told(self, source: str, error: TemporaryError | PausedError | PermanentError | None) -> None:
        """One gauge for the connection, shared with its channels: one source that is refused is enough."""
        (self._c.paused.add if isinstance(error, PausedError) else self._c.paused.discard)(source)
        metrics.PAUSED.labels(source.partition("/")[0]).set(bool(self._c.paused))
        self._say(source, error.reason if error else "", ok=error is None or bool(self._c.held()))

    def _standby(self) -> None:
        for source in self._every:
            self._say(source, "standby")

    def _say(self, source: str, why: str, *, ok: bool = True) -> None:
        if self._c.health is not None:
            self._c.health.ready(f"polling {source}", ok, scrub(why))
