"""Lead conversion and person accounts of the sandbox org: which records come of them and which events tell it."""

import random
from typing import Any

import pytest

from deploy.sandbox.salesforce import events
from deploy.sandbox.salesforce.conversion import convert
from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import Schema
from deploy.sandbox.salesforce.store import Transaction

USER = "005Qx000000Us7EIAS"


def told(org: Org, transaction: Transaction) -> list[Any]:
    """The payloads of a commit's events."""
    commit = events.Commit(USER, "", 1_777_887_011, 1)
    return [e.payload for e in events.make(transaction.commit(), commit, org.schema.selected, random.Random(1))]


def begin(org: Org) -> Transaction:
    return Transaction(org.store, USER, 1_777_887_011)


def made(org: Org, kind: str, **written: Any) -> str:
    transaction = begin(org)
    record = transaction.create(org.schema.objects[kind], written)
    transaction.commit()
    return record


LEAD = {
    "FirstName": "Ada",
    "LastName": "Lead",
    "Company": "Birch",
    "Email": "ada@example.org",
    "City": "Lyon",
    "Industry": "Energy",
    "LeadSource": "Web",
}


def test_a_conversion_makes_three_records_then_closes_the_lead_in_one_transaction() -> None:
    org = Org(Schema())
    lead = made(org, "Lead", **LEAD)
    transaction = begin(org)
    became = convert(transaction, org.store.anywhere(lead) or {})
    found = told(org, transaction)
    heads = [p["ChangeEventHeader"] for p in found]
    assert [(h["entityName"], h["changeType"], h["sequenceNumber"]) for h in heads] == [
        ("Account", "CREATE", 1), ("Contact", "CREATE", 2), ("Opportunity", "CREATE", 3), ("Lead", "UPDATE", 4),
    ]  # fmt: skip
    assert len({h["transactionKey"] for h in heads}) == 1
    account, contact, deal, closed = found
    assert (account["Name"], account["BillingAddress"], account["Industry"]) == ("Birch", {"City": "Lyon"}, "Energy")
    assert (contact["Name"], contact["Email"], contact["AccountId"]) == (
        {"FirstName": "Ada", "LastName": "Lead"},
        LEAD["Email"],
        became["AccountId"],
    )
    assert deal["AccountId"] == became["AccountId"]
    for kind in ("Account", "Contact", "Opportunity"):
        assert closed[f"Converted{kind}Id"] == became[f"{kind}Id"]
    assert (closed["IsConverted"], closed["Status"], closed["ConvertedDate"]) == (True, "Closed - Converted", "2026-05-04")


def test_a_conversion_into_existing_records_fills_what_is_empty_there_and_makes_no_opportunity_when_told_so() -> None:
    org = Org(Schema())
    account, contact = made(org, "Account", Name="Old", Industry="Banking"), made(org, "Contact", LastName="Kept")
    lead = made(org, "Lead", **LEAD)
    transaction = begin(org)
    assert convert(transaction, org.store.anywhere(lead) or {}, account, contact, opportunity=False)["OpportunityId"] is None
    found = told(org, transaction)
    assert [(p["ChangeEventHeader"]["entityName"], p["ChangeEventHeader"]["changeType"]) for p in found] == [
        ("Account", "UPDATE"), ("Contact", "UPDATE"), ("Lead", "UPDATE"),
    ]  # fmt: skip
    assert (org.store.anywhere(account) or {})["Industry"] == "Banking"
    assert (org.store.anywhere(contact) or {})["LastName"] == "Kept"
    assert (org.store.anywhere(contact) or {})["Email"] == LEAD["Email"]
    assert "ConvertedOpportunityId" not in found[2]


@pytest.fixture
def people() -> Org:
    """An org with person accounts and a custom field on contacts."""
    schema = Schema({"Contact": {"Score__c": "double"}})
    schema.enable_person_accounts()
    return Org(schema)


def test_a_person_account_is_two_events_and_its_name_an_object(people: Org) -> None:
    transaction = begin(people)
    given = {"FirstName": "Ada", "LastName": "Person", "PersonEmail": "ada@example.org", "Score__pc": 4.5, "PersonMailingCity": "Lyon"}
    account_id = transaction.create(people.schema.objects["Account"], given)
    account, contact = told(people, transaction)
    contact_id = contact["ChangeEventHeader"]["recordIds"][0]
    assert account["Name"] == contact["Name"] == {"FirstName": "Ada", "LastName": "Person"}
    assert (account["PersonContactId"], account["IsPersonAccount"], account["Score__pc"]) == (contact_id, True, 4.5)
    assert (contact["AccountId"], contact["IsPersonAccount"], contact["Score__c"]) == (account_id, True, 4.5)
    assert (account["PersonMailingAddress"], contact["MailingAddress"]) == ({"City": "Lyon"}, {"City": "Lyon"})
    assert account["ChangeEventHeader"]["transactionKey"] == contact["ChangeEventHeader"]["transactionKey"]
    assert (people.store.anywhere(account_id) or {})["Name"] == "Ada Person"


def test_either_half_of_a_person_changes_the_other(people: Org) -> None:
    account_id = made(people, "Account", LastName="Person")
    contact_id = (people.store.anywhere(account_id) or {})["PersonContactId"]
    for kind, record, given in (
        ("Account", account_id, {"PersonEmail": "new@example.org", "LastName": "New"}),
        ("Contact", contact_id, {"Email": "other@example.org", "Score__c": 2.0}),
    ):
        transaction = begin(people)
        transaction.update(people.schema.objects[kind], record, given)
        found = {p["ChangeEventHeader"]["entityName"]: p for p in told(people, transaction)}
        assert found["Account"]["PersonEmail"] == found["Contact"]["Email"] == given.get("PersonEmail", given.get("Email"))
        assert "LastModifiedDate" in found["Account"]["ChangeEventHeader"]["changedFields"]
    assert (people.store.anywhere(account_id) or {})["Score__pc"] == 2.0
    transaction = begin(people)
    transaction.delete(people.schema.objects["Account"], account_id)
    assert [p["ChangeEventHeader"]["changeType"] for p in told(people, transaction)] == ["DELETE", "DELETE"]
    transaction = begin(people)
    transaction.undelete(people.schema.objects["Account"], account_id)
    assert [p["ChangeEventHeader"]["changeType"] for p in told(people, transaction)] == ["UNDELETE", "UNDELETE"]


def test_a_business_account_beside_persons_keeps_its_name_a_text(people: Org) -> None:
    account_id = made(people, "Account", Name="Birch Works")
    transaction = begin(people)
    transaction.update(people.schema.objects["Account"], account_id, {"Name": "Birch Labs"})
    (event,) = told(people, transaction)
    assert event["Name"] == "Birch Labs"
    assert "Name" in event["ChangeEventHeader"]["changedFields"]
    with pytest.raises(SalesforceError, match="REQUIRED_FIELD_MISSING"):
        begin(people).create(people.schema.objects["Account"], {"FirstName": "Nobody"})
