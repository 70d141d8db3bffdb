"""Waiting for a Salesforce or a Kafka that is away: the source side's backoff. It catches only what models/errors.py calls passing."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from models.errors import PausedError, TemporaryError
from models.scrub import scrub

log = structlog.get_logger()
T = TypeVar("T")
Wait = Callable[[str, float], Awaitable[None]]
"""Told why and for how many seconds, it waits so long."""

BASE, CAP = 0.2, 30.0
PAUSE = 60.0
"""Seconds between probes of a connection that refuses us."""


class Backoff:
    """Seconds to the next attempt: with jitter, doubling, never nothing; `reset` after a success."""

    def __init__(self, base: float = BASE, cap: float = CAP, pause: float = PAUSE) -> None:
        self.base, self.cap, self.pause = base, cap, pause
        self._tries = 0

    def reset(self) -> None:
        """The next failure is a first one."""
        self._tries = 0

    def after(self, error: TemporaryError | PausedError) -> float:
        """How long to wait after this error."""
        if isinstance(error, PausedError):
            return self.pause
        own = random.uniform(self.base / 2, min(self.cap, self.base * 2.0 ** min(self._tries, 20)))
        self._tries += 1
        return own if error.retry_after is None else max(error.retry_after, self.base)


async def retried(action: Callable[[], Awaitable[T]], what: str, backoff: Backoff | None = None, wait: Wait | None = None) -> T:
    """`await action()` until it answers; a refused login is probed each minute. Other errors pass through. `wait`: instead of a sleep."""
    backoff = backoff or Backoff()
    while True:
        try:
            return await action()
        except (TemporaryError, PausedError) as error:
            seconds = backoff.after(error)
            log.warning("waiting", what=what, seconds=round(seconds, 1), reason=scrub(error.reason), paused=isinstance(error, PausedError))
            await (asyncio.sleep(seconds) if wait is None else wait(error.reason, seconds))


async def ended(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel them until they have ended: a cancellation that comes as a `wait_for` within returns is lost in Python 3.11."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1.0)
    for task in tasks:
        task.cancelled() or task.exception()  # seen
