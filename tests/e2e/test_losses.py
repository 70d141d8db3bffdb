"""Each way in which Salesforce or Kafka withholds changes, under load: source and target end equal, deletes included, and the incident that
names it is closed."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from deploy.demo import settle
from deploy.rig import FLOW, Rig
from deploy.sandbox.salesforce.org import USERNAME
from tests.support.rigs import explain, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(900)]
EVENT = "Headrace_Canary__e"
Way = tuple[str, Callable[[Rig], None], str | None]
"""Name, what is done to the org or to Kafka, cause of the incident that must be closed then (None: nothing is missing)."""


def fault(name: str, **more: Any) -> Callable[[Rig], None]:
    return lambda made: made.ask("POST", "/sandbox/faults", {"name": name, **more})


def told_as(deliver: str) -> Callable[[Rig], None]:
    """New Contacts, told in another way than by their creation."""

    def strike(made: Rig) -> None:
        people = [{"op": "create", "type": "Contact", "values": {"LastName": f"{deliver} {n}"}} for n in range(3)]
        made.ask("POST", "/sandbox/transaction", {"changes": people, "deliver": deliver})

    return strike


def refused(made: Rig) -> None:
    """What was published is forgotten while nobody is subscribed, deletes among it."""
    made.ask("POST", "/sandbox/faults", {"name": "expired-position", "variant": "all"})
    made.ask("POST", "/sandbox/faults", {"name": "drop-connections", "variant": "held"})
    made.ask("POST", "/sandbox/faults", {"name": "unknown-client"})


def purged(made: Rig) -> None:
    """Deletes are lost and their records purged; then something makes the object be read again."""
    rows = made.ask("GET", "/sandbox/records?type=Contact")["records"]
    for row in [row for row in rows if not row["IsDeleted"]][:5]:
        made.ask("POST", "/sandbox/transaction", {"changes": [{"op": "delete", "type": "Contact", "id": row["Id"]}], "deliver": "lost"})
    assert len(made.ask("POST", "/sandbox/purge", {"type": "Contact"})["purged"]) >= 5
    told_as("overflow")(made)


def blind(made: Rig) -> None:
    """View All Data is taken away, changes are withheld, and it is given back. (A new leader looks at once.)"""
    made.ask("POST", "/sandbox/users", {"username": USERNAME, "view_all_data": False})
    made.kill("subscribe")
    made.await_("the incident that waits", lambda: any(i["state"] == "waiting" and i["cause"] == "rights" for i in incidents(made)), 90)
    made.ask("POST", "/sandbox/users", {"username": USERNAME, "view_all_data": True})
    made.kill("subscribe")


def outrun(made: Rig) -> None:
    """Kafka's retention removes what no worker has read."""
    made.processes["worker"].stop()
    made.ask(
        "POST", "/sandbox/transaction", {"changes": [{"op": "create", "type": "Account", "values": {"Name": f"A{n}"}} for n in range(40)]}
    )
    topic = f"{made.name}.in.acme.Account"

    async def remove() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=made.environment["KAFKA_BOOTSTRAP_SERVERS"])
        await admin.start()
        await asyncio.sleep(2.0)  # so that the subscriber's transaction is in Kafka
        await admin.delete_records({TopicPartition(topic, number): RecordsToDelete(before_offset=-1) for number in range(4)})
        await admin.close()

    asyncio.run(remove())
    made.run("worker")
    made.await_("the loss to be told", lambda: "were removed" in made.command("dead-letters", "--json")[1], 90)
    made.kill("subscribe")


def dropped(made: Rig) -> None:
    """Events are lost in the bus for ever, now and then; nothing tells of them but a comparison."""
    made.ask("POST", "/sandbox/faults", {"name": "drop-events", "variant": "bus", "rate": 0.3})
    made.await_("lost events of Contacts", lambda: sum(one[1] == "Contact" for one in made.ask("GET", "/sandbox/lost")["lost"]) >= 10, 60)
    made.ask("DELETE", "/sandbox/faults?name=drop-events")
    for sobject in ("Account", "Contact", "Lead", "Opportunity"):
        code, said = made.command("verify", f"acme/{sobject}", timeout=300.0)
        assert code == 0, said


GAPS: list[Way] = [
    ("gap", told_as("gap"), "gap"),
    ("hundreds of ids in one event", fault("merged", times=250), None),
    ("overflow", told_as("overflow"), "overflow"),
    ("wildcard", told_as("wildcard"), "wildcard"),
    ("position refused", refused, "position refused"),
    ("purged", purged, "overflow"),
]
OTHERS: list[Way] = [
    ("deaf", fault("silent", variant="session"), None),
    ("rights", blind, "rights"),
    ("retention of Kafka", outrun, "log lost"),
    ("lost in the bus", dropped, "verify"),
    ("another org", fault("org-migration", variant="org"), "org changed"),
]


@pytest.mark.parametrize("ways", [pytest.param(GAPS, id="gaps"), pytest.param(OTHERS, id="others")])
def test_what_was_withheld_under_load_is_found_repaired_and_proven(kafka: str, database_url: str, tmp_path: Path, ways: list[Way]) -> None:
    (tmp_path / "maps").symlink_to(FLOW.parent / "maps")
    text = FLOW.read_text().replace("    url: ${SF_URL}\n", f"    url: ${{SF_URL}}\n    canary: {{event: {EVENT}, every: 3, budget: 5}}\n")
    (tmp_path / "flow.yaml").write_text(text)
    with rig(tmp_path / "rig", kafka, database_url, records=300, hold=2.0, flow=tmp_path / "flow.yaml") as made:
        made.start_services()
        made.ask("POST", "/sandbox/objects", {EVENT: {}})
        for role in ("worker", "subscribe"):
            made.run(role)
        for role in ("worker", "subscribe"):
            made.wait_ready(role)
        made.ask("POST", "/sandbox/change", {"rate": 25, "seconds": 600, "seed": 5, "rename_parents": False})
        for name, strike, cause in ways:
            before = {i["id"] for i in incidents(made)}
            strike(made)
            if cause is not None:
                made.await_(f"the closed incident of {name}", partial(closed, made, before, cause), 120)
        with made.database() as database:
            verdict = settle(made, database, 120.0)
        assert verdict.equal, explain(made, verdict)
        found = incidents(made)
        assert {i["state"] for i in found} == {"closed"}, found
        assert all(i["proof"] and i["detail"] for i in found)
        if ways is GAPS:
            assert any(i["gone"] >= 5 for i in found if i["cause"] == "overflow"), [(i["source"], i["cause"], i["gone"]) for i in found]


def incidents(made: Rig) -> list[dict[str, Any]]:
    code, printed = made.command("incidents", "--json")
    assert code == 0, printed
    found: list[dict[str, Any]] = json.loads(printed)
    return found


def closed(made: Rig, before: set[str], cause: str) -> bool:
    fresh = [i for i in incidents(made) if i["id"] not in before and i["cause"] == cause]
    return bool(fresh) and all(i["state"] == "closed" for i in fresh)
