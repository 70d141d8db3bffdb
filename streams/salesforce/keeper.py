"""Keeps the state of one snapshot run: in Kafka together with the rows, alive by a beat, and obedient to what was asked of the run.

Whoever keeps a run has fenced its predecessor. Between two reads, and each second while Salesforce or the limits guard lets one wait, the
reader comes to `gate`, which holds it while the run is paused or what it feeds is behind, and sends it home when the run was stopped.
"""

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import structlog

from models.errors import HeadraceError, SettingsError, TemporaryError
from models.scrub import scrub
from models.settings import Settings
from streams.engine.stage import Output
from streams.follow import Followed
from streams.publish import TransactionalPublisher
from streams.salesforce.retry import ended, retried
from streams.salesforce.runs import Run, State, parse_run, parse_wish, snapshot_runs, wish_key
from streams.topics import Topics

log = structlog.get_logger()

BEAT = 3.0
"""Seconds between two signs of life."""
RATE_SECONDS = 15.0
"""The rate is that of so long."""
WHAT = "snapshot"
OWNER = f"{socket.gethostname()}:{os.getpid()}"

Progress = Callable[[Run], None]
T = TypeVar("T")


class StoppedError(Exception):
    """A person stopped the run."""


class Keeper:
    """The one run. `why`: what holds all floods now, "" while nothing does."""

    def __init__(self, settings: Settings, run: Run, progress: Progress | None, why: Callable[[], str]) -> None:
        self.at, self._settings = run, settings
        self._topics, self._progress, self._why = Topics(settings.installation), progress, why
        self._publisher = TransactionalPublisher(settings, f"{settings.installation}.snapshot.{run.run}")
        self._asked = Followed(settings, self._topics.runs)
        self._lock = asyncio.Lock()
        self._held = self._waits = ""
        self._sent = time.monotonic()
        self._rates: deque[tuple[float, int]] = deque()
        self._beat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fence the predecessor, then read how far it came. Raises FatalError, SettingsError."""
        await retried(self._publisher.start, WHAT)
        if (known := (await retried(lambda: snapshot_runs(self._settings), WHAT)).get(self.at.run)) is not None:
            if known.source != self.at.source:
                raise SettingsError(f"run {self.at.run} is one of {known.source}, not of {self.at.source}")
            self.at = known
        self._beat = asyncio.create_task(self._beats())

    async def leave(self) -> None:
        """Say that nobody works on it now, and close."""
        if self._beat is not None:
            await ended(self._beat)
            with suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(2.0):
                    if self.at.open and self.at.owner:
                        await self._publisher.send([replace(self.at, owner="").output(self._topics)])
        await self._publisher.stop()
        await self._asked.stop()

    async def keep(self, at: Run, rows: Sequence[Output] = ()) -> None:
        """The rows and where the run is after them, in one transaction. Raises FatalError."""
        async with self._lock:
            at = replace(at, owner=OWNER, rate=self._rate(at))
            outputs = [*rows, at.output(self._topics)]
            if not at.open:
                outputs.append(Output(self._topics.runs, wish_key(at.run).encode(), None))
            await retried(lambda: self._publisher.send(outputs), WHAT)
            self._told(at)

    async def gate(self) -> None:
        """Returns when the next rows may be read. Raises StoppedError, FatalError."""
        while True:
            if self._beat is not None and self._beat.done():
                self._beat.result()
            want = parse_wish(await retried(lambda: self._asked.get(wish_key(self.at.run)), WHAT))
            if want == "stop":
                raise StoppedError
            self._held = held = "paused" if want == "pause" else self._why()
            if not held:
                self.at = replace(self.at, state="running", note="")
                return
            if (held, want == "pause") != (self.at.note, self.at.state == "paused"):
                if not self.at.note:
                    log.info("snapshot waits", run=self.at.run, source=self.at.source, reason=held)
                await self._say("paused" if want == "pause" else "running", held)
            await asyncio.sleep(1.0)

    async def note(self, text: str) -> None:
        """Say what it waits for."""
        if text != self.at.note:
            await self._say(self.at.state, text)

    async def read(self, call: Callable[[], Awaitable[T]]) -> T:
        """`retried`; while the limits guard or Salesforce lets it wait, the beat says why, and what is asked of the run is obeyed.

        Raises StoppedError too.
        """

        async def wait(why: str, seconds: float) -> None:
            until = time.monotonic() + seconds
            self._waits = f"waits: {scrub(why, 300)}"
            while (left := until - time.monotonic()) > 0:
                await self.gate()
                await asyncio.sleep(min(left, 1.0))

        async def once() -> T:
            self._waits = ""
            return await call()

        return await retried(once, WHAT, wait=wait)

    async def jobs(self) -> set[str]:
        """Bulk jobs that runs name, this one among them. Raises TemporaryError, FatalError."""
        return {run.job for run in (await snapshot_runs(self._settings)).values()}

    async def _say(self, state: State, note: str) -> None:
        """Not of what `at` was before the lock: rows may be on their way."""
        async with self._lock:
            at = replace(self.at, state=state, note=note, owner=OWNER, rate=self._rate(self.at))
            await retried(lambda: self._publisher.send([at.output(self._topics)]), WHAT)
            self._told(at)

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(BEAT / 2)
            if time.monotonic() - self._sent < BEAT:
                continue
            with suppress(TemporaryError):  # it is no news that Kafka is away
                async with self._lock:
                    at = replace(self.at, owner=OWNER, rate=self._rate(self.at), note=self._held or self._waits or self.at.note)
                    await self._publisher.send([at.output(self._topics)])
                    self._told(at)

    def _told(self, at: Run) -> None:
        self.at, self._sent = at, time.monotonic()
        if self._progress is not None:
            self._progress(at)

    def _rate(self, at: Run) -> float:
        now = time.monotonic()
        if self._rates and self._rates[-1][1] > at.rows:
            self._rates.clear()  # it began anew
        self._rates.append((now, at.rows))
        while len(self._rates) > 2 and now - self._rates[0][0] > RATE_SECONDS:
            self._rates.popleft()
        first, rows = self._rates[0]
        return round((at.rows - rows) / (now - first), 1) if now - first > 0.5 else at.rate


async def others(settings: Settings, run: Run) -> bool:
    """Whether another process works on the run. After a kill -9 on another machine this takes two beats to say no."""
    host, _, pid = run.owner.rpartition(":")
    if not run.open or run.owner in ("", OWNER) or (host == socket.gethostname() and not _lives(pid)):
        return False
    followed, until = Followed(settings, Topics(settings.installation).runs), time.monotonic() + 3 * BEAT
    try:
        while time.monotonic() < until:
            raw = await retried(lambda: followed.get(run.run), WHAT)
            now = parse_run(run.run.encode(), raw)
            if now is None or not now.open or not now.owner:
                return False
            if now.at != run.at:
                return True
            await asyncio.sleep(BEAT / 3)
        return False
    finally:
        await followed.stop()


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
