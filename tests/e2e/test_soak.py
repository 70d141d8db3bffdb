"""`headrace soak` as a person types it: a short one with a seed nobody chose must hold, and Ctrl-C in the middle leaves nothing behind."""

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

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(420)]


def _soak(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy", "soak", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_short_soak_with_a_fresh_seed_holds(tmp_path: Path) -> None:
    soak = _soak(tmp_path, "--for", "60s", "--json")
    family = _family_when(soak, "worker")
    printed, told = soak.communicate(timeout=400)
    print(told)
    assert printed, told
    report = json.loads(printed)
    print({name: report[name] for name in ("seed", "compared", "events_in", "writes_out", "webhooks", "dead_letters", "latency_ms")})
    assert report["holds"] and soak.returncode == 0, f"seed {report['seed']}: {report['problems']}\n{told}"
    assert report["events_in"] > 300 and report["webhooks"]["accepted"] > 20 and len(report["faults"]) > 8
    _nothing_left(tmp_path, family)


def test_ctrl_c_leaves_no_process_and_no_folder_behind(tmp_path: Path) -> None:
    soak = _soak(tmp_path, "--for", "10m")
    family = _family_when(soak, "receive")
    soak.send_signal(signal.SIGINT)
    soak.communicate(timeout=120)
    assert soak.returncode == 130
    _nothing_left(tmp_path, family)


def _family_when(soak: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    """The processes of a soak once one with this word in its command line runs."""
    until = time.monotonic() + 120
    while time.monotonic() < until and soak.poll() is None:
        parent = psutil.Process(soak.pid)
        family = [parent, *parent.children(recursive=True)]
        for process in family[1:]:
            try:
                if word in process.cmdline():
                    return family
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    raise AssertionError("the soak never started its processes")


def _nothing_left(folder: Path, family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, [process.cmdline() for process in alive]
    assert list((folder / ".headrace").glob("soak-*")) == []
