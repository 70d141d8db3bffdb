"""The overview dashboard on a real run: a real Prometheus scrapes the demo's processes, and every panel answers with data."""

from pathlib import Path

import pytest

from deploy.demo import send_hook
from tests.support.panels import check_panels, prometheus_over, without_prometheus
from tests.support.rigs import rig

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(without_prometheus()), reason=without_prometheus() or "-"),
]


def test_every_panel_of_the_dashboard_answers_with_data_of_a_real_run(kafka: str, database_url: str, tmp_path: Path) -> None:
    with rig(tmp_path, kafka, database_url, records=100, hold=3.0) as made:
        made.start()
        made.ask("POST", "/sandbox/change", {"rate": 10, "seconds": 200, "seed": 5, "rename_parents": False})
        made.ask("POST", "/sandbox/emit", b'{"schema": "x", "event": {}, "payload": {"ChangeEventHeader": {"entityName": "Contact"}}}')
        assert send_hook(made, {"data": {"id": "p-1", "email": "panel@example.org", "name": "Panel Example"}})
        addresses = [f"127.0.0.1:{made.ports[role]}" for role in ("worker", "subscribe", "receive")]
        with prometheus_over(addresses, tmp_path / "prometheus") as url:
            made.await_("data in every panel", lambda: not check_panels(url), 90)
            assert check_panels(url) == []
