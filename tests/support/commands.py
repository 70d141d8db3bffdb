"""`headrace …` typed in a folder by a person, in a session of its own, and whether it leaves anything behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def typed(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, begun."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def family_when(command: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    """The processes of a command once one with this word in its command line runs."""
    until = time.monotonic() + 120
    while time.monotonic() < until and command.poll() is None:
        parent = psutil.Process(command.pid)
        family = [parent, *parent.children(recursive=True)]
        for process in family[1:]:
            try:
                if word in process.cmdline():
                    return family
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    raise AssertionError("the command never started its processes")


def nothing_left(folder: Path, family: list[psutil.Process], folders: str) -> None:
    """None of the processes is alive, and no folder of this pattern stands below .headrace."""
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, [process.cmdline() for process in alive]
    assert list((folder / ".headrace").glob(folders)) == []
