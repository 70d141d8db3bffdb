"""One server process of ours: started, found again after a kill -9 of its starter, and stopped.

May stop only what it can prove to be ours: a pid file names the pid, the time that process started and a word of its command line, and
all three must fit. A recycled pid is left alone.
"""

import contextlib
import ctypes
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

Progress = Callable[[str], None]
"""Told, in a few words, what is being done; never called after start() has returned."""

LOCALHOST = "127.0.0.1"
BLOCK = 100
NO_PORT = f"No free TCP port between 20000 and 32000 on {LOCALHOST}. Stop what listens there, or choose a port."
_PR_SET_PDEATHSIG = 1
_CLOCK_TOLERANCE = 2.0  # seconds; psutil derives a start time from the boot time, which NTP may move a little


class LocalServiceError(RuntimeError):
    """A local server could not be started or stopped; the message says which, why, and where its log is."""


def quiet(_: str) -> None:
    """A Progress for nobody."""


@dataclass(frozen=True)
class Owner:
    """The unprivileged user a server runs as when we are root."""

    name: str
    uid: int
    gid: int


@cache
def _spawner() -> ThreadPoolExecutor:
    # PR_SET_PDEATHSIG fires when the starting *thread* ends. All servers are started from this one, which lives as long as the process.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-services")


def _die_with_parent(signal_number: int) -> Callable[[], None]:
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def preexec() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal_number)
            if os.getppid() != parent:  # it died before we could ask
                os._exit(1)

    return preexec


def free_port() -> int:
    """A TCP port of localhost that nobody listens on, nor will: no other process is given it, and this one not soon again.

    It lies below the range from which the system takes ports of outgoing connections: a client's own port could otherwise be the server's
    while the server is being restarted.
    """
    _, ports = _block()
    for port in itertools.islice(ports, BLOCK - 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOCALHOST, port))
                return port
    raise LocalServiceError(NO_PORT)


@cache
def _block() -> tuple[socket.socket, Iterator[int]]:
    """Ports that are this process's as long as it lives: nobody else can have the UDP port before them, which serves for nothing else."""
    for first in random.SystemRandom().sample(range(20_000, 32_000, BLOCK), 12_000 // BLOCK):
        lock = socket.socket(type=socket.SOCK_DGRAM)
        try:
            lock.bind((LOCALHOST, first))
        except OSError:
            lock.close()
        else:
            return lock, itertools.cycle(range(first + 1, first + BLOCK))
    raise LocalServiceError(NO_PORT)


def _ended(process: psutil.Process, signal_number: signal.Signals, timeout: float) -> bool:
    """Send the signal; whether the process, which is not our child, ended within `timeout` seconds.

    A zombie has ended: where nobody reaps orphans (a container without an init) it stays in the process table.
    """
    deadline = time.monotonic() + timeout
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


class ServerProcess:
    """A server process with its pid file and log in `folder`.

    `marker` is a text that stands in the command line (the data folder), `stop_signal` the one that stops it in good order.
    """

    def __init__(self, name: str, folder: Path, marker: str, stop_signal: signal.Signals) -> None:
        self.name = name
        self.pid_file = folder / "process.json"
        self.log = folder / "server.log"
        self._marker = marker
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the process this object started, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def spawn(self, command: Sequence[str | Path], env: dict[str, str], owner: Owner | None = None) -> None:
        """Start `command`, its output going to the log. Returns at once; the caller finds out when it is ready."""
        _spawner().submit(self._spawn, [str(part) for part in command], env, owner).result()

    def _spawn(self, command: list[str], env: dict[str, str], owner: Owner | None) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us only; the servers stop after those who use them
                user=owner.uid if owner else None,
                group=owner.gid if owner else None,
                extra_groups=[] if owner else None,
                preexec_fn=_die_with_parent(self._stop_signal),
            )
        with contextlib.suppress(psutil.NoSuchProcess):
            created = psutil.Process(self._process.pid).create_time()
            self.pid_file.write_text(json.dumps({"pid": self._process.pid, "created": created}))

    def exited(self) -> int | None:
        """The exit code when the process has ended, else None."""
        return self._process.poll() if self._process is not None else 0

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of the log, for an error message."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, timeout: float = 15.0) -> None:
        """Stop in good order; after `timeout` seconds, kill. Does nothing when the process is not running."""
        if self._process is not None:
            self._end(self._process, self._stop_signal, timeout)

    def kill(self) -> None:
        """kill -9, as a crash would; returns when its children, which end by themselves, are gone too."""
        if self._process is not None:
            children: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(self._process.pid).children(recursive=True)
            self._end(self._process, signal.SIGKILL, 15.0)
            for child in psutil.wait_procs(children, timeout=15.0)[1]:
                child.kill()

    def _end(self, process: subprocess.Popen[bytes], signal_number: signal.Signals, timeout: float) -> None:
        process.send_signal(signal_number)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        self.pid_file.unlink(missing_ok=True)

    def stop_leftover(self, timeout: float = 15.0) -> bool:
        """Stop what a killed command left running. True when there was something."""
        try:
            recorded = json.loads(self.pid_file.read_text())
            process = psutil.Process(int(recorded["pid"]))
            same = abs(process.create_time() - float(recorded["created"])) < _CLOCK_TOLERANCE
            ours = same and any(self._marker in part for part in process.cmdline())
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            ours = False
        if ours and not _ended(process, self._stop_signal, timeout) and not _ended(process, signal.SIGKILL, timeout):
            raise LocalServiceError(f"{self.name} (pid {process.pid}), left by a killed command, does not end. Stop it by hand.")
        self.pid_file.unlink(missing_ok=True)
        return ours
