"""How a writer reaches its target: started at the first need, within its rate, each call limited in time, all under the guard.

It decides nothing about records and keeps nothing but the target's connection state. Where the target's rate is limited, what the
partitions of this process have ready goes into one call together, live before bulk: a call costs the same whatever it holds. One that
fails for another reason than that the target is away is made again for each partition alone: nobody answers for another's record.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from aiolimiter import AsyncLimiter

from agents.guard import Guard
from agents.targets.base import Columns, Effect, TargetLike
from models.errors import HeadraceError, PausedError, TemporaryError
from models.write import WriteResult
from streams import metrics
from streams.engine.stage import Abandoned, Partition

T = TypeVar("T")

RATE_SECONDS = 60.0
"""The longest wait for the rate that is declared to the watchdog; behind more calls than that the target is hopelessly slow."""


Objects = Callable[[], Mapping[str, Columns]]
"""By object the columns that the maps give it, as they are when asked."""


@dataclass(slots=True, eq=False)
class Waiting:
    """Effects of one partition that wait for a call; `bytes` as they are counted. `alone`: not together with others."""

    effects: Sequence[Effect]
    partition: Partition
    bytes: int
    alone: bool = False
    answer: asyncio.Future[list[WriteResult]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Calls:
    """The calls of one process to one target, which shall hold `objects`.

    `seconds` limits one call: below the drain deadline, so none outlives its partition.
    """

    def __init__(self, name: str, target: TargetLike, objects: Objects, guard: Guard, seconds: float) -> None:
        self.name, self.target, self.guard, self.seconds = name, target, guard, seconds
        self._objects = objects
        self._made: Mapping[str, Columns] = {}
        self._asked, self._started = 1, 0
        self._starting = asyncio.Lock()
        self._limiter: AsyncLimiter | None = None
        self._limit = 0.0
        self._live: deque[Waiting] = deque()
        self._bulk: deque[Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Task[None] | None = None

    async def start(self, partition: Partition) -> None:
        """Start the target, once and after each `extend`, inside the guard: one that is down delays nobody else."""
        if self._started < self._asked:
            await self.guard.call(partition, self._start, self._probe, self.seconds)

    def extend(self) -> None:
        """The columns are others now: before the next call the target is made to hold them."""
        self._asked += 1

    async def write(self, effects: Sequence[Effect], partition: Partition, *, bytes: int = 0, live: bool = True) -> list[WriteResult]:
        """One call, or a part of one, repeated as the guard says. Raises what `Guard.call` raises."""
        alone = self.target.alone(effects[0]) if len(effects) == 1 else None
        if self.target.requests_per_second is None or alone is not None:
            call = partial(self._write_alone, effects, partition, 1.0 if alone is None else alone)
        else:
            call = partial(self._write_together, effects, partition, bytes, live)
        return await self.guard.call(partition, call, self._probe, self.seconds)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [task for task in (self._sending, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _start(self) -> None:
        async with self._starting:
            if (asked := self._asked) > self._started:
                # Those it was made to hold before stay in what is written: what was shaped by the map before may still be on its way.
                wanted = {**self._made, **self._objects()}
                objects = {name: {**self._made.get(name, {}), **columns} for name, columns in wanted.items()}
                await self._timed(partial(self.target.start, objects))
                self._made, self._started = objects, asked

    async def _probe(self) -> None:
        await self._timed(self.target.probe)

    async def _write_alone(self, effects: Sequence[Effect], partition: Partition, cost: float) -> list[WriteResult]:
        """When the rate allows it, if the partition is still ours then."""
        self._declare(partition)
        await self._wait_for_rate(partition.share(), cost)
        self.guard.check(partition)
        return await self._write(effects)

    async def _write_together(self, effects: Sequence[Effect], partition: Partition, bytes: int, live: bool) -> list[WriteResult]:
        """With what others have ready when the rate allows the next call."""
        one = Waiting(effects, partition, bytes)
        (self._live if live else self._bulk).append(one)
        self._declare(partition)
        self._send()
        return await one.answer

    def _send(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        """Calls, as the rate allows them, until nothing waits; several may be under way."""
        while queue := self._live or self._bulk:
            await self._wait_for_rate(queue[0].partition.share(), 1.0)
            if together := self._together():
                task = asyncio.create_task(self._answer(together))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _together(self) -> list[Waiting]:
        """What goes into the next call: of partitions that are still ours, and of whom somebody waits."""
        found: list[Waiting] = []
        records = size = 0
        for queue in (self._live, self._bulk):
            while queue:
                one = queue[0]
                if not self._wanted(one):
                    queue.popleft()
                    continue
                records, size = records + len(one.effects), size + one.bytes
                full = records > self.target.batch_records or size > self.target.batch_bytes
                if found and (one.alone or found[0].alone or full):
                    return found
                found.append(queue.popleft())
        return found

    def _wanted(self, one: Waiting) -> bool:
        if one.answer.done():  # who waited was cancelled
            return False
        try:
            self.guard.check(one.partition)
        except Abandoned as error:
            one.answer.set_exception(error)
            return False
        return True

    async def _answer(self, together: Sequence[Waiting]) -> None:
        """One call; everybody gets his part of what it answers or raises."""
        call = asyncio.create_task(self._write([effect for one in together for effect in one.effects]))
        try:
            await asyncio.wait([call])
        finally:
            call.cancel()
        error = call.exception()
        away = isinstance(error, PausedError) or (isinstance(error, TemporaryError) and error.whole)
        if len(together) > 1 and error is not None and not away:
            for one in together:
                one.alone = True
                self._declare(one.partition)
            self._live.extendleft(reversed(together))
            self._send()
            return
        results = [] if error else call.result()
        for one in together:
            mine, results = results[: len(one.effects)], results[len(one.effects) :]
            if one.answer.done():
                continue
            if error is None:
                one.answer.set_result(mine)
            else:
                one.answer.set_exception(error)

    async def _write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        started, outcome = time.monotonic(), "ok"
        try:
            return await self._timed(partial(self.target.write, effects))
        except HeadraceError as error:
            outcome = type(error).__name__
            raise
        finally:
            metrics.CALL_SECONDS.labels(self.name, outcome).observe(time.monotonic() - started)

    async def _wait_for_rate(self, share: float, cost: float) -> None:
        """This process's share of the target's rate, evenly: no burst, so that several processes together stay below the limit."""
        if self.target.requests_per_second is None:
            return
        limit = self.target.requests_per_second * share
        if self._limiter is None or limit != self._limit:
            self._limiter, self._limit = AsyncLimiter(1, 1 / limit), limit
        started = time.monotonic()
        await self._limiter.acquire(cost)
        metrics.WAITED.labels(self.name).inc(time.monotonic() - started)

    def _declare(self, partition: Partition) -> None:
        partition.waiting(f"rate limit of {self.name}", time.monotonic() + RATE_SECONDS + self.seconds)

    async def _timed(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self.seconds):
                return await call()
        except TimeoutError:
            raise TemporaryError(f"target {self.name} did not answer within {self.seconds:g} s") from None
