"""Does the target hold what the source holds? Reads both by other means than Headrace does, and knows the demo's flow by heart.

It may import nothing of models, streams or agents: what it expects is written down here a second time, by hand, so that one
misunderstanding cannot pass on both sides.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

Row = dict[str, Any]
Ask = Callable[[str], Any]
"""GET of a sandbox's control path."""

SHOWN = 20
OWN = ("email", "userId", "itblInternal", "signupDate", "signupSource", "profileUpdatedAt")
"""Fields that Iterable itself puts into a profile."""


@dataclass
class Verdict:
    """What was compared and what differs. `held`: records that a quality rule keeps out, by object; they are in the dead letters."""

    compared: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def equal(self) -> bool:
        """Nothing differs, and something was compared."""
        return self.count == 0 and sum(self.compared.values()) > 0

    def differs(self, text: str) -> None:
        """Count a difference; the first ones are kept as text."""
        self.count += 1
        if len(self.differences) < SHOWN:
            self.differences.append(text)


def compare(salesforce: Ask, iterable: Ask, database: psycopg.Connection, schema: str = "crm", *, cases: bool = False) -> Verdict:
    """The whole demo flow: four objects into PostgreSQL, two into Iterable; `cases`: one more route, acme/Case with its built-in map."""
    verdict = Verdict()
    ways: list[tuple[str, str, Callable[[Row], Row | None]]] = [
        ("Contact", "person", expected_person),
        ("Lead", "person", expected_person),
        ("Account", "account", expected_account),
        ("Opportunity", "opportunity", expected_opportunity),
    ]
    if cases:
        ways.append(("Case", "case", _case))
    records = {name: salesforce(f"/sandbox/records?type={name}")["records"] for name in (*(way[0] for way in ways), "User")}
    tables: dict[str, dict[str, Row]] = {table: {} for _, table, _ in ways}
    kept_out: dict[str, set[str]] = {name: set() for name in tables}
    for name, table, make in ways:
        for record in records[name]:
            if record["IsDeleted"]:
                continue
            row = make(record)
            if row is None:
                kept_out[table].add(record["Id"])
            else:
                tables[table][record["Id"]] = row
    for table, expected in tables.items():
        compare_table(verdict, database, schema, table, expected, kept_out[table])
    compare_users(verdict, iterable("/sandbox/users"), records)
    return verdict


def compare_people(salesforce: Ask, database: psycopg.Connection, *, kinds: Iterable[str] = ("Contact",), schema: str = "crm") -> Verdict:
    """Only the table of people, of these objects."""
    verdict = Verdict()
    people = [r for name in kinds for r in salesforce(f"/sandbox/records?type={name}")["records"] if not r["IsDeleted"]]
    rows = {record["Id"]: expected_person(record) for record in people}
    expected = {record_id: row for record_id, row in rows.items() if row is not None}
    compare_table(verdict, database, schema, "person", expected, rows.keys() - expected.keys())
    return verdict


def compare_table(
    verdict: Verdict, database: psycopg.Connection, schema: str, table: str, expected: dict[str, Row], held: set[str]
) -> None:
    """Rows of a table against those expected, by record id; those in `held` may stand as they were."""
    with database.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", [f'"{schema}"."{table}"'])
        if (found := cursor.fetchone()) is None or found[0] is None:
            if expected:
                verdict.differs(f"{table}: no such table, {len(expected)} rows expected")
            return
        cursor.execute(sql.SQL("SELECT * FROM {} WHERE NOT _deleted").format(sql.Identifier(schema, table)))
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, values, strict=True)) for values in cursor]
    actual: dict[str, Row] = {}
    for row in rows:
        record_id = str(row["_key"]).rpartition("/")[2]
        if record_id in actual:
            verdict.differs(f"{table} {record_id}: two rows")
        actual[record_id] = row
    verdict.compared[table] = len(expected)
    verdict.held[table] = len(held)
    for record_id in sorted(expected.keys() - actual.keys()):
        verdict.differs(f"{table} {record_id}: missing")
    for record_id in sorted(actual.keys() - expected.keys() - held):
        verdict.differs(f"{table} {record_id}: there, but deleted or never made in Salesforce")
    for record_id in expected.keys() & actual.keys():
        want, got = expected[record_id], actual[record_id]
        for name in sorted(want):
            if _plain(got.get(name)) != _plain(want[name]):
                verdict.differs(f"{table} {record_id} {name}: {got.get(name)!r} instead of {want[name]!r}")


