"""From Salesforce's wire to the targets' wire, by the processes a user runs: what a user would see, command by command."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.demo import compare_now, send_hook, settle
from deploy.rig import FLOW, Rig
from tests.support.rigs import explain, metric, nothing_waits, queries, rig, verdict_of

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(300)]
CONVERTED = """
  lead_links: {from: acme/Lead, to: warehouse, map: maps/converted.yaml, object: lead}
  open_leads: {from: acme/Lead, to: warehouse, map: maps/converted.yaml, object: open_lead, where: "IsConverted = false"}
  single: {from: [acme/Contact, acme/Lead], to: warehouse, map: person, object: single, quality: [required, duplicates, types]}
"""
LINKS = """
LastName: lastName
ConvertedAccountId: accountExternalId
ConvertedContactId: contactExternalId
ConvertedOpportunityId: opportunityExternalId
"""


@pytest.fixture(scope="module")
def flow(kafka: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The demo's flow and what a lead became of, running, with 200 records and some changes already through."""
    folder = tmp_path_factory.mktemp("rig")
    (folder / "maps").mkdir()
    (folder / "maps" / "converted.yaml").write_text(LINKS)
    for example in (FLOW.parent / "maps").iterdir():
        (folder / "maps" / example.name).symlink_to(example)
    (folder / "flow.yaml").write_text(FLOW.read_text() + CONVERTED)
    with rig(folder / "rig", kafka, database_url, records=200, hold=3.0, flow=folder / "flow.yaml") as made:
        made.start()
        made.ask("POST", "/sandbox/change", {"rate": 40, "seconds": 10, "seed": 3})
        made.await_("the changes", lambda: made.ask("GET", "/sandbox/change")["runs"][0]["finished"])
        yield made


def test_both_ends_are_equal_field_by_field_after_changes(flow: Rig) -> None:
    with flow.database() as database:
        verdict = settle(flow, database)
    assert verdict.equal, explain(flow, verdict)
    assert verdict.compared["users"] > 100


def test_the_comparison_sees_a_lost_row_a_changed_value_an_extra_row_and_a_missed_delete(flow: Rig) -> None:
    with flow.database() as database:
        settle(flow, database)
        before = verdict_of(flow)
        assert before.equal, explain(flow, before)
        plans = {
            "missing": "DELETE FROM crm.person WHERE _key = (SELECT min(_key) FROM crm.person WHERE NOT _deleted)",
            "instead of": "UPDATE crm.account SET name = 'other' WHERE _key = (SELECT min(_key) FROM crm.account WHERE NOT _deleted)",
            "never made": 'INSERT INTO crm.account SELECT (jsonb_populate_record(a, \'{"_key": "acme/001xx000000000EXTRA"}\')).* '
            "FROM crm.account a LIMIT 1",
            "deleted": "UPDATE crm.opportunity SET _deleted = false WHERE _key = (SELECT min(_key) FROM crm.opportunity WHERE _deleted)",
        }
        for word, plan in plans.items():
            with database.transaction(force_rollback=True):
                assert database.execute(plan).rowcount == 1, plan
                seen = compare_now(flow, database)
                assert seen.count >= 1, plan
                assert any(word in text for text in seen.differences), (word, seen.differences)
    assert verdict_of(flow).equal


def test_an_accepted_webhook_becomes_a_row_and_a_forged_one_does_not(flow: Rig) -> None:
    assert send_hook(flow, {"data": {"id": "h-1", "email": "one@example.org", "name": "One Example"}})
    assert send_hook(flow, {"data": {"id": "h-1", "email": "two@example.org", "name": "One Example"}})
    secret, flow.secret = flow.secret, "whsec_" + "Zm9yZ2Vk" * 4
    assert not send_hook(flow, {"data": {"id": "h-2", "email": "forged@example.org", "name": "Nobody"}})
    flow.secret = secret
    with flow.database() as database:

        def emails() -> list[object]:
            return [row[0] for row in database.execute("SELECT email FROM crm.signup").fetchall()]

        flow.await_("the webhook's row", lambda: _there(database) and emails() == ["two@example.org"])


def test_status_shows_every_hop_and_nothing_waiting(flow: Rig) -> None:
    def quiet() -> bool:
        code, printed = flow.command("status", "--json")
        assert code == 0, printed
        hops = json.loads(printed)["hops"]
        return {hop["stage"] for hop in hops} >= {"process", "fetch"} and not any(hop["lag"] for hop in hops)

    flow.await_("a status without lag", quiet)


def test_check_finds_nothing_wrong_with_the_demo(flow: Rig) -> None:
    code, printed = flow.command("check")
    assert code == 0, printed


