"""What a channel does while the org's event allocation is used up: its sObjects are polled, until Salesforce delivers again.

An incident says so per sObject, from the moment the first event may be missing. It is closed by a round of polling that began after the
subscription stood again: what was committed before is in that round, what is committed later is an event.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog

from models.errors import PausedError, PermanentError, TemporaryError
from streams import metrics
from streams.engine.stage import Output
from streams.salesforce.context import Context
from streams.salesforce.incidents import Cause, Incident, open_ones, read_incidents
from streams.salesforce.limits import DAILY_EVENTS
from streams.salesforce.messages import BUFFER_SECONDS
from streams.salesforce.poll import Polls
from streams.salesforce.positions import Position
from streams.salesforce.retry import retried
from streams.topics import Topics

log = structlog.get_logger()

CAUSE: Cause = "allocation"
ENOUGH = 0.1
"""Of the allocation: so much must be left before events are asked for again, else it would be used up at once."""
SLOWER = 5
"""The looks at what is left become rarer up to so many pauses."""


class Allocation:
    """Of one channel, in the process that leads it. `send` stores records in the leader's turn; `children`: requests for the children of
    parents of whom nothing was heard since an epoch second.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        sources: Sequence[str],
        send: Callable[[Sequence[Output]], Awaitable[None]],
        children: Callable[[int], list[Output]],
    ) -> None:
        self._children = children
        self._c, self._name, self._sources, self._send = context, name, tuple(sources), send
        self._rest, self._pause = context.rest, context.backoff.pause
        self._open: dict[str, Incident] = {}
        self._polls: Polls | None = None
        self._task: asyncio.Task[None] | None = None
        self._since = 0

    @property
    def since(self) -> int | None:
        """Epoch s from which on events may be missing; None while they are delivered."""
        return self._since if self._open else None

    async def recall(self, position: Position) -> None:
        """Go on with what a predecessor began."""
        found = open_ones((await retried(lambda: read_incidents(self._c.settings), CAUSE)).values(), self._sources)
        self._open = {i.source: i for i in found if i.cause == CAUSE}
        self._since = _since(position)
        self._say()
        if self._open:
            self._start()

    async def used_up(self, position: Position, reason: str) -> None:
        """Salesforce delivers no more events: poll, and say from when on they may be missing."""
        self._since, now = _since(position), int(time.time() * 1000)
        missing = [source for source in self._sources if source not in self._open]
        opened = [
            Incident(f"{self._name}@{position.epoch}/{position.position}/{source}/{CAUSE}/{now}", source, CAUSE, reason, since=self._since,
                     opened=now) for source in missing
        ]  # fmt: skip
        if opened:
            await self._send([incident.output(Topics(self._c.settings.installation)) for incident in opened])
            for i in opened:
                metrics.INCIDENTS.labels(*i.source.split("/"), i.cause, i.state).inc()
            log.error("event allocation used up", alert=True, channel=self._name, since=self._since, sources=missing)
            await self.stop()
        self._open |= {incident.source: incident for incident in opened}
        self._say()
        if self._task is None and self._open:
            self._start()

    async def until_delivered(self) -> None:
        """Until enough of the allocation is left; polling goes on. Raises FatalError."""
        seconds = self._pause
        while True:
            await asyncio.wait({self._task or asyncio.create_task(asyncio.sleep(seconds))}, timeout=seconds)
            self.check()
            with suppress(TemporaryError, PausedError, PermanentError):
                await self._rest.limits()
            allowed = self._rest.limit(DAILY_EVENTS)
            if allowed is None or allowed.left >= ENOUGH * allowed.most:
                return
            seconds = min(seconds * 2, self._pause * SLOWER)

    def too_much(self) -> bool:
        """Events of what was polled meanwhile would use up half of what is left: they are not asked for again."""
        allowed = self._rest.limit(DAILY_EVENTS)
        if self._polls is None or allowed is None or len(self._open) < len(self._sources):
            return False
        return self._polls.rows > allowed.left / 2

    def delivered(self) -> None:
        """The subscription stands: one more round."""
        if self._polls is not None:
            self._polls.end()

    def lost(self) -> None:
        """The session is over: polling that has not ended goes on."""
        if self._polls is not None:
            self._polls.go_on()

    def check(self) -> None:
        """Take note of an end of the polling. Raises FatalError."""
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = self._polls = None
            self._say()

    async def stop(self) -> None:
        """No longer led here."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = self._polls = None

    def _start(self) -> None:
        every = dict.fromkeys(self._open, self._c.config.poll_instead)
        since = dict.fromkeys(every, self._since)
        self._polls = Polls(
            self._c, self._name, every, since=since, incidents=self._open, last=lambda: self._children(self._since - BUFFER_SECONDS)
        )
        self._task = asyncio.create_task(self._polls.run())

    def _say(self) -> None:
        for source in self._sources:
            metrics.POLLED.labels(*source.split("/")).set(2 if source in self._open else 0)


def _since(position: Position) -> int:
    """Epoch s from which on events may be missing."""
    return position.second or position.started // 1000
