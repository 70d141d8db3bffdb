"""Lead conversion: Account, Contact and Opportunity made or filled up, then the Lead closed, in one transaction; and how a person account
mirrors its contact. What becomes of it in events is not decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.sandbox.salesforce import values

if TYPE_CHECKING:
    from deploy.sandbox.salesforce.store import Row, Transaction

_TO_ACCOUNT = ("Phone", "Fax", "Website", "Industry", "AnnualRevenue", "NumberOfEmployees", "Rating")
_TO_CONTACT = ("Salutation", "FirstName", "LastName", "Email", "Phone", "MobilePhone", "Fax", "Title", "LeadSource", "Description")
_PARTS = ("Street", "City", "State", "PostalCode", "Country")


def convert(
    transaction: Transaction, lead: Row, account_id: str | None = None, contact_id: str | None = None, *, opportunity: bool = True
) -> dict[str, str | None]:
    """Convert a lead; into existing records where their ids are given: those are filled where they are empty. The ids of what it became."""
    objects = transaction.store.schema.objects
    company = {n: lead.get(n) for n in _TO_ACCOUNT} | {f"Billing{p}": lead.get(p) for p in _PARTS}
    if account_id is None:
        account_id = transaction.create(objects["Account"], {"Name": lead["Company"]} | company)
    else:
        _fill(transaction, "Account", account_id, company)
    person = {n: lead.get(n) for n in _TO_CONTACT} | {f"Mailing{p}": lead.get(p) for p in _PARTS}
    if contact_id is None:
        contact_id = transaction.create(objects["Contact"], person | {"AccountId": account_id})
    else:
        _fill(transaction, "Contact", contact_id, person)
    deal = None
    if opportunity:
        named = {"Name": f"{lead['Company']}-", "StageName": "Prospecting", "CloseDate": f"{values.iso(transaction.now)[:4]}-12-31"}
        deal = transaction.create(objects["Opportunity"], named | {"AccountId": account_id, "LeadSource": lead.get("LeadSource")})
    done = {"Status": "Closed - Converted", "IsConverted": True, "ConvertedDate": values.iso(transaction.now)[:10]}
    links = {"ConvertedAccountId": account_id, "ConvertedContactId": contact_id, "ConvertedOpportunityId": deal}
    transaction.update(objects["Lead"], lead["Id"], done | links, system=True)
    return {"AccountId": account_id, "ContactId": contact_id, "OpportunityId": deal}


def _fill(transaction: Transaction, kind: str, record_id: str, given: Row) -> None:
    sobject = transaction.store.schema.objects[kind]
    row = transaction.store.find(sobject, record_id) or {}
    empty = {n: v for n, v in given.items() if v is not None and row.get(n) is None}
    transaction.update(sobject, record_id, empty)


PERSON = {n: n for n in ("Salutation", "FirstName", "LastName")} | {
    f"Person{n}": n for n in ("Email", "MobilePhone", "HomePhone", "Title", "Department", "LeadSource", "Birthdate", "DoNotCall")
}
PERSON |= {f"PersonMailing{p}": f"Mailing{p}" for p in _PARTS}
"""Field of a person account → field of its contact; custom fields of the contact end in `__pc` on the account."""


def of_contact(written: Row) -> Row:
    """What of an account's fields belongs to its contact, under the contact's names."""
    return {PERSON.get(n, f"{n[:-4]}__c"): v for n, v in written.items() if n in PERSON or n.endswith("__pc")}


def of_account(written: Row) -> Row:
    """What of a contact's fields its person account shows, under the account's names."""
    back = {contact: account for account, contact in PERSON.items()}
    return {back.get(n, f"{n[:-3]}__pc"): v for n, v in written.items() if n in back or n.endswith("__c")}