def compare_users(verdict: Verdict, answer: Any, records: dict[str, list[Row]]) -> None:
    """Iterable's users against the Contacts and Leads with an address; `records` by object, Accounts and Users too."""
    by_id = {row["Id"]: row for name in ("Account", "User") for row in records[name]}
    expected: dict[str, Row] = {}
    for kind in ("Lead", "Contact"):  # the Contact decides, then the lowest id: the last one set stays, beside what only a Lead has
        for record in sorted(records[kind], key=lambda r: str(r["Id"]), reverse=True):
            address = (record.get("Email") or "").strip().lower()
            if address and not record["IsDeleted"]:
                expected[address] = expected.get(address, {}) | _user(kind, record, by_id)
    users: Iterable[Row] = answer["users"]
    actual = {user["email"]: user.get("dataFields", {}) for user in users}
    verdict.compared["users"] = len(expected)
    for address in sorted(expected.keys() - actual.keys()):
        verdict.differs(f"user {address}: missing")
    for address in sorted(actual.keys() - expected.keys()):
        if actual[address].get("deletedAtSource") is not True:
            verdict.differs(f"user {address}: there, but nobody in Salesforce has this address")
    for address in expected.keys() & actual.keys():
        got = _leaves({name: value for name, value in actual[address].items() if name not in OWN})
        want = {path: value for path, value in expected[address].items() if value is not None}
        for path in sorted(want.keys() | got.keys()):
            if got.get(path) != want.get(path):
                verdict.differs(f"user {address} {path}: {got.get(path)!r} instead of {want.get(path)!r}")


def expected_person(record: Row) -> Row | None:
    """The row of a Contact or Lead; None where it lacks what a person needs."""
    address, first, last = _text(record.get("Email")), _text(record.get("FirstName")), _text(record.get("LastName"))
    if not address and not (first and last):
        return None
    row = {
        "externalId": record["Id"],
        "email": address.lower() if address is not None else None,
        "firstName": first,
        "lastName": last,
        "title": _text(record.get("Title")),
        "phone": _text(record.get("Phone")),
    }
    if record["Id"].startswith("003"):
        return row | {"accountExternalId": record.get("AccountId"), "company": None, "status": None}
    return row | {"accountExternalId": None, "company": _text(record.get("Company")), "status": _text(record.get("Status"))}


def expected_account(record: Row) -> Row | None:
    """The row of an Account."""
    return {
        "externalId": record["Id"],
        "name": _text(record["Name"]),
        "domain": _domain(record.get("Website")),
        "industry": _text(record.get("Industry")),
        "employeeCount": record.get("NumberOfEmployees"),
        "annualRevenue": record.get("AnnualRevenue"),
    }


def expected_opportunity(record: Row) -> Row | None:
    """The row of an Opportunity; None where it has no Account."""
    if not record.get("AccountId"):
        return None
    return {
        "externalId": record["Id"],
        "name": _text(record["Name"]),
        "stage": _text(record.get("StageName")),
        "closeDate": record.get("CloseDate"),
        "accountExternalId": record["AccountId"],
        "amount": record.get("Amount"),
    }


def _case(record: Row) -> Row | None:
    return {
        "externalId": record["Id"],
        "number": _text(record.get("CaseNumber")),
        "subject": _text(record.get("Subject")),
        "status": _text(record.get("Status")),
        "priority": _text(record.get("Priority")),
        "accountExternalId": record.get("AccountId"),
        "personExternalId": record.get("ContactId"),
    }


def _user(kind: str, record: Row, by_id: dict[str, Row]) -> Row:
    owner, account = by_id.get(record.get("OwnerId") or ""), by_id.get(record.get("AccountId") or "")
    found = {
        "Name.First": record.get("FirstName"),
        "Name.Last": record.get("LastName"),
        "Salesforce.Id": record["Id"],
        "Lead.Source": record.get("LeadSource"),
        "Owner.Email": owner and owner["Email"],
        "Owner.Name": owner and owner["Name"],
        "Owner.Salesforce.Active": owner and owner["IsActive"],
        "Owner.Salesforce.Id": owner and owner["Id"],
    }
    if kind == "Lead":
        return found | {"Lead.Status": record.get("Status"), "Lead.Salesforce.Id": record["Id"]}
    return found | {"Company.Salesforce.Id": account and account["Id"], "Company.Name": account and account["Name"]}


def _text(value: Any) -> str | None:
    return None if value is None else str(value).strip()


def _domain(website: Any) -> str | None:
    if not website:
        return None
    host = urlsplit(website if "://" in website else f"//{website}").hostname or ""
    return host.removeprefix("www.") or None


def _leaves(value: Any, path: str = "") -> Row:
    """Flat paths of what is not null; an empty object is nothing."""
    if not isinstance(value, dict):
        return {} if value is None else {path: value}
    found: Row = {}
    for name, inner in value.items():
        found |= _leaves(inner, f"{path}.{name}" if path else name)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal | int | float) and not isinstance(value, bool):
        return float(value)
    return value.isoformat() if hasattr(value, "isoformat") else value
