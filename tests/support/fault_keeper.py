"""A process of the fault suite that is started again whenever it ends, as its parent does in life, and what a test does to it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

HUNG = 90.0
ROOT = Path(__file__).parents[2]
Command = Callable[[bool], list[str]]
"""What to start; True for the first start."""


class Hung(Exception):  # noqa: N818 - what happened, not a fault of ours
    """Nothing came for longer than a test may wait."""


async def wait_for(true: Callable[[], Awaitable[bool]], why: Callable[[], str], seconds: float = HUNG) -> None:
    """Ask until it is so."""
    until = asyncio.get_running_loop().time() + seconds
    while not await true():
        if asyncio.get_running_loop().time() > until:
            raise Hung(why())
        await asyncio.sleep(0.05)


class Keeper:
    """One process. `state` is its folder, the log lies beside it; `environ` is added to ours."""

    def __init__(self, state: Path, command: Command, environ: Mapping[str, str]) -> None:
        self._command, self._environ = command, environ
        self.state, self.log = state, state.parent / f"{state.name}.log"
        self.codes: list[int] = []
        self.pids: list[int] = []
        self.process: asyncio.subprocess.Process | None = None
        self._kept = True
        self._restarting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def keep(self) -> "Keeper":
        """Begin."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        self._task = asyncio.create_task(self._keep())
        return self

    async def _keep(self) -> None:
        while True:
            async with self._restarting:
                if not self._kept:
                    return
                with self.log.open("ab") as out:
                    command, environ = self._command(not self.pids), {**os.environ, **self._environ}
                    self.process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out, cwd=ROOT, env=environ)
                self.pids.append(self.process.pid)
            self.codes.append(await self.process.wait())
            await asyncio.sleep(0.2)

    def __str__(self) -> str:
        return f"{self.state.name} {self.codes}"

    def end_of_log(self) -> str:
        """For an error."""
        return self.log.read_text()[-2500:]

    @property
    def kept(self) -> bool:
        """Whether it will be started again."""
        return self._kept

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self.process is not None
        return self.process.pid

    def send(self, sign: int) -> None:
        """A signal to the process, if it runs."""
        with suppress(ProcessLookupError):
            if self.process is not None and self.process.returncode is None:
                self.process.send_signal(sign)

    async def kill(self) -> None:
        """kill -9 of the process that runs, or that starts next."""
        await wait_for(lambda: _true(self.process is not None and self.process.returncode is None), lambda: f"{self} never started")
        self.send(signal.SIGKILL)
        await self.ended(len(self.pids))

    async def said(self, text: str, times: int = 1) -> None:
        """Wait until its log says so."""
        await wait_for(lambda: _true(self.log.read_text().count(text) >= times), lambda: f"{self} never said {text!r}\n{self.end_of_log()}")

    async def ended(self, times: int) -> int:
        """Wait until it ended so often; the last exit code."""
        await wait_for(lambda: _true(len(self.codes) >= times), lambda: f"{self} did not end {times} times\n{self.end_of_log()}")
        return self.codes[times - 1]

    async def while_down(self, work: Callable[[], None]) -> None:
        """Kill it and do something before it starts again."""
        async with self._restarting:
            self.send(signal.SIGKILL)
            if self.process is not None:
                await self.process.wait()
            work()

    async def stop(self, sign: int = signal.SIGTERM) -> int:
        """End it for good; the exit code."""
        async with self._restarting:
            self._kept = False
            self.send(signal.SIGCONT)
            self.send(sign)
        assert self._task is not None
        async with asyncio.timeout(HUNG):
            await self._task
        return self.codes[-1]


async def _true(value: bool) -> bool:
    return value
