"""What the org tells of every kind of change, merged, is what it holds: never another value, and unknown only where it must be read."""

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from agents.rules.merge import RecordState, merge
from agents.rules.message import from_event, from_row
from agents.rules.plan import Plan, make_plan
from models.change_event import Change, ChangeEvent, parse
from models.envelope import Envelope, Kind, Reason
from tests.support.sandbox_wire import Wire, org

SOBJECTS = ("Account", "Contact", "Lead", "Opportunity", "Case", "Task", "Plan__c")
NOT_IN_EVENTS = {"IsDeleted", "SystemModstamp", "Id"}
LONG = "\r\n".join(f"line {n} of a text that is long enough to be told as a difference" for n in range(60))


def told(at: Wire) -> Iterator[ChangeEvent]:
    """Every event of the org, in its order."""
    for event in at.sandbox.org.bus.after(0):
        yield parse({"data": orjson.loads(event.data), "channel": "/data/ChangeEvents"})


async def plan_of(at: Wire, sobject: str) -> Plan:
    """As if maps read every field there is."""
    _, found = await at.rest("GET", f"/sobjects/{sobject}/describe")
    return make_plan(sobject, [f["name"] for f in found["fields"] if f["type"] != "address" and f["name"] not in NOT_IN_EVENTS])


async def rows_of(at: Wire, plan: Plan) -> dict[str, Any]:
    _, page = await at.rest("GET", "/queryAll", params={"q": f"SELECT {','.join(sorted(plan.select))} FROM {plan.sobject}"})
    rows = page["records"]
    while not page["done"]:
        _, page = await at.rest("GET", page["nextRecordsUrl"])
        rows += page["records"]
    return {row["Id"]: row for row in rows}


def held(at: Wire, plans: dict[str, Plan]) -> dict[str, dict[str, RecordState]]:
    """All events merged, by sObject and id."""
    states: dict[str, dict[str, RecordState]] = {sobject: {} for sobject in plans}
    for event in told(at):
        for id in event.ids:
            state = states[event.sobject].setdefault(id, RecordState.decode(None, id))
            merge(state, from_event(event, id, plans[event.sobject], 1), plans[event.sobject], "live", state.live + 1)
    return states


def compared(plan: Plan, states: dict[str, RecordState], rows: dict[str, Any]) -> tuple[list[str], set[str], int]:
    """Values that differ, paths that are unknown somewhere, and how many values were compared."""
    wrong, unknown, count = [], set(), 0
    envelope = Envelope(kind=Kind.ROW, reason=Reason.FETCH, received=0, began=0)
    for id, state in states.items():
        row = rows[id]
        if state.deleted != row["IsDeleted"]:
            wrong.append(f"{plan.sobject} {id}: deleted {state.deleted}, is {row['IsDeleted']}")
        if state.deleted:
            continue
        for path, value in from_row(row, envelope, plan).values.items():
            if path in NOT_IN_EVENTS:
                continue
            if path not in state.values:
                unknown.add(path)
            elif state.values[path] != value:
                wrong.append(f"{plan.sobject} {id}: {path} {state.values[path]!r}, is {value!r}")
            count += 1
    return wrong, unknown, count


@pytest.mark.parametrize("form", [None, "dates", "no-changed-fields"])
async def test_events_of_made_up_life_are_what_the_org_holds(form: str | None) -> None:
    async with org(records=0, person_accounts=True) as at:
        await at.control("POST", "objects", {"Plan__c": {"Loc__c": "string", "Notes__c": "textarea"}, "Contact": {"Score__c": "double"}})
        if form is not None:
            await at.fault("old-form", variant=form)
        await at.control("POST", "change", {"rate": 2000, "seconds": 1, "seed": 7})
        async with asyncio.timeout(60):
            while not (await at.control("GET", "change"))["runs"][0]["finished"]:  # noqa: ASYNC110 - another client would look too
                await asyncio.sleep(0.05)
        plan = (await at.change({"op": "create", "type": "Plan__c", "values": {"Name": "P", "Notes__c": LONG}}))["ids"][0]
        for line in (7, 8):
            changed = LONG.replace(f"line {line} ", f"Line {line} ")
            await at.change({"op": "update", "type": "Plan__c", "id": plan, "values": {"Notes__c": changed}})
        await at.fault("merged", times=300)
        plans = {sobject: await plan_of(at, sobject) for sobject in SOBJECTS}
        states = held(at, plans)
        changes = {event.change for event in told(at)}
        assert changes == {Change.CREATE, Change.UPDATE, Change.DELETE, Change.UNDELETE}
        assert max(len(event.ids) for event in told(at)) >= 100
        found = [compared(plans[sobject], states[sobject], await rows_of(at, plans[sobject])) for sobject in SOBJECTS]
        assert [wrong[:5] for wrong, _, _ in found] == [[]] * len(SOBJECTS)
        assert set().union(*(unknown for _, unknown, _ in found)) == set()
        assert sum(count for _, _, count in found) > 10_000


