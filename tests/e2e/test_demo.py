"""`headrace demo` as a stranger types it: it ends by itself with a verdict, and Ctrl-C leaves no process behind."""

import json
import signal
from pathlib import Path

import pytest

from tests.support.commands import family_when, nothing_left, typed

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(240)]


def test_the_demo_ends_by_itself_and_finds_both_ends_equal(tmp_path: Path) -> None:
    demo = typed(tmp_path, "demo", "--for", "8s", "--json")
    printed, told = demo.communicate(timeout=200)
    assert demo.returncode == 0, printed + told
    figures = json.loads(printed)
    assert figures["equal"] is True
    assert figures["compared"]["person"] > 0
    assert figures["latency_ms"]["p50"] > 0


def test_ctrl_c_leaves_no_process_and_no_folder_behind(tmp_path: Path) -> None:
    demo = typed(tmp_path, "demo")
    family = family_when(demo, "worker")
    assert len(family) > 4, "the demo never started its processes"
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=90)
    nothing_left(tmp_path, family, "demo-*")
