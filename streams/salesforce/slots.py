"""Calls of one process that may be under way at a time, and who goes first. It knows no org and no Kafka.

How many there may be is asked anew before each call, so that a process makes room for others as soon as it hears of them.
"""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count

ASK_SECONDS = 10.0
"""Who is first and finds no slot asks again after this: there may be more, though none became free."""


class Slots:
    """`most` tells how many there are now; at fewer than are in use none is taken back, and nobody is let in."""

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._used = 0
        self._left = asyncio.Event()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._busy = False
        """Somebody has the turn."""

    @asynccontextmanager
    async def slot(self, ready: Callable[[], Awaitable[None]], patience: float = 0.0) -> AsyncIterator[None]:
        """One call. Who comes within `patience` seconds, and has less of it, may pass; so nobody waits for ever.

        `ready` sees to it that `most` is right; it is called by one at a time, and no other task runs between its last return and the
        body. What it raises ends this call and no other.
        """
        async with self._turn(time.monotonic() + patience):
            await ready()
            while self._used >= self._most():
                self._left.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._left.wait(), ASK_SECONDS)
                await ready()
            self._used += 1
        try:
            yield
        finally:
            self._used -= 1
            self._left.set()

    @asynccontextmanager
    async def _turn(self, until: float) -> AsyncIterator[None]:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (until, next(self._numbers), turn))
        self._next()
        try:
            await turn
            yield
        finally:
            if not (turn.cancelled() or turn.cancel()):  # else it never had the turn
                self._busy = False
                self._next()

    def _next(self) -> None:
        while self._waiting and not self._busy:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self._busy = True
