"""Each example flow as a stranger runs it: one command, a story, and an end that an oracle computes by other means."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.oracle import Verdict
from deploy.oracle_flows import compare_iterable, compare_tables
from deploy.rig import FLOW
from tests.support.commands import typed
from tests.support.rigs import queries, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(300)]


def shown(tmp_path: Path, name: str) -> Any:
    demo = typed(tmp_path, "demo", name, "--for", "12s", "--json")
    printed, told = demo.communicate(timeout=250)
    assert demo.returncode == 0, printed + told
    return json.loads(printed)


@pytest.mark.slow
def test_people_of_salesforce_are_users_of_iterable_within_a_minute(tmp_path: Path) -> None:
    figures = shown(tmp_path, "iterable")
    assert (figures["equal"], figures["compared"]["users"] > 100, figures["held"]["users"]) == (True, True, 1)
    [took] = figures["latency_seconds"]
    assert took["p99"] < 60, "each change within a minute"
    [refused] = figures["dead_letters"]
    assert (refused["stage"], refused["count"]) == ("write", 1)


@pytest.mark.slow
def test_accounts_contacts_and_opportunities_are_canonical_tables(tmp_path: Path) -> None:
    figures = shown(tmp_path, "gtm-clarity")
    assert figures["equal"] is True
    assert all(figures["compared"][table] > 20 for table in ("person", "account", "opportunity"))
    assert all(letter["stage"] == "process" for letter in figures["dead_letters"])
    assert figures["held"]["person"] >= 1
    names = ("inputCount", "passedCount", "failedCount", "duplicatesRemoved")
    counts = [(row["route"], row["live"], *(row["total"][name] for name in names)) for row in figures["quality"]]
    assert all(came == passed + failed + removed for *_, came, passed, failed, removed in counts)
    first = {route: came for route, live, came, *_ in counts if not live}
    assert first == {"accounts": 45, "contacts": 135, "opportunities": 36}, "everything once: of 300 records in the sandbox so many"
    assert sum(failed for route, *_, failed, _ in counts if route == "contacts") >= figures["held"]["person"], "each time anew"


OWNER = {"Id": "005", "Email": "o@example.org", "Name": "O", "IsActive": True, "IsDeleted": False}
LEAD = {"Id": "00Q1", "Email": "A@example.org", "FirstName": "A", "OwnerId": "005", "IsDeleted": False}
FIELDS = {
    "Name": {"First": "A"},
    "Salesforce": {"Id": "00Q1"},
    "Lead": {"Salesforce": {"Id": "00Q1"}},
    "Owner": {"Email": "o@example.org", "Name": "O", "Salesforce": {"Active": True, "Id": "005"}},
}


def verdict(fields: Any, address: str = "a@example.org", **request: Any) -> Verdict:
    answers = {
        "/sandbox/records?type=Lead": {"records": [LEAD]},
        "/sandbox/records?type=User": {"records": [OWNER]},
        "/sandbox/users": {"users": [{"email": address, "dataFields": fields}]},
        "/sandbox/requests": {"requests": [{"users": ["a@example.org"], "status": 200} | request]},
    }
    return compare_iterable(lambda _method, path, **_more: answers.get(path, {"records": []}))


def test_the_oracle_of_people_sees_what_is_wrong() -> None:
    assert verdict(FIELDS).equal
    assert verdict(FIELDS | {"Name": {"First": "B"}}).count == 1
    assert verdict(FIELDS | {"deletedAtSource": True}).count == 1
    assert verdict(FIELDS, "b@example.org").count == 2
    assert verdict(FIELDS, users=["a@example.org"] * 2).count == 1
    assert verdict(FIELDS, users=[f"{n}@example.org" for n in range(1001)]).count == 1
    assert verdict(FIELDS, status=413).count == 1


@pytest.mark.slow
def test_an_org_that_is_polled_gets_no_call_while_its_connection_is_paused_and_that_is_no_fault(
    kafka: str, database_url: str, tmp_path: Path
) -> None:
    with rig(tmp_path / "rig", kafka, database_url, records=100, flow=FLOW.with_name("gtm-clarity.yaml")) as made:
        made.start(roles=("worker", "subscribe"))
        made.await_("the first run", lambda: compare_tables(made.ask, made.database).equal)
        assert made.command("pause", "acme")[0] == 0
        made.await_("the pause to be heard", lambda: "paused" in made.processes["subscribe"].log_tail(20))
        asked = queries(made)
        account = {"op": "create", "type": "Account", "values": {"Name": "Later"}}
        made.ask("POST", "/sandbox/transaction", {"changes": [account]})
        began = time.monotonic()
        made.await_("more than a round", lambda: time.monotonic() > began + 7)
        assert asked() == []
        assert made.ready("subscribe")
        assert made.command("resume", "acme")[0] == 0
        made.await_("the row", lambda: compare_tables(made.ask, made.database).equal)