def test_a_converted_lead_stays_one_person_keeps_its_links_and_leaves_the_open_ones_under_load(flow: Rig) -> None:
    leads = [_lead(flow, f"converted{n}@example.org") for n in range(12)]
    flow.ask("POST", "/sandbox/change", {"rate": 40, "seconds": 6, "seed": 21})
    with flow.database() as database:
        open_ones = "SELECT count(*) FROM crm.open_lead WHERE NOT _deleted AND _key = ANY(%s)"
        keys = [f"acme/{lead}" for lead in leads]
        flow.await_("the open leads", lambda: database.execute(open_ones, [keys]).fetchall() == [(len(leads),)])
        for number, lead in enumerate(leads):
            last = flow.ask("GET", "/sandbox/state")["lastReplayId"]
            change = {"op": "convert", "type": "Lead", "id": lead, "values": {"opportunity": number % 3 > 0}}
            told = set(flow.ask("POST", "/sandbox/transaction", {"changes": [change]})["replayIds"])
            became = {c[2] for c in flow.ask("GET", f"/sandbox/commits?after={last}")["commits"] if c[0] in told}
            assert became == {"Lead", "Account", "Contact"} | ({"Opportunity"} if number % 3 else set())
        flow.await_("the changes", lambda: flow.ask("GET", "/sandbox/change")["runs"][-1]["finished"])
        known = _records(flow, "Lead") | _records(flow, "Contact")
        _delete(flow, "Lead", [lead for lead in leads[:4] if not known[lead]["IsDeleted"]])
        became_of = {lead: str(known[lead]["ConvertedContactId"]) for lead in leads}
        _delete(flow, "Contact", [became_of[lead] for lead in leads[:2] if not known[became_of[lead]]["IsDeleted"]])
        assert (verdict := settle(flow, database)).equal, explain(flow, verdict)
        known = _records(flow, "Lead") | _records(flow, "Contact")
        names = ("ConvertedAccountId", "ConvertedContactId", "ConvertedOpportunityId")
        wanted = {f"acme/{lead}": tuple(known[lead][name] for name in names) for lead in leads if not known[lead]["IsDeleted"]}
        columns = '"accountExternalId", "contactExternalId", "opportunityExternalId"'
        links = f"SELECT _key, {columns} FROM crm.lead WHERE NOT _deleted AND _key = ANY(%s)"

        def kept() -> bool:
            return {key: tuple(found) for key, *found in database.execute(links, [keys]).fetchall()} == wanted

        flow.await_("the links", kept)
        flow.await_("no open lead", lambda: database.execute(open_ones, [keys]).fetchall() == [(0,)])
    users = {user["email"]: user["dataFields"] for user in flow.ask("GET", "/sandbox/users", target="iterable")["users"]}
    alone = 0
    for number, lead in enumerate(leads):
        address, contact = f"converted{number}@example.org", known[became_of[lead]]
        if known[lead]["Email"] == contact["Email"] == address and contact["IsDeleted"] is (number < 2):  # the load left them alone
            alone += 1
            assert users[address].get("deletedAtSource") is (True if number < 2 else None)
            of_gone = {lead} if number < 2 else set()  # both are gone: which went last is no order of one record
            assert users[address]["Salesforce"]["Id"] in {contact["Id"], *of_gone}
    assert alone > 2


def test_a_replay_brings_back_what_a_target_lost(flow: Rig) -> None:
    with flow.database() as database:
        assert settle(flow, database).equal
    flow.ask("DELETE", "/sandbox/users", target="iterable")
    assert not verdict_of(flow).equal
    code, printed = flow.command("replay", "people", "--from", "-1h", "--json")
    assert code == 0, printed
    flow.await_("the users again", lambda: verdict_of(flow).equal, 60)


def test_a_snapshot_brings_back_what_the_warehouse_lost(flow: Rig) -> None:
    with flow.database() as database:
        assert settle(flow, database).equal
        database.execute("DELETE FROM crm.person")
    code, printed = flow.command("snapshot", "acme", "--json")
    assert code == 0, printed
    done = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [run["source"] for run in done] == ["acme/Account", "acme/Contact", "acme/Opportunity", "acme/Lead"]  # parents first
    assert all(run["state"] == "done" and run["rows"] > 0 and not run["unexplained"] for run in done), printed
    flow.await_("the rows again", lambda: verdict_of(flow).equal, 60)


