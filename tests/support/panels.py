"""A real Prometheus for tests, and the question whether every panel of our dashboards has something to show there.

`check_panels(url)` is for any Prometheus that scraped a run; `prometheus_over(addresses, folder)` starts one (Debian package `prometheus`).
"""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
VARIABLES = {"$__rate_interval": "20s", "$__interval": "5s", "$__range": "5m"}


class Query(NamedTuple):
    """One query of one panel."""

    panel: str
    expr: str
    legend: str


def queries() -> list[Query]:
    """Every query of every panel of every dashboard."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found += [Query(panel["title"], t["expr"], t.get("legendFormat", "")) for t in panel.get("targets", ())]
    return found


def without_prometheus() -> str:
    """Why no Prometheus can be started here; empty when one can."""
    if os.environ.get("CI"):
        return "in CI nothing is installed for one test: run it on a desk with `apt-get install prometheus`"
    if shutil.which("prometheus") is None:
        return "there is no `prometheus` on this machine: `apt-get install prometheus` (and stop its service) to run this test"
    return ""


def ask(url: str, expr: str) -> list[dict[str, Any]]:
    """Result of an instant query. Raises ValueError with Prometheus' words for a query it refuses."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
    except urllib.error.HTTPError as error:
        raise ValueError(f"{expr}: {error.read().decode()[:300]}") from None


def check_panels(prometheus_url: str) -> list[str]:
    """Panels without data, as "title: expression"; empty when every query answers with a number. Raises ValueError for a broken query."""
    return [f"{q.panel}: {q.expr}" for q in queries() if not any(_number(row) for row in ask(prometheus_url, q.expr))]


def _number(row: dict[str, Any]) -> bool:
    return not math.isnan(float(row["value"][1]))


@contextmanager
def prometheus_over(addresses: Sequence[str], folder: Path) -> Iterator[str]:
    """A Prometheus with our configuration's rules that scrapes these host:port every second; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    text = re.sub(r"scrape_interval: \S+", "scrape_interval: 1s", text).replace("scrape_timeout: 4s", "scrape_timeout: 1s")
    text = text.replace("alerts.yml", str(DEPLOY / "prometheus" / "alerts.yml")).replace("refresh_interval: 10s", "refresh_interval: 1s")
    (folder / "targets").mkdir(parents=True)
    (folder / "targets" / "run.json").write_text(json.dumps([{"targets": list(addresses)}]))
    (folder / "prometheus.yml").write_text(re.sub(r"(?s)  - job_name: headrace\n.*?(?=  - job_name)", "", text))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(url, process, folder / "prometheus.log")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"prometheus did not start: {log.read_text()[-1000:]}")
