"""Every panel has something to show in a real Prometheus, and the alerts fire when they should."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.panels import DEPLOY, ask, check_panels, prometheus_over, queries, without_prometheus

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(bool(without_prometheus()), reason=without_prometheus() or "-")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes a process with a sample of every metric."""
    exporter = subprocess.Popen([sys.executable, "-m", "tests.support.exporter"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert exporter.stdout is not None
        address = exporter.stdout.readline().strip()
        with prometheus_over([address], tmp_path_factory.mktemp("prometheus")) as url:
            yield url
    finally:
        exporter.kill()
        exporter.wait(20)


def test_every_panel_answers_with_data(prometheus: str) -> None:
    deadline, empty = time.monotonic() + 60, ["not asked yet"]
    while empty and time.monotonic() < deadline:
        empty = check_panels(prometheus)
        time.sleep(0.5)
    assert empty == []


def test_a_panel_without_data_and_a_broken_query_are_found(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(prometheus, "headrace_no_such_metric") == []
    with pytest.raises(ValueError, match="parse error"):
        ask(prometheus, "sum by (")
    query = queries()[0]._replace(expr="headrace_no_such_metric")
    monkeypatch.setattr("tests.support.panels.queries", lambda: [query])
    assert check_panels(prometheus) == [f"{query.panel}: headrace_no_such_metric"]


@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", str(DEPLOY / "prometheus" / "alerts.yml")],
        ["check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml")],
        ["test", "rules", str(ROOT / "tests" / "data" / "alerts_test.yml")],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_agrees(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