def test_a_paused_target_waits_with_its_writes_the_other_goes_on_and_everything_comes_when_it_is_resumed(flow: Rig) -> None:
    with flow.database() as database:
        assert settle(flow, database).equal
        assert flow.command("pause", "warehouse", "--because", "moving")[0] == 0
        _heard(flow, "target", "warehouse")
        lead = _lead(flow, "paused@example.org")
        flow.await_("the user", lambda: "paused@example.org" in _users(flow))
        flow.kill("worker")
        flow.wait_ready("worker")
        [held] = _status(flow)["held"]
        assert (held["what"], held["name"], held["because"], held["waiting"] > 0) == ("target", "warehouse", "moving", True)
        assert not database.execute("SELECT 1 FROM crm.person WHERE _key = %s", [f"acme/{lead}"]).fetchall()
        assert flow.command("resume", "warehouse")[0] == 0
        flow.await_("the row", lambda: bool(database.execute("SELECT 1 FROM crm.person WHERE _key = %s", [f"acme/{lead}"]).fetchall()))
        assert settle(flow, database).equal
    assert _status(flow)["held"] == []


def test_a_paused_route_tells_what_changed_once_it_is_resumed_and_others_of_its_target_go_on(flow: Rig) -> None:
    with flow.database() as database:
        assert settle(flow, database).equal
        code, printed = flow.command("pause", "leads", "--json")
        assert (code, json.loads(printed)["what"]) == (0, "route"), printed
        _heard(flow, "route", "leads")
        flow.ask("POST", "/sandbox/change", {"rate": 40, "seconds": 4, "seed": 9})
        flow.await_("the changes", lambda: flow.ask("GET", "/sandbox/change")["runs"][-1]["finished"])

        def only_leads_wait() -> bool:
            return all(text.startswith("person 00Q") for text in compare_now(flow, database).differences)

        flow.await_("all but leads", only_leads_wait)
        nothing_waits(flow)
        [held] = _status(flow)["held"]
        assert held["waiting"] > 0
        assert only_leads_wait()
        code, printed = flow.command("verify", "acme/Lead", "--target", "warehouse")
        assert (code, "route leads is paused" in printed) == (1, True), printed
        flow.kill("worker")
        assert flow.command("resume", "leads")[0] == 0
        assert settle(flow, database).equal
        flow.await_("all is told", lambda: _status(flow)["held"] == [])


def test_a_paused_connection_is_not_read_keeps_its_position_and_goes_on_where_it_was(flow: Rig) -> None:
    with flow.database() as database:
        assert settle(flow, database).equal
        assert flow.command("pause", "acme")[0] == 0
        flow.await_("the session to end", lambda: not flow.ask("GET", "/sandbox/state")["sessions"])
        before = _status(flow)["channels"][0]
        lead = _lead(flow, "later@example.org")
        assert send_hook(flow, {"data": {"id": "h-3", "email": "three@example.org", "name": "Three Example"}})
        flow.await_("the webhook", lambda: bool(database.execute("SELECT 1 FROM crm.signup WHERE email LIKE 'three%'").fetchall()))
        channel = _status(flow)["channels"][0]
        assert (channel["position"], channel["up"], channel["loss"] > 0) == (before["position"], None, True)
        assert flow.ready("subscribe"), "a pause is no fault"
        assert flow.command("resume", "acme")[0] == 0
        flow.await_("the row", lambda: bool(database.execute("SELECT 1 FROM crm.person WHERE _key = %s", [f"acme/{lead}"]).fetchall()))
        assert settle(flow, database).equal


def test_a_refill_brings_back_what_the_targets_lost_without_a_call_to_salesforce(flow: Rig) -> None:
    with flow.database() as database:
        assert settle(flow, database).equal
        database.execute("DELETE FROM crm.person WHERE _key LIKE 'acme/003%'")
        flow.ask("DELETE", "/sandbox/users", target="iterable")
        nothing_waits(flow)
        asked = queries(flow, "Contact", "Lead")
        for route in ("contacts", "people"):
            code, printed = flow.command("refill", route, "--json")
            done = json.loads(printed.splitlines()[0])
            assert (code, done["done"], done["asked"], done["records"] > 0) == (0, True, 0, True), printed
        flow.await_("the rows and users again", lambda: verdict_of(flow).equal, 60)
        assert asked() == []


