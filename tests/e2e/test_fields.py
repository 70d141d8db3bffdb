"""Fields that an org gets and loses while everything runs, and one that a map gets: what becomes of them, and what is read for it."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL

from deploy.rig import Rig
from tests.support.rigs import WAREHOUSE, queries, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(400)]
FLOW = (
    WAREHOUSE
    + """\
routes:
  whole: {from: acme/Contact, to: warehouse, map: maps/whole.yaml, fields: all, quality: []}
  few: {from: acme/Contact, to: warehouse, map: maps/few.yaml, quality: []}
  leads: {from: acme/Lead, to: warehouse, map: maps/leads.yaml, quality: []}
  told: {from: acme/Opportunity, to: warehouse, map: maps/deals.yaml, object: told, quality: []}
  asked: {from: acme/Opportunity, to: warehouse, map: maps/deals.yaml, object: asked, fetch: query, quality: []}
"""
)
DEALS = """
version: 1
fields:
  Name: {to: name, transform: trim}
  StageName: {to: stage, transform: uppercase}
  Amount: {to: amount, type: number, nulls: skip}
  CloseDate: {to: closes, type: date}
  NextStep: {to: next, default: none}
  Account.Name: account
  Owner.Email: {to: owner, transform: mail}
"""
MAPS = {"whole": "Email: email\n", "few": "LastName: last\nLevel__c: level\n", "leads": "LastName: last\n", "deals": DEALS}


@pytest.fixture(scope="module")
def made(kafka: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("fields")
    (folder / "maps").mkdir()
    for name, text in MAPS.items():
        (folder / "maps" / f"{name}.yaml").write_text(text)
    (folder / "flow.yaml").write_text(FLOW)
    (folder / "org.yaml").write_text("Contact: {Level__c: string}\n")
    with rig(folder / "rig", kafka, database_url, records=60, hold=2.0, flow=folder / "flow.yaml", fields=folder / "org.yaml") as found:
        found.start()
        found.await_("the first snapshot", lambda: len(rows(found, "whole")) == len(ids(found, "Contact")) > 10)
        found.await_("the leads", lambda: len(rows(found, "leads")) == len(ids(found, "Lead")) > 3)
        yield found


def rows(made: Rig, table: str, *columns: str) -> dict[str, tuple[Any, ...]]:
    """Of what stands, by record id."""
    with made.database() as database:
        try:
            query = SQL(", ".join(["_key", *(f'"{column}"' for column in columns)]))
            found = database.execute(SQL("SELECT {} FROM crm.{} WHERE NOT _deleted").format(query, SQL(table)))
            return {key.rpartition("/")[2]: tuple(values) for key, *values in found.fetchall()}
        except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable):
            return {}


def ids(made: Rig, sobject: str) -> list[str]:
    return [r["Id"] for r in made.ask("GET", f"/sandbox/records?type={sobject}")["records"] if not r["IsDeleted"]]


def update(made: Rig, sobject: str, id: str, how: str = "transaction", **values: Any) -> None:
    made.ask("POST", f"/sandbox/{how}", {"changes": [{"op": "update", "type": sobject, "id": id, "values": values}], **LOST[how]})


LOST: dict[str, dict[str, str]] = {"transaction": {}, "gap": {"deliver": "lost"}}


def test_a_new_field_of_the_org_is_a_column_and_only_it_is_read_of_the_records_that_are_there(made: Rig) -> None:
    contacts = ids(made, "Contact")
    filled, told = contacts[:3], contacts[5]
    assert rows(made, "whole", "LeadSource", "Level__c", "Name"), "every other field had its column from the start"
    seen, few = queries(made, "Contact"), rows(made, "few", "_written_at")
    made.ask("POST", "/sandbox/objects", {"Contact": {"Score__c": "double"}})
    for id in filled:
        update(made, "Contact", id, "gap", Score__c=12.5)  # before anybody looked: no event tells of it
    update(made, "Contact", told, Score__c=7)
    wanted = {**dict.fromkeys(contacts, (None,)), **dict.fromkeys(filled, (12.5,)), told: (7,)}
    made.await_("the new column with its values", lambda: rows(made, "whole", "Score__c") == wanted)
    read = seen()
    pages = [text for text, found in read if "Id IN" not in text and found == len(contacts)]
    assert pages == ["SELECT Id,IsDeleted,SystemModstamp,Score__c FROM Contact ORDER BY Id LIMIT 2000"]
    assert [found for text, found in read if "Id IN" in text] in ([], [1]), "whole rows: at most the one that changed meanwhile"
    assert rows(made, "few", "_written_at") == few, "what other routes wrote is as it was"
    assert made.command("dead-letters", "--json")[1].strip() == "[]"


def test_a_field_that_the_org_loses_holds_nothing_up_and_its_column_stays(made: Rig) -> None:
    first, second = ids(made, "Contact")[:2]
    update(made, "Contact", first, Level__c="gold")
    made.await_("a level", lambda: rows(made, "few", "level").get(first) == ("gold",))
    made.ask("POST", "/sandbox/objects", {"Contact": {"Level__c": None, "Score__c": None}})
    made_of = {"changes": [{"op": "create", "type": "Contact", "values": {"LastName": "Late"}}]}
    [late] = made.ask("POST", "/sandbox/transaction", made_of)["ids"]
    update(made, "Contact", first, LastName="Later")
    update(made, "Contact", second, LastName="Second")
    made.await_("a record made since", lambda: rows(made, "few", "last", "level").get(late) == ("Late", None))
    made.await_("a change since", lambda: rows(made, "few", "last", "level").get(first) == ("Later", "gold"))
    made.await_("the other table", lambda: rows(made, "whole", "LastName", "Score__c").get(first) == ("Later", 12.5))
    assert made.command("dead-letters", "--json")[1].strip() == "[]"
    made.await_("the warning", lambda: "Level__c" in made.command("status")[1])
    made.ask("POST", "/sandbox/objects", {"Contact": {"Level__c": "string"}})
    update(made, "Contact", second, "gap", Level__c="silver")
    update(made, "Contact", late, LastName="Latest")
    made.await_("what changed while it was not shown", lambda: rows(made, "few", "level").get(second) == ("silver",))


def test_a_field_that_a_map_gets_by_editing_is_read_of_the_records_that_change_and_of_nothing_else(made: Rig) -> None:
    leads = ids(made, "Lead")
    seen, path = queries(made, "Lead"), Path(made.flow).parent / "maps" / "leads.yaml"
    began = time.monotonic()
    path.write_text("LastName: last\nTitle: title\n")
    made.await_("the new version", lambda: '"version":2,' in made.command("status", "--json")[1].replace(" ", "").replace("\n", ""))
    update(made, "Lead", leads[0], "gap", Title="CEO")
    update(made, "Lead", leads[0], LastName="Changed")
    made.await_("its value", lambda: rows(made, "leads", "last", "title").get(leads[0]) == ("Changed", "CEO"))
    assert time.monotonic() - began < 60, "an edit is in the target within a minute"
    [(text, found)] = seen()
    assert found == 1
    assert f"Id IN ('{leads[0]}')" in text
    update(made, "Lead", leads[0], LastName="Again")
    made.await_("its next change", lambda: rows(made, "leads", "last").get(leads[0]) == ("Again",))
    assert len(seen()) == 1, "which is not incomplete any more"
    assert {title for id, (title,) in rows(made, "leads", "title").items() if id != leads[0]} == {None}


def test_a_route_by_event_and_one_by_query_hold_the_same_rows(made: Rig) -> None:
    made.ask("POST", "/sandbox/change", {"rate": 30, "seconds": 5, "seed": 11, "rename_parents": False})
    made.await_("the changes", lambda: made.ask("GET", "/sandbox/change")["runs"][-1]["finished"])
    records = [r for r in made.ask("GET", "/sandbox/records?type=Opportunity")["records"] if not r["IsDeleted"]]
    wanted = {r["Id"]: (r["Name"].strip(), r["StageName"].upper()) for r in records}

    def rows_are(table: str) -> bool:
        return rows(made, table, "name", "stage") == wanted

    for table in ("told", "asked"):
        made.await_(f"all in {table}", partial(rows_are, table))
    columns = ("name", "stage", "amount", "closes", "next", "account", "owner")
    made.await_("the same in both", lambda: rows(made, "told", *columns) == rows(made, "asked", *columns))
