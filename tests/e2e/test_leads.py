"""All leads of an org into Iterable, beside live changes, at the rate that Iterable allows."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.oracle import Verdict, compare_users
from deploy.rig import Rig
from tests.support.rigs import ACME, explain, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(900), pytest.mark.slow]
FLOW = (
    ACME
    + """\
targets:
  marketing: {type: iterable, api_key: ${ITERABLE_API_KEY}, base_url: ${ITERABLE_URL}}
routes:
  people: {from: acme/Lead, to: marketing, map: leads.yaml, fetch: query, where: "Email != null", on_delete: mark}
"""
)
MAP = Path(__file__).parents[2] / "deploy" / "examples" / "maps" / "iterable-user.yaml"
LEADS = 42_500
"""One in twenty has no address."""


def records(made: Rig) -> dict[str, list[dict[str, Any]]]:
    found = {name: made.ask("GET", f"/sandbox/records?type={name}")["records"] for name in ("User", "Lead")}
    return found | {"Account": [], "Contact": []}


def verdict_of(made: Rig) -> Verdict:
    verdict = Verdict()
    compare_users(verdict, made.ask("GET", "/sandbox/users", target="iterable"), records(made))
    return verdict


def users(made: Rig) -> int:
    [project] = made.ask("GET", "/sandbox/state", target="iterable")["projects"].values()
    return int(project["users"])


@pytest.mark.parametrize("partitions", [4, 12])
def test_forty_thousand_leads_come_whole_beside_live_changes_and_never_faster_than_allowed(
    kafka: str, database_url: str, tmp_path: Path, partitions: int
) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "leads.yaml").write_text("".join(line for line in MAP.read_text().splitlines(keepends=True) if "Account" not in line))
    with rig(tmp_path / "rig", kafka, database_url, hold=2.0, flow=tmp_path / "flow.yaml", partitions=partitions) as made:
        made.start_services()
        made.run("worker")
        made.wait_ready("worker")
        made.ask("POST", "/sandbox/fill", {"type": "Lead", "count": LEADS, "seed": 7})
        wanted = sum(bool(one.get("Email")) for one in records(made)["Lead"])
        assert wanted >= 40_000
        began = time.monotonic()
        made.run("subscribe")
        made.wait_ready("subscribe")
        made.ask("POST", "/sandbox/change", {"rate": 20, "seconds": 600, "seed": 3, "rename_parents": False})
        made.await_("the leads", lambda: users(made) >= wanted, 600)
        took = time.monotonic() - began
        _, said = made.command("status", "--json")
        made.ask("DELETE", "/sandbox/change")
        made.await_("both ends equal", lambda: verdict_of(made).equal, 120)
        log = [one for one in made.ask("GET", "/sandbox/requests", target="iterable")["requests"] if one["path"].endswith("bulkUpdate")]
        [latency] = [one for one in json.loads(said)["latencies"] if one["since"] == "commit"]
        print(f"{wanted:,} leads over {partitions} partitions in {took:.1f} s by {len(log)} calls, {latency['count']} live writes: "
              f"p50 {latency['p50']:.2f} s, p99 {latency['p99']:.2f} s")  # fmt: skip
        assert {one["status"] for one in log} == {200}, explain(made, verdict_of(made))
