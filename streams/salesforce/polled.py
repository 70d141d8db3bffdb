"""The sObjects of a connection that the flow file polls: one process leads, polls them and repairs what incidents name of them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from models.errors import PausedError, PermanentError, TemporaryError
from models.flow import Flow, Salesforce
from models.scrub import scrub
from models.settings import Settings
from streams import metrics
from streams.salesforce.leader import Leadership
from streams.salesforce.poll import Polls
from streams.salesforce.positions import position_key
from streams.salesforce.repair import Living, Repairs
from streams.salesforce.rest import Rest
from streams.salesforce.retry import retried


class Readiness(Protocol):
    """What is needed of streams/health.py."""

    def ready(self, name: str, ok: bool, why: str = "") -> None:
        """Say whether a part is ready."""
        ...


class Polled:
    """Waits for its turn to lead, then polls. `snapshot` False: no full reading at the first time, only what changes from now on."""

    def __init__(
        self,
        settings: Settings,
        flow: Flow,
        connection: str,
        config: Salesforce,
        fields: Mapping[str, Sequence[str]],
        rest: Rest,
        health: Readiness | None,
        paused: set[str],
        living: Living | None,
        snapshot: bool,
        pause: float,
    ) -> None:
        self._settings, self._flow, self._config, self._fields, self._rest = settings, flow, config, fields, rest
        self._health, self._paused, self._living, self._snapshot, self._pause = health, paused, living, snapshot, pause
        self._name = f"{connection}.poll"
        self._every = {f"{connection}/{sobject}": seconds for sobject, seconds in config.poll.items()}
        self._leadership = Leadership(settings, self._name, position_key(connection, "poll"))

    async def run(self) -> None:
        """Never returns; raises FatalError."""
        for source in self._every:
            metrics.POLLED.labels(*source.split("/")).set(1)
        await self._leadership.whenever_mine(self._lead, self._standby)

    async def _lead(self) -> None:
        since = None if self._snapshot else dict.fromkeys(self._every, (await retried(self._rest.here, "poll")).second)
        shared = (self._settings, self._flow, self._name, self._config)
        repairs = Repairs(*shared, tuple(self._every), self._fields, self._rest, self._living)
        polls = Polls(*shared, self._every, self._fields, self._rest, since=since, pause=self._pause, told=self._told, opened=repairs.wake)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(polls.run())
                group.create_task(repairs.run())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._paused -= self._every.keys()

    def _told(self, source: str, error: TemporaryError | PausedError | PermanentError | None) -> None:
        """One gauge for the connection, shared with its channels: one source that is refused is enough."""
        (self._paused.add if isinstance(error, PausedError) else self._paused.discard)(source)
        metrics.PAUSED.labels(source.partition("/")[0]).set(bool(self._paused))
        self._say(source, error.reason if error else "", ok=error is None)

    def _standby(self) -> None:
        for source in self._every:
            self._say(source, "standby")

    def _say(self, source: str, why: str, *, ok: bool = True) -> None:
        if self._health is not None:
            self._health.ready(f"polling {source}", ok, scrub(why))
