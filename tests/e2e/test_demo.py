"""`headrace demo` as a stranger types it: it ends by itself with a verdict, and Ctrl-C leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(240)]


def _demo(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    (tmp_path / "home").mkdir()
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy", "demo", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def test_the_demo_ends_by_itself_and_finds_both_ends_equal(tmp_path: Path) -> None:
    demo = _demo(tmp_path, "--for", "8s", "--json")
    printed, told = demo.communicate(timeout=200)
    assert demo.returncode == 0, printed + told
    figures = json.loads(printed)
    assert figures["equal"] is True
    assert figures["compared"]["person"] > 0
    assert figures["latency_ms"]["p50"] > 0


def test_ctrl_c_leaves_no_process_and_no_folder_behind(tmp_path: Path) -> None:
    demo = _demo(tmp_path)
    family: list[psutil.Process] = []
    until = time.monotonic() + 120
    while time.monotonic() < until and demo.poll() is None:
        family = _family(demo.pid)
        if any("worker" in process.cmdline() for process in family if process.is_running()):
            break
        time.sleep(0.2)
    family = _family(demo.pid)
    assert len(family) > 4, "the demo never started its processes"
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=90)
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, [process.cmdline() for process in alive]
    assert len(gone) > 4
    assert list((tmp_path / ".headrace").glob("demo-*")) == []
