"""What a pause means for a worker: which topics wait, which routes park what they would emit, which target is not called.

A connection's pause holds what came from it and has not been processed, and its re-reads; a target's, its writes. A route shares its topics
with others: it goes on being processed and parks what it would emit. Only a platform event, of which no state is kept that could be emitted
later, waits in its topic as long as any route that reads it is paused.
"""

import asyncio
import time
from collections.abc import Collection

import structlog

from models.errors import TemporaryError
from models.flow import Flow, is_event
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Partition
from streams.pauses import Pauses, What
from streams.topics import Topics, sources

log = structlog.get_logger()
AGAIN_SECONDS = 1.0


class Holds:
    """Of one worker; also the engine's `Hold`."""

    def __init__(self, settings: Settings, flow: Flow) -> None:
        self._pauses = Pauses(settings, self._show)
        self._holders: dict[str, list[tuple[What, str]]] = {}
        topics = Topics(settings.installation)
        for source in sources(flow):
            connection, _, sobject = source.partition("/")
            holders: list[tuple[What, str]] = [("connection", connection)]
            if is_event(sobject):
                holders += [("route", name) for name in flow.routes_from(source)]
            for bulk in (False, True):
                self._holders[topics.inbound(source, bulk=bulk)] = holders
        for connection in flow.connections:
            self._holders[topics.fetch(connection)] = [("connection", connection)]
        for target in flow.targets:
            for bulk in (False, True):
                self._holders[topics.writes(target, bulk=bulk)] = [("target", target)]

    async def ready(self) -> None:
        """Know what is paused. Raises TemporaryError."""
        await self._pauses.follow()

    def _show(self) -> None:
        for topic in self._holders:
            metrics.TOPIC_HELD.labels(topic).set(self(topic))

    def __call__(self, topic: str) -> bool:
        """Whether the topic is held."""
        return any(self._pauses.held(what, name) for what, name in self._holders.get(topic, ()))

    def target(self, name: str) -> str:
        """Why a target must not be called now, "" when it may be."""
        return self._pauses.why("target", name)

    async def routes(self, names: Collection[str], partition: Partition) -> frozenset[str]:
        """Those that are paused. What would be parked after the last parked record was told would stay there: so a pause is asked for
        again, as it stands now, before anything is parked.
        """
        while any(self._pauses.held("route", name) for name in names):
            try:
                await self._pauses.fresh()
                break
            except TemporaryError as error:
                log.warning("pauses are not known now", reason=error.reason)
                partition.waiting("Kafka does not say what is paused", time.monotonic() + 2 * AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)
        return frozenset(name for name in names if self._pauses.held("route", name))

    async def close(self) -> None:
        """Close."""
        await self._pauses.stop()
