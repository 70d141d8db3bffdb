"""When a bulk chunk is worked on: in the pauses of live work, or a moment after the bulk chunk before it.

All of a process runs in one loop, and a chunk of rows keeps it busy for as long as some hundred changes do. What is live takes many short
steps, to Kafka and back; without turns each of its steps would wait for a chunk of every partition that a snapshot fills.
"""

import asyncio
import time
from collections.abc import Callable

LIVE_SECONDS = 0.02
"""So long live chunks alone are worked on after a bulk chunk, where there are any; or half as long as that kept the loop busy."""
LOOK_SECONDS = 0.002


class Turns:
    """Of one process. `live`: whether a live chunk is under way."""

    def __init__(self, live: Callable[[], bool]) -> None:
        self._live, self._lock = live, asyncio.Lock()
        self._took = self._began = 0.0

    async def bulk(self, hurry: Callable[[], bool]) -> None:
        """Returns when a bulk chunk may be worked on. `hurry`: somebody live waits behind just this one."""
        async with self._lock:
            await asyncio.sleep(0)
            until = time.monotonic() + max(LIVE_SECONDS, self._took / 2)
            while self._live() and not hurry() and time.monotonic() < until:  # noqa: ASYNC110 - it ends by time as a rule
                await asyncio.sleep(LOOK_SECONDS)
        self._began = time.monotonic()
        asyncio.get_running_loop().call_soon(self._back)  # it goes on at once; the loop is back when it first waits for something

    def _back(self) -> None:
        self._took = time.monotonic() - self._began
