"""The change events that the sandbox makes: worded as the recorded ones, and together enough to rebuild every record."""

import copy
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy.sandbox.salesforce import events, scenario
from deploy.sandbox.salesforce.changes import Changes, _Maker
from deploy.sandbox.salesforce.conversion import convert
from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import Schema, SObject

DATA = Path(__file__).parents[1] / "data" / "sandbox"
HIDDEN = {"Id", "IsDeleted", "SystemModstamp"}


@pytest.fixture
def org() -> Org:
    made = Org(Schema({"Contact": {"Score__c": "double"}}), seed=5)
    made.settings.skew = 0
    scenario.seed(made, 120, 5)
    return made


def ids(org: Org, kind: str, count: int = 1) -> list[str]:
    return org.store.tables[kind].order[:count]


def published(org: Org, after: int = 0) -> list[dict[str, Any]]:
    return [orjson.loads(e.data) for e in org.bus.after(after)]


def update(org: Org, kind: str, record: str, **values: Any) -> dict[str, Any]:
    transaction = org.begin()
    transaction.update(org.schema.objects[kind], record, values)
    org.commit(transaction)
    payload: dict[str, Any] = published(org)[-1]["payload"]
    return payload


def header(payload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = payload["ChangeEventHeader"]
    return found


def test_an_update_carries_what_changed_and_null_for_what_was_emptied(org: Org) -> None:
    (record,) = ids(org, "Account")
    update(org, "Account", record, Phone="+1", Fax="+2")
    payload = update(org, "Account", record, Phone="+3", Fax=None)
    assert {k: v for k, v in payload.items() if k in ("Phone", "Fax", "Name")} == {"Phone": "+3", "Fax": None}
    assert sorted(header(payload)["changedFields"]) == sorted(
        ["Phone", "Fax", "LastModifiedDate"] + (["LastModifiedById"] if "LastModifiedById" in payload else [])
    )
    assert header(payload)["changeType"] == "UPDATE"


def test_components_are_nested_and_named_after_their_parent(org: Org) -> None:
    (record,) = ids(org, "Contact")
    update(org, "Contact", record, MailingStreet="a", MailingCity="b", FirstName="x")
    payload = update(org, "Contact", record, MailingCity="c", FirstName=None)
    assert (payload["MailingAddress"], payload["Name"]) == ({"City": "c"}, {"FirstName": None})
    assert {"MailingAddress.City", "Name.FirstName"} <= set(header(payload)["changedFields"])
    assert not {"MailingCity", "MailingAddress", "FirstName", "Name"} & set(header(payload)["changedFields"])


def test_a_compound_emptied_as_a_whole_is_named_by_its_parent(org: Org) -> None:
    (record,) = ids(org, "Account")
    address = [f.name for f in org.schema.objects["Account"].compounds["BillingAddress"]]
    update(org, "Account", record, BillingStreet="a", BillingCity="b")
    payload = update(org, "Account", record, **dict.fromkeys(address))
    assert payload["BillingAddress"] is None
    assert [n for n in header(payload)["changedFields"] if n.startswith("Billing")] == ["BillingAddress"]


def test_a_create_carries_what_is_filled_and_a_delete_nothing(org: Org) -> None:
    contact = org.schema.objects["Contact"]
    transaction = org.begin()
    record = transaction.create(contact, {"LastName": "Testrow", "Email": "t@example.org", "MailingCity": "Lyon", "Phone": ""})
    org.commit(transaction)
    created = published(org)[-1]["payload"]
    assert created["Name"] == {"LastName": "Testrow"}
    assert created["MailingAddress"] == {"City": "Lyon"}
    assert {"CreatedDate", "CreatedById", "LastModifiedDate", "LastModifiedById", "OwnerId"} <= created.keys()
    assert None not in created.values()
    assert not HIDDEN & created.keys()
    transaction = org.begin()
    transaction.delete(contact, record)
    org.commit(transaction)
    deleted = published(org)[-1]["payload"]
    assert deleted.keys() == {"ChangeEventHeader"}
    assert header(deleted)["changedFields"] == header(created)["changedFields"] == []
    transaction = org.begin()
    transaction.undelete(contact, record)
    org.commit(transaction)
    restored = published(org)[-1]["payload"]
    assert {k: v for k, v in restored.items() if k not in ("ChangeEventHeader", "LastModifiedDate")} == {
        k: v for k, v in created.items() if k not in ("ChangeEventHeader", "LastModifiedDate")
    }


def test_the_same_change_to_several_records_is_one_event_and_takes_one_number(org: Org) -> None:
    first, second, third = ids(org, "Account", 3)
    for record in (first, second, third):
        update(org, "Account", record, Rating=None)
    after = org.bus.last_replay_id
    transaction = org.begin()
    account, lead = org.schema.objects["Account"], org.schema.objects["Lead"]
    transaction.update(account, first, {"Rating": "Hot"})
    transaction.update(account, second, {"Rating": "Hot"})
    transaction.update(lead, ids(org, "Lead")[0], {"Company": "Another"})
    transaction.update(account, third, {"Rating": "Cold"})
    org.commit(transaction)
    made = [header(e["payload"]) for e in published(org, after)]
    assert [(h["sequenceNumber"], h["recordIds"]) for h in made] == [(1, [first, second]), (2, ids(org, "Lead")), (3, [third])]
    assert len({h["transactionKey"] for h in made}) == len({h["commitNumber"] for h in made}) == 1


def test_objects_nobody_selected_leave_holes_in_the_sequence(org: Org) -> None:
    after = org.bus.last_replay_id
    transaction = org.begin()
    transaction.update(org.schema.objects["User"], ids(org, "User")[0], {"Phone": "+1"})
    transaction.update(org.schema.objects["Contact"], ids(org, "Contact")[0], {"Phone": "+1"})
    transaction.unselected()
    transaction.update(org.schema.objects["Contact"], ids(org, "Contact", 2)[1], {"Phone": "+2"})
    org.commit(transaction)
    assert [header(e["payload"])["sequenceNumber"] for e in published(org, after)] == [2, 4]


def test_a_record_changed_twice_in_a_transaction_is_one_event_of_the_first_kind_with_the_last_data(org: Org) -> None:
    after = org.bus.last_replay_id
    contact = org.schema.objects["Contact"]
    transaction = org.begin()
    record = transaction.create(contact, {"LastName": "One", "Phone": "+1"})
    transaction.update(contact, record, {"LastName": "Two", "Phone": None})
    gone = transaction.create(contact, {"LastName": "Never seen"})
    transaction.delete(contact, gone)
    old = ids(org, "Contact")[0]
    transaction.update(contact, old, {"Phone": "+9"})
    transaction.delete(contact, old)
    org.commit(transaction)
    made = [e["payload"] for e in published(org, after)]
    assert [(header(p)["changeType"], header(p)["recordIds"]) for p in made] == [("CREATE", [record]), ("DELETE", [old])]
    assert made[0]["Name"] == {"LastName": "Two"}
    assert "Phone" not in made[0]
    assert org.store.find(contact, gone) is None


def test_a_transaction_with_an_error_keeps_nothing(org: Org) -> None:
    before = copy.deepcopy(org.store.tables["Contact"].rows)
    transaction = org.begin()
    transaction.update(org.schema.objects["Contact"], ids(org, "Contact")[0], {"LastName": "Changed"})
    with pytest.raises(SalesforceError):
        transaction.update(org.schema.objects["Contact"], ids(org, "Contact")[0], {"LastName": None})
    assert org.store.tables["Contact"].rows == before


def test_commit_numbers_rise_and_are_no_doubles(org: Org) -> None:
    numbers = [header(update(org, "Account", ids(org, "Account")[0], Phone=f"+{n}"))["commitNumber"] for n in range(20)]
    assert numbers == sorted(set(numbers))
    assert all(len(str(n)) == 19 and int(float(n)) != n for n in numbers)
    stamps = [header(p["payload"])["commitTimestamp"] for p in published(org)]
    assert all(s % 1000 == 0 for s in stamps)


def test_replay_ids_rise_with_holes(org: Org) -> None:
    for n in range(60):
        update(org, "Account", ids(org, "Account")[0], Phone=f"+{n}")
    found = [e["event"]["replayId"] for e in published(org)]
    steps = {b - a for a, b in pairwise(found)}
    assert min(steps) == 1
    assert max(steps) > 1


def test_the_header_stands_anywhere_among_the_fields(org: Org) -> None:
    places = set()
    for n in range(30):
        payload = update(org, "Account", ids(org, "Account")[0], Phone=f"+{n}", Fax=f"+{n}", Site=f"{n}")
        places.add(list(payload).index("ChangeEventHeader"))
    assert len(places) > 1


@pytest.mark.parametrize(
    ("deliver", "kinds"), [("gap", ["GAP_UPDATE", "GAP_DELETE"]), ("overflow", ["GAP_OVERFLOW"]), ("wildcard", ["UPDATE"]), ("lost", [])]
)
def test_a_withheld_change_is_made_and_only_hinted_at(org: Org, deliver: events.Deliver, kinds: list[str]) -> None:
    after = org.bus.last_replay_id
    first, second, third = ids(org, "Account", 3)
    account = org.schema.objects["Account"]
    transaction = org.begin()
    transaction.update(account, first, {"Name": "Withheld"})
    transaction.update(account, second, {"Name": "Too"})
    transaction.delete(account, third)
    org.commit(transaction, deliver=deliver)
    made = [e["payload"] for e in published(org, after)]
    assert [header(p)["changeType"] for p in made] == kinds
    assert all(p.keys() == {"ChangeEventHeader"} and header(p)["changedFields"] == [] for p in made)
    assert (org.store.find(account, first) or {})["Name"] == "Withheld"
    told = [header(p)["recordIds"] for p in made]
    assert told == {"gap": [[first, second], [third]], "overflow": [["000000000000000AAA"]], "wildcard": [["001*"]], "lost": []}[deliver]


def test_more_changes_than_the_limit_end_in_one_overflow_for_each_object(org: Org) -> None:
    org.settings.overflow_after = 4
    after = org.bus.last_replay_id
    transaction = org.begin()
    for kind in ("Account", "Contact", "Account", "Contact"):
        transaction.create(org.schema.objects[kind], {"Name": "A"} if kind == "Account" else {"LastName": "B"})
    for record in ids(org, "Account", 2) + ids(org, "Contact", 2):
        transaction.delete(org.schema.objects["Account" if record.startswith("001") else "Contact"], record)
    org.commit(transaction)
    made = [header(e["payload"]) for e in published(org, after)]
    assert [(h["entityName"], h["changeType"]) for h in made][4:] == [("Account", "GAP_OVERFLOW"), ("Contact", "GAP_OVERFLOW")]


def test_lead_conversion_is_three_creates_and_the_closed_lead(org: Org) -> None:
    after = org.bus.last_replay_id
    transaction = org.begin()
    assert convert(transaction, org.store.tables["Lead"].rows[ids(org, "Lead")[0]])
    org.commit(transaction)
    made = [header(e["payload"]) for e in published(org, after)]
    assert [(h["entityName"], h["changeType"], h["sequenceNumber"]) for h in made] == [
        ("Account", "CREATE", 1),
        ("Contact", "CREATE", 2),
        ("Opportunity", "CREATE", 3),
        ("Lead", "UPDATE", 4),
    ]
    assert {"Status", "IsConverted", "ConvertedDate", "ConvertedContactId", "LastModifiedDate"} <= set(made[3]["changedFields"])


def test_a_long_text_changed_a_little_is_a_diff_that_can_be_applied_and_proven(org: Org) -> None:
    (record,) = ids(org, "Account")
    lines = [f"line {n} of a long description" for n in range(100)]
    update(org, "Account", record, Description="\r\n".join(lines))
    lines[49] = "another line"
    new = "\r\n".join(lines)
    diff = update(org, "Account", record, Description=new)["Description"]["diff"]
    head, proof, *hunk = diff.split("\n")
    assert (head, proof) == ("--- ", f"+++ {hashlib.sha256(new.encode()).hexdigest()}")
    assert hunk == ["@@ -50 +50 @@", "-line 49 of a long description", "+another line"]
    assert update(org, "Account", record, Description="short")["Description"] == "short"


def recorded() -> list[dict[str, Any]]:
    """Recordings of the present shape: with changedFields, without isTransactionEnd."""
    found = []
    for name in ("cometd-emp-connector", "cometd-clients"):
        for line in (DATA / f"{name}.jsonl").read_text().splitlines():
            message = json.loads(line)["message"]
            data = message.get("data", message)
            if "changedFields" in data["payload"]["ChangeEventHeader"] and "isTransactionEnd" not in data["payload"]["ChangeEventHeader"]:
                found.append(data)
    return found


def shape(value: Any) -> Any:
    """What a value looks like: its type, and of text its form."""
    if isinstance(value, str):
        for name, pattern in {
            "id": r"[A-Za-z0-9]{18}",
            "datetime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.000)?Z",
            "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            "origin": r"com/salesforce/api/[a-z]+/\d\d\.0(;client=.+)?|",
            "schema": r"[A-Za-z0-9_-]{22}",
        }.items():
            if re.fullmatch(pattern, value):
                return name
        return "text"
    return [shape(v) for v in value[:1]] if isinstance(value, list) else type(value).__name__


def test_generated_events_have_the_shape_of_the_recorded_ones(org: Org) -> None:
    maker = _Maker(org, 9)
    for _ in range(400):
        maker.one()
    made = published(org)
    kinds = {k: [d for d in made if header(d["payload"])["changeType"] == k] for k in ("CREATE", "UPDATE", "DELETE", "UNDELETE")}
    assert all(kinds.values())
    samples = recorded()
    assert len(samples) > 9
    for sample in samples:
        want = header(sample["payload"])
        for data in kinds[want["changeType"]]:
            have = header(data["payload"])
            assert data.keys() == sample.keys()
            assert data["event"].keys() == sample["event"].keys()
            assert have.keys() == want.keys()
            for name in ("schema", "event"):
                assert shape(data[name]) == shape(sample[name]) or name == "event"
            for name in set(want) - {"changedFields", "entityName", "changeType"}:
                assert shape(have[name]) == shape(want[name]), name
            assert bool(have["changedFields"]) == bool(want["changedFields"])
            system = {"CreatedDate", "CreatedById", "LastModifiedDate", "LastModifiedById", "OwnerId"}
            if want["changeType"] in ("CREATE", "UNDELETE"):
                assert system <= data["payload"].keys()
            for name in system & data["payload"].keys() & sample["payload"].keys():
                assert shape(data["payload"][name]) == shape(sample["payload"][name])


def rebuild(rows: dict[str, Any], data: dict[str, Any], objects: dict[str, SObject]) -> None:
    """What a careful reader makes of an event; written from the published rules, not from the maker's code."""
    payload = dict(data["payload"])
    head = payload.pop("ChangeEventHeader")
    sobject = objects[head["entityName"]]
    flat: dict[str, Any] = {}
    for name, value in payload.items():
        if name in sobject.compounds and not isinstance(value, str):
            parts = {f.component: f.name for f in sobject.compounds[name]}
            flat |= dict.fromkeys(parts.values()) if value is None else {parts[c]: v for c, v in value.items()}
        else:
            flat[name] = value
    for record in head["recordIds"]:
        match head["changeType"]:
            case "CREATE" | "UNDELETE":
                rows[record] = flat
            case "UPDATE":
                rows[record] = rows[record] | flat
            case "DELETE":
                rows.pop(record)


async def test_the_events_alone_rebuild_every_record(org: Org) -> None:
    org.schema.selected.add("User")
    names = {k: [f.name for f in o.fields.values() if not f.hidden and f.name != "Id"] for k, o in org.schema.objects.items()}

    def state() -> dict[str, Any]:
        return {
            row["Id"]: {n: row[n] for n in names[kind] if row.get(n) is not None}
            for kind, table in org.store.tables.items()
            for row in table.rows.values()
            if not row["IsDeleted"]
        }

    rows = state()
    await Changes(org, rate=1e6, wanted=800, seed=11).run()
    for data in published(org):
        rebuild(rows, data, org.schema.objects)
    assert {i: {n: v for n, v in row.items() if v is not None} for i, row in rows.items()} == state()


def test_the_same_seed_gives_the_same_org_and_the_same_life() -> None:
    def life() -> list[Any]:
        made = Org(Schema(), seed=2, clock=lambda: 1_780_000_000.0)
        scenario.seed(made, 50, 2)
        maker = _Maker(made, 3)
        return [[maker.one() for _ in range(100)], [t.rows for t in made.store.tables.values()]]

    assert life() == life()


def test_every_made_up_address_is_reserved_for_examples(org: Org) -> None:
    addresses = [r["Email"] for k in ("User", "Contact", "Lead") for r in org.store.tables[k].rows.values() if r.get("Email")]
    assert len(addresses) > 60
    assert all(re.fullmatch(r"[a-z0-9.]+@example\.(org|com)", a) for a in addresses)
    assert len(addresses) == len(set(addresses))