def test_a_snapshot_is_steered_from_another_process_and_the_same_command_goes_on(flow: Rig) -> None:
    flow.ask("POST", "/sandbox/faults", {"name": "bulk-stuck", "times": 0})
    flow.run("snapshot", "acme/Lead", "--via", "bulk")

    def shown() -> list[tuple[str, bool]]:
        code, printed = flow.command("status", "--json")
        assert code == 0, printed
        return [(run["state"], run["worked"]) for run in json.loads(printed)["snapshots"] if run["way"] == "bulk"]

    flow.await_("the run", lambda: shown() == [("running", True)])
    code, printed = flow.command("snapshot", "acme/Lead", "--pause")
    assert (code, "paused" in printed, shown()) == (0, True, [("paused", True)]), printed
    flow.processes["snapshot"].stop(20.0)
    flow.ask("DELETE", "/sandbox/faults?name=bulk-stuck")
    code, printed = flow.command("snapshot", "acme/Lead", "--resume", "--json")
    assert (code, json.loads(printed.splitlines()[0])["state"]) == (0, "done"), printed  # progress, on stderr, comes behind
    code, printed = flow.command("snapshot", "acme/Lead", "--stop")
    assert (code, "no snapshot of acme/Lead is under way" in printed) == (2, True), printed


def test_of_persons_with_one_address_the_newest_stands_and_the_next_comes_back_when_it_goes(flow: Rig) -> None:
    first = _lead(flow, "Twice@example.org")
    with flow.database() as database:

        def standing() -> list[object]:
            query = "SELECT _key FROM crm.single WHERE NOT _deleted AND email = 'twice@example.org'"
            return [row[0] for row in database.execute(query).fetchall()]

        flow.await_("the only one", lambda: standing() == [f"acme/{first}"])
        time.sleep(1.1)  # the source's stamps are whole seconds
        second = _lead(flow, " twice@example.org")
        flow.await_("the newer one in its place", lambda: standing() == [f"acme/{second}"])
        _delete(flow, "Lead", [second])
        flow.await_("the first one again", lambda: standing() == [f"acme/{first}"])
        nothing_waits(flow)
        twice = "SELECT count(*), count(DISTINCT email) FROM crm.single WHERE NOT _deleted AND email IS NOT NULL"
        ((count, addresses),) = database.execute(twice).fetchall()
        assert count == addresses > 50
    code, printed = flow.command("quality", "single", "--json")
    assert code == 0, printed
    for row in json.loads(printed)["batches"]:
        total = row["total"]
        assert total["inputCount"] == total["passedCount"] + total["failedCount"] + total["duplicatesRemoved"]
    assert sum(row["total"]["duplicatesRemoved"] for row in json.loads(printed)["batches"]) > 0
    code, printed = flow.command("quality", "single")
    assert (code, "by batch" in printed) == (0, True), printed


def test_a_poison_event_lands_in_the_dead_letters_with_its_bytes_and_delays_nobody(flow: Rig, tmp_path: Path) -> None:
    poison = {
        "schema": "x",
        "event": {"replayId": 1},
        "payload": {"ChangeEventHeader": {"entityName": "Contact", "changeType": "UPDATE", "recordIds": [42]}},
    }
    file = tmp_path / "poison.jsonl"
    file.write_text(json.dumps(poison))
    code, printed = flow.command("sandbox", "emit", str(file), "--url", flow.salesforce)
    assert code == 0, printed

    def listed() -> bool:
        code, printed = flow.command("dead-letters", "--json")
        assert code == 0, printed
        return "recordIds" in printed or "42" in printed

    flow.await_("the dead letter", listed)
    with flow.database() as database:
        assert settle(flow, database).equal


def _lead(flow: Rig, email: str) -> str:
    values = {"FirstName": "Pat", "LastName": "Held", "Company": "Example", "Email": email}
    made = flow.ask("POST", "/sandbox/transaction", {"changes": [{"op": "create", "type": "Lead", "values": values}]})
    return str(made["ids"][0])


def _records(flow: Rig, kind: str) -> dict[str, Any]:
    return {row["Id"]: row for row in flow.ask("GET", f"/sandbox/records?type={kind}")["records"]}


def _delete(flow: Rig, kind: str, ids: Sequence[str]) -> None:
    flow.ask("POST", "/sandbox/transaction", {"changes": [{"op": "delete", "type": kind, "id": id} for id in ids]})


def _heard(flow: Rig, what: str, name: str) -> None:
    """Until the worker knows of the pause."""
    flow.await_("the pause to be heard", lambda: metric(flow, "worker", "headrace_held", what=what, name=name, cause="people") == 1)


def _status(flow: Rig) -> Any:
    code, printed = flow.command("status", "--json")
    assert code == 0, printed
    return json.loads(printed)


def _users(flow: Rig) -> list[str]:
    return [user["email"] for user in flow.ask("GET", "/sandbox/users", target="iterable")["users"]]


def _there(database: psycopg.Connection) -> bool:
    found = database.execute("SELECT to_regclass('crm.signup')").fetchone()
    return bool(found and found[0])
