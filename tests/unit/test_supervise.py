"""The parent brings a child back, passes a stop on, gives up where a restart cannot help, and never leaves a child behind.

Real processes: the parent runs as a program of its own, the children are one-line Pythons that write what happened to a file.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PARENT = """
import os, sys
from deploy.supervise import Backoff, Supervisor
backoff = Backoff(first=float(sys.argv[1]), most=float(sys.argv[2]), healthy=float(sys.argv[3]))
sys.exit(Supervisor([sys.executable, "-c", sys.argv[5]], "worker", grace=float(sys.argv[4]), backoff=backoff).run(os.environ))
"""
NOTE = """
import os, signal, sys, time
def note(*words):
    with open(os.environ["NOTES"], "a") as file:
        print(*words, file=file, flush=True)
restarts = int(os.environ["HEADRACE_RESTARTS"])
"""
WAIT_FOR_TERM = """
signal.signal(signal.SIGTERM, lambda *_: (note("term"), sys.exit(0)))
note("up", os.getpid())
while True: signal.pause()
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


@pytest.fixture
def start(notes: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(
        child: str, *, first: float = 0.01, most: float = 0.05, healthy: float = 60, grace: float = 20, own: str = NOTE
    ) -> subprocess.Popen[bytes]:
        numbers = [str(number) for number in (first, most, healthy, grace)]
        started.append(subprocess.Popen([sys.executable, "-c", PARENT, *numbers, own + child], env={**os.environ, "NOTES": str(notes)}))
        return started[-1]

    yield run
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def wait_for(notes: Path, word: str, process: subprocess.Popen[bytes]) -> list[str]:
    """The line that begins with `word`, once it is there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (process.poll() is None or word in notes.read_text()):
        for line in notes.read_text().splitlines():
            if line.startswith(word):
                return line.split()
        time.sleep(0.02)
    raise AssertionError(f"no {word!r} in {notes.read_text()!r}")


def test_a_child_that_fails_or_is_killed_is_started_again_and_told_how_often(start: Start, notes: Path) -> None:
    parent = start(
        "note(restarts, os.environ['HEADRACE_PROCESS'])\n"
        "if restarts == 0: sys.exit(70)\n"
        "if restarts == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert parent.wait(30) == 0
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert [int(number) for number, _ in lines] == [0, 1, 2]
    assert {name for _, name in lines} == {f"worker@{os.uname().nodename}:{parent.pid}"}


@pytest.mark.parametrize("code", [0, 2])
def test_a_clean_end_and_wrong_settings_are_not_tried_again(start: Start, notes: Path, code: int) -> None:
    parent = start(f"note('ran'); sys.exit({code})")
    assert parent.wait(30) == code
    assert notes.read_text().split() == ["ran"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_child_once_and_ends_both_cleanly(start: Start, notes: Path, number: signal.Signals) -> None:
    parent = start(WAIT_FOR_TERM)
    wait_for(notes, "up", parent)
    parent.send_signal(number)
    assert parent.wait(30) == 0
    assert notes.read_text().splitlines()[1:] == ["term"]


def test_a_stop_during_the_wait_before_a_restart_is_heard(start: Start, notes: Path) -> None:
    parent = start("note('down', os.getpid()); sys.exit(1)", first=600, most=600)
    _, pid = wait_for(notes, "down", parent)
    while psutil.pid_exists(int(pid)):
        time.sleep(0.02)
    parent.terminate()
    assert parent.wait(30) == 0
    assert notes.read_text().count("down") == 1


def test_a_child_that_does_not_stop_is_killed_after_the_grace(start: Start, notes: Path) -> None:
    parent = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); note('up', os.getpid())\nwhile True: signal.pause()", grace=0.2)
    _, pid = wait_for(notes, "up", parent)
    parent.terminate()
    assert parent.wait(30) == 70
    assert not psutil.pid_exists(int(pid))


def test_a_second_stop_kills_at_once(start: Start, notes: Path) -> None:
    parent = start(
        "signal.signal(signal.SIGTERM, lambda *_: note('asked')); note('up', os.getpid())\nwhile True: signal.pause()", grace=600
    )
    wait_for(notes, "up", parent)
    parent.terminate()
    wait_for(notes, "asked", parent)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) == 70


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the child of a dead parent")
def test_the_child_of_a_killed_parent_does_not_live_on(start: Start, notes: Path) -> None:
    parent = start(WAIT_FOR_TERM)
    _, pid = wait_for(notes, "up", parent)
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_waits_grow_to_the_limit_and_begin_anew_after_a_healthy_life(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy import supervise

    lives = iter([0, 0, 0, 0, 90, 0, 1])  # seconds each child lives; the last one ends cleanly
    clock, waits = [0.0], list[float]()

    class Child(supervise.Supervisor):
        def _once(self, environ: dict[str, str]) -> int:
            clock[0] += (life := next(lives))
            return 0 if life == 1 else 70

        def _pause(self, seconds: float) -> bool:
            waits.append(seconds)
            return False

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert Child(["x"], "worker", grace=1, backoff=supervise.Backoff(first=1, most=4, healthy=60)).run({}) == 0
    assert waits == [1, 2, 4, 4, 1, 2]
