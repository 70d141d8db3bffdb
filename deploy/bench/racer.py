"""The processes of one contender: started, frozen while its work is written, thawed, weighed, ended.

Frozen by SIGSTOP, so that time begins with everything connected and warm, whatever the contender is written in.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from deploy.local.process import LocalServiceError, ServerProcess

ROOT = Path(__file__).resolve().parents[2]


class Racer:
    """Some processes with one name. `environ` is all they see of the environment, beside the path."""

    def __init__(self, name: str, folder: Path, commands: Sequence[Sequence[str]], environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._commands = commands
        self._processes: list[ServerProcess] = []
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        self._environ = kept | {"PYTHONPATH": str(ROOT)} | dict(environ or {})
        self._folder = folder
        self._cpu = 0.0

    def set(self, **environ: str) -> None:
        """More environment variables, before the start."""
        self._environ |= environ

    def start(self) -> None:
        """Start them all."""
        for number, command in enumerate(self._commands):
            folder = self._folder / f"{self.name}-{number}".replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            process = ServerProcess(self.name, folder, command[-1], signal.SIGKILL)
            more = {"HEADRACE_STATE_DIR": str(folder / "state")}
            process.spawn(command, self._environ | more)
            self._processes.append(process)

    def freeze(self) -> None:
        """Stop the clock for them."""
        self._signal(signal.SIGSTOP)
        self._cpu = self._seconds()

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def cpu(self) -> float:
        """Seconds of CPU since the freeze."""
        return self._seconds() - self._cpu

    def peak_mb(self) -> float:
        """Most memory each ever had, added up."""
        found = 0
        for process in self._all():
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found += next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        return found / 1024

    def check(self) -> None:
        """Raises LocalServiceError with the end of the log when one has ended."""
        for process in self._processes:
            if (code := process.exited()) is not None:
                raise LocalServiceError(f"{self.name} ended with {code}:\n{process.log_tail(25)}")

    def stop(self) -> None:
        """End them."""
        for process in self._processes:
            process.stop()
        self._processes.clear()

    def end(self, seconds: float = 30.0) -> None:
        """End them in good order, so that they leave their group."""
        for process in self._all():
            process.terminate()
            process.wait(seconds)
        self.stop()

    def _all(self) -> list[psutil.Process]:
        self.check()
        return [psutil.Process(process.pid) for process in self._processes]

    def _signal(self, number: int) -> None:
        for process in self._all():
            process.send_signal(number)

    def _seconds(self) -> float:
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._all()))


def python(module: str, argument: str) -> list[str]:
    """The command line of one of our own contenders."""
    return [sys.executable, "-P", "-m", module, argument]
