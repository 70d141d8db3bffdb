"""Which routes the other workers have, while a flow is changed worker by worker. Reads heartbeats, decides nothing.

A worker with the new flow sends writes of a new route to partitions of workers that do not know it yet. They must not take it for one that
was taken out of the flow. No clock of ours is compared with another's: the age of a heartbeat is the broker's.
"""

import time

import orjson

from models.settings import Settings
from streams.consume import read_last
from streams.topics import Topics

ALIVE_MS = 20_000
"""Four heartbeats."""


class Elsewhere:
    """Of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topic = settings, Topics(settings.installation).processes
        self._routes: frozenset[str] = frozenset()
        self._read = float("-inf")

    async def routes(self, most_seconds: float) -> frozenset[str]:
        """Of every living worker, as heard at most so many seconds ago. Raises TemporaryError, FatalError (no such topic)."""
        if time.monotonic() - self._read > most_seconds:
            began = time.monotonic()
            last = (await read_last(self._settings, self._topic)).values()
            newest = max((record.timestamp for record in last), default=0)
            living = (record.value or b"" for record in last if record.timestamp > newest - ALIVE_MS)
            self._routes, self._read = frozenset(route for value in living for route in _routes(value)), began
        return self._routes


def _routes(value: bytes) -> list[str]:
    try:
        found = orjson.loads(value)["routes"]
    except (ValueError, TypeError, KeyError):
        return []  # another role, an older version, or not one of ours
    return [route for route in found if isinstance(route, str)] if isinstance(found, list) else []
