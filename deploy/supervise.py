"""A small parent and a child that is started again: a process of ours that meets a fault ends, and this is what brings it back.

The parent does nothing else, holds no connection and knows no Kafka, so that it has no fault of its own to meet.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

import structlog

RESTARTS, PROCESS = "HEADRACE_RESTARTS", "HEADRACE_PROCESS"
"""What the child is told by its environment: how often it was started again, and a process id that survives that."""
STOPPED, WRONG_SETTINGS, KILLED = 0, 2, 70
PR_SET_PDEATHSIG = 1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before a restart: first, twice that, … up to `most`; from the first again after a child that lived `healthy` seconds."""

    first: float = 0.5
    most: float = 30.0
    healthy: float = 60.0


class Supervisor:
    """Runs one command until it ends by itself (exit code 0), cannot be run (2, its settings), or is told to stop.

    role     word for logs and for the process id
    grace    seconds a child may take to stop before it is killed
    """

    def __init__(self, command: Sequence[str], role: str, *, grace: float, backoff: Backoff = Backoff()) -> None:
        self.command, self.role, self.grace, self.backoff = list(command), role, grace, backoff
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = 0

    def run(self, environ: Mapping[str, str]) -> int:
        """Exit code for the parent: 0 after a clean end or stop, 2 for settings, 70 when the child had to be killed.

        Takes SIGTERM and SIGINT over for its time and passes them on as SIGTERM; a second one kills the child.
        """
        before: dict[signal.Signals, _Handler] = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._kill)
        try:
            return self._run({**environ, PROCESS: f"{self.role}@{socket.gethostname()}:{os.getpid()}"})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, environ: Mapping[str, str]) -> int:
        restarts, tries = 0, 0
        while True:
            began = time.monotonic()
            code = self._once({**environ, RESTARTS: str(restarts)})
            if self._asked:
                return KILLED if code == -signal.SIGKILL else STOPPED if code <= 0 else code
            if code in (STOPPED, WRONG_SETTINGS):
                return code
            lived = time.monotonic() - began
            tries = 0 if lived >= self.backoff.healthy else tries
            seconds = min(self.backoff.most, self.backoff.first * 2.0 ** min(tries, 20))
            restarts, tries = restarts + 1, tries + 1
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            log.error(
                "process ended, starting it again", role=self.role, how=how, lived=round(lived, 1), restarts=restarts, seconds=seconds
            )
            if self._pause(seconds):
                return STOPPED

    def _once(self, environ: dict[str, str]) -> int:
        # Its own process group: Ctrl-C reaches the parent alone, which passes it on once.
        self._child = subprocess.Popen(self.command, env=environ, process_group=0, preexec_fn=_die_with(os.getpid()))
        if self._asked:  # asked between the last look and the start
            self._end(self._child)
        try:
            return self._child.wait()
        finally:
            self._child = None

    def _pause(self, seconds: float) -> bool:
        """Wait; True when a stop came in the meantime."""
        # A sleep would not hear a signal that came just before it; blocked, it is pending, and sigtimedwait takes it.
        numbers = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            return bool(self._asked) or signal.sigtimedwait(numbers, seconds) is not None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._asked += 1
        if self._asked > 1:
            self._kill(number, None)
        elif self._child is not None:
            self._end(self._child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.grace)
        child.terminate()

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.kill()


_Handler = Callable[[int, FrameType | None], object] | int | None


def _die_with(parent: int) -> Callable[[], None] | None:
    """For the child, between fork and exec: the kernel kills it when the parent is gone (Linux; elsewhere nothing does)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(KILLED)

    return bind
