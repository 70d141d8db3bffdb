"""Holds a flood back while what it feeds is behind, so that it waits in Salesforce and not in Kafka. It measures; who reads obeys."""

import asyncio

import structlog

from models.errors import TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams.lag import LagWatch
from streams.pauses import Pauses
from streams.topics import Topics

log = structlog.get_logger()

PROCESS_RECORDS = 50_000
"""Rows that may wait to be processed: some seconds of a worker's work, so that it never stands idle for us."""
TARGET_RECORDS = 500_000
"""Writes that may wait for a target: it may be slow for long without holding up the others, but not fill Kafka."""
EVERY = 1.0


class Brake:
    """For the floods of one source. `why`: what is behind, or who paused the connection; "" while nothing is."""

    def __init__(self, settings: Settings, flow: Flow, source: str) -> None:
        topics = Topics(settings.installation)
        self._bounds = {
            topics.inbound(source, bulk=True): (PROCESS_RECORDS, f"records of {source} wait to be processed: is a worker running?")
        }
        for route in flow.routes_from(source).values():
            self._bounds[topics.writes(route.to, bulk=True)] = (TARGET_RECORDS, f"writes wait for {route.to}")
        self._watch = LagWatch(settings, flow)
        self._pauses, self._connection = Pauses(settings), source.partition("/")[0]
        self.why = ""

    async def run(self) -> None:
        """Measure until cancelled."""
        try:
            while True:
                try:
                    await self._pauses.fresh()
                    self._judge({lag.topic: lag.records for lag in await self._watch.read()})
                except TemporaryError as error:  # Kafka is away: who reads hears of it too
                    log.warning("brake", reason=error.reason)
                await asyncio.sleep(EVERY)
        finally:
            await self._watch.close()
            await self._pauses.stop()

    def _judge(self, lags: dict[str, int]) -> None:
        """Held above a bound until below half of it."""
        part = 2 if self.why else 1
        behind = [f"held: {lags[topic]:,} {what}" for topic, (most, what) in self._bounds.items() if lags.get(topic, 0) * part > most]
        if paused := self._pauses.why("connection", self._connection):
            behind.insert(0, f"held: {paused}")
        self.why = behind[0] if behind else ""
