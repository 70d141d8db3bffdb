"""How a writer reaches its target: started at the first need, within its rate, each call limited in time, all under the guard.

It decides nothing about records and keeps nothing but the target's connection state.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from aiolimiter import AsyncLimiter

from agents.guard import Guard
from agents.targets.base import Columns, Effect, TargetLike
from models.errors import HeadraceError, TemporaryError
from models.write import WriteResult
from streams import metrics
from streams.engine.stage import Partition

T = TypeVar("T")

RATE_SECONDS = 60.0
"""The longest wait for the rate that is declared to the watchdog; behind more calls than that the target is hopelessly slow."""


class Calls:
    """The calls of one process to one target. `seconds` limits one call: below the drain deadline, so none outlives its partition."""

    def __init__(self, name: str, target: TargetLike, objects: Mapping[str, Columns], guard: Guard, seconds: float) -> None:
        self.name, self.target, self.guard, self.seconds = name, target, guard, seconds
        self._objects = objects
        self._started = False
        self._starting = asyncio.Lock()
        self._limiter: AsyncLimiter | None = None
        self._limit = 0.0

    async def start(self, partition: Partition) -> None:
        """Start the target, once, inside the guard: one that is down delays nobody else."""
        if not self._started:
            await self.guard.call(partition, self._start, self._probe, self.seconds)

    async def write(self, effects: Sequence[Effect], partition: Partition) -> list[WriteResult]:
        """One call, repeated as the guard says. Raises what `Guard.call` raises."""
        alone = self.target.alone(effects[0]) if len(effects) == 1 else None
        call = partial(self._write, effects, partition, 1.0 if alone is None else alone)
        return await self.guard.call(partition, call, self._probe, self.seconds)

    async def _start(self) -> None:
        async with self._starting:
            if not self._started:
                await self._timed(partial(self.target.start, self._objects))
                self._started = True

    async def _probe(self) -> None:
        await self._timed(self.target.probe)

    async def _write(self, effects: Sequence[Effect], partition: Partition, cost: float) -> list[WriteResult]:
        """When the rate allows it, if the partition is still ours then."""
        await self._wait_for_rate(partition, cost)
        started, outcome = time.monotonic(), "ok"
        try:
            return await self._timed(partial(self.target.write, effects))
        except HeadraceError as error:
            outcome = type(error).__name__
            raise
        finally:
            metrics.CALL_SECONDS.labels(self.name, outcome).observe(time.monotonic() - started)

    async def _wait_for_rate(self, partition: Partition, cost: float) -> None:
        """This process's share of the target's rate, evenly: no burst, so that several processes together stay below the limit."""
        if self.target.requests_per_second is None:
            return
        limit = self.target.requests_per_second * partition.share()
        if self._limiter is None or limit != self._limit:
            self._limiter, self._limit = AsyncLimiter(1, 1 / limit), limit
        started = time.monotonic()
        partition.waiting(f"rate limit of {self.name}", started + RATE_SECONDS + self.seconds)
        await self._limiter.acquire(cost)
        metrics.WAITED.labels(self.name).inc(time.monotonic() - started)
        self.guard.check(partition)

    async def _timed(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self.seconds):
                return await call()
        except TimeoutError:
            raise TemporaryError(f"target {self.name} did not answer within {self.seconds:g} s") from None
