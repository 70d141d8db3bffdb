"""A day's allocation that is far too small: everything arrives in the targets all the same, deletes included, and no limit is passed."""

from pathlib import Path

import pytest

from deploy.demo import count_rows, settle
from deploy.rig import FLOW, Rig
from tests.support.rigs import explain, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow]
EVENTS, CHANGES, CALLS = 1000, 5000, 2000


@pytest.mark.timeout(600)
def test_five_times_as_many_changes_as_events_allowed_arrive_by_polling(kafka: str, database_url: str, tmp_path: Path) -> None:
    flow = tmp_path / "flow.yaml"
    text = FLOW.read_text().replace("url: ${SF_URL}", "url: ${SF_URL}\n    poll_instead: 5s")
    flow.write_text(text.replace("map: maps/", f"map: {FLOW.parent}/maps/"))
    with rig(tmp_path, kafka, database_url, records=1000, hold=5.0, flow=flow) as made:
        made.start_services()
        made.ask("POST", "/sandbox/settings", {"daily_events": EVENTS, "daily_requests": CALLS})
        for role in ("worker", "subscribe"):
            made.run(role)
        for role in ("worker", "subscribe"):
            made.wait_ready(role)
        made.await_("the first snapshot", lambda: _rows(made) > 0)
        made.ask("POST", "/sandbox/change", {"rate": 100, "seconds": CHANGES / 100, "seed": 5, "rename_parents": False})
        made.await_("the changes", lambda: all(r["finished"] for r in made.ask("GET", "/sandbox/change")["runs"]), 120)
        with made.database() as database:
            verdict = settle(made, database, 180.0)
        assert verdict.equal, explain(made, verdict)
        told = made.ask("GET", "/sandbox/limits")
        state = made.ask("GET", "/sandbox/state")
        code, printed = made.command("incidents", "--json")
        _, shown = made.command("status")
    names = ("DailyDeliveredPlatformEvents", "DailyApiRequests")
    limits = {name: told["limits"][name]["Max"] - told["limits"][name]["Remaining"] for name in names}
    print(f"\n{state}\nused {limits}, refused {told['refused']}\n{shown}\n{printed}")
    assert limits["DailyDeliveredPlatformEvents"] == EVENTS
    assert told["refused"] == {"DailyDeliveredPlatformEvents": 1}, "the one call by which it learns; of REST none"
    assert code == 0 and printed.count('"allocation"') == 4


def _rows(made: Rig) -> int:
    with made.database() as database:
        return count_rows(database, "person")
