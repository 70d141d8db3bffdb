"""`headrace soak` as a person types it: a short one with a seed nobody chose must hold, and Ctrl-C in the middle leaves nothing behind."""

import json
import signal
from pathlib import Path

import pytest

from tests.support.commands import family_when, nothing_left, typed

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(420)]


def test_a_short_soak_with_a_fresh_seed_holds(tmp_path: Path) -> None:
    soak = typed(tmp_path, "soak", "--for", "60s", "--json")
    family = family_when(soak, "worker")
    printed, told = soak.communicate(timeout=400)
    print(told)
    assert printed, told
    report = json.loads(printed)
    print({name: report[name] for name in ("seed", "compared", "events_in", "writes_out", "webhooks", "dead_letters", "latency_ms")})
    assert report["holds"] and soak.returncode == 0, f"seed {report['seed']}: {report['problems']}\n{told}"
    assert report["events_in"] > 50 and report["webhooks"]["accepted"] > 5 and len(report["faults"]) > 2, "it did next to nothing"
    nothing_left(tmp_path, family, "soak-*")


def test_ctrl_c_leaves_no_process_and_no_folder_behind(tmp_path: Path) -> None:
    soak = typed(tmp_path, "soak", "--for", "10m")
    family = family_when(soak, "receive")
    soak.send_signal(signal.SIGINT)
    soak.communicate(timeout=120)
    assert soak.returncode == 130
    nothing_left(tmp_path, family, "soak-*")