@pytest.mark.parametrize("variant", ["same", "other"])
async def test_what_a_trigger_adds_to_a_transaction_is_told_too(variant: str) -> None:
    async with org(records=0) as at:
        await at.fault("trigger", variant=variant)
        _, made = await at.rest("POST", "/sobjects/Account", {"Name": "Parent"})
        await at.rest("POST", "/sobjects/Contact", {"LastName": "Child", "AccountId": made["id"]})
        plans = {sobject: await plan_of(at, sobject) for sobject in ("Account", "Contact", "Task")}
        states = held(at, plans)
        found = [compared(plans[sobject], states[sobject], await rows_of(at, plans[sobject])) for sobject in plans]
        assert [wrong for wrong, _, _ in found] == [[]] * len(plans)
        assert bool(states["Task"]) is (variant == "other")
        events = list(told(at))
        assert len({event.committed for event in events}) < len(events) or variant == "same"


async def test_a_person_account_and_its_contact_tell_the_same_person() -> None:
    async with org(records=0, person_accounts=True) as at:
        await at.control("POST", "objects", {"Contact": {"Score__c": "double"}})
        person = {"FirstName": "Ada", "LastName": "Both", "PersonEmail": "ada@example.org", "PersonMailingCity": "Lyon"}
        account = (await at.change({"op": "create", "type": "Account", "values": person}))["ids"][0]
        business = (await at.change({"op": "create", "type": "Account", "values": {"Name": "Acme"}}))["ids"][0]
        plans = {sobject: await plan_of(at, sobject) for sobject in ("Account", "Contact")}
        contact = next(iter(held(at, plans)["Contact"]))
        states = held(at, plans)
        of_account, of_contact = states["Account"][account].values, states["Contact"][contact].values
        assert (of_account["IsPersonAccount"], of_account["PersonContactId"], of_account["Name"]) == (True, contact, "Ada Both")
        assert (of_contact["IsPersonAccount"], of_contact["AccountId"], of_contact["Name"]) == (True, account, "Ada Both")
        assert (of_account["PersonEmail"], of_account["PersonMailingCity"]) == (of_contact["Email"], of_contact["MailingCity"])
        assert states["Account"][business].values["Name"] == "Acme"
        await at.change({"op": "update", "type": "Account", "id": account, "values": {"LastName": "Twin", "PersonMailingCity": "Paris"}})
        states = held(at, plans)
        of_account, of_contact = states["Account"][account].values, states["Contact"][contact].values
        assert (of_contact["Name"], of_contact["LastName"], of_contact["MailingCity"]) == ("Ada Twin", "Twin", "Paris")
        assert (of_account["LastName"], of_account["PersonMailingCity"]) == ("Twin", "Paris")
        assert "Name" not in of_account, "only a part of it was told: the record is read again"


async def test_a_conversion_leads_from_the_lead_to_what_it_became_and_shares_its_transaction() -> None:
    async with org(records=0) as at:
        values = {"FirstName": "Ada", "LastName": "Lead", "Company": "Birch", "Email": "ada@example.org"}
        lead = (await at.change({"op": "create", "type": "Lead", "values": values}))["ids"][0]
        await at.change({"op": "convert", "type": "Lead", "id": lead})
        plans = {sobject: await plan_of(at, sobject) for sobject in ("Account", "Contact", "Opportunity", "Lead")}
        states = held(at, plans)
        closed = states["Lead"][lead].values
        assert closed["IsConverted"] is True
        for sobject in ("Account", "Contact", "Opportunity"):
            assert list(states[sobject]) == [closed[f"Converted{sobject}Id"]]
        assert states["Contact"][closed["ConvertedContactId"]].values["AccountId"] == closed["ConvertedAccountId"]
        assert states["Contact"][closed["ConvertedContactId"]].values["Email"] == closed["Email"]
