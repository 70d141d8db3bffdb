"""What the example flows must end in, computed from the sandbox Salesforce by other means than Headrace's. As oracle.py, by hand."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg

from deploy.oracle import Verdict, compare_table, compare_users, expected_account, expected_opportunity, expected_person

Ask = Callable[..., Any]
USERS, TOO_LARGE = 1000, 413
"""The most that one bulkUpdate may hold; what the sandbox answers above 4 MB."""
ADDRESS = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")


def compare_iterable(ask: Ask) -> Verdict:
    """Every person with an address that Iterable takes is a user, as the Contact says or else the Lead; and how they were written."""
    verdict = Verdict()
    records = {kind: ask("GET", f"/sandbox/records?type={kind}")["records"] for kind in ("Contact", "Lead", "Account", "User")}
    refused = 0
    for kind in ("Contact", "Lead"):
        bad = [row["Id"] for row in records[kind] if row.get("Email") and not ADDRESS.fullmatch(row["Email"].strip())]
        records[kind] = [row for row in records[kind] if row["Id"] not in bad]
        refused += len(bad)
    verdict.held["users"] = refused
    compare_users(verdict, ask("GET", "/sandbox/users", target="iterable"), records)
    for request in ask("GET", "/sandbox/requests", target="iterable")["requests"]:
        users = request["users"]
        if len(users) > USERS or len(set(users)) < len(users) or request["status"] == TOO_LARGE:
            verdict.differs(f"a request of {len(users)} users, {len(set(users))} different ones, was answered by {request['status']}")
    return verdict


def compare_tables(ask: Ask, database: Callable[[], AbstractContextManager[psycopg.Connection]]) -> Verdict:
    """Contacts, Accounts and Opportunities in their canonical tables; what lacks a required field is in none."""
    verdict = Verdict()
    ways = {
        "Account": ("account", expected_account),
        "Contact": ("person", expected_person),
        "Opportunity": ("opportunity", expected_opportunity),
    }
    with database() as connection:
        for kind, (table, make) in ways.items():
            rows = [row for row in ask("GET", f"/sandbox/records?type={kind}")["records"] if not row["IsDeleted"]]
            made = {row["Id"]: make(row) for row in (_one_of_each_address(rows) if kind == "Contact" else rows)}
            expected = {id: row for id, row in made.items() if row is not None}
            compare_table(verdict, connection, "crm", table, expected, made.keys() - expected.keys())
    return verdict


def _one_of_each_address(people: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of those that share an address, whatever its case, the one changed last, then the lowest id."""
    last: dict[str, dict[str, Any]] = {}
    for row in sorted(people, key=lambda row: str(row["Id"]), reverse=True):
        address = (row.get("Email") or row["Id"]).strip().lower()
        if address not in last or row["SystemModstamp"] >= last[address]["SystemModstamp"]:
            last[address] = row
    return list(last.values())
