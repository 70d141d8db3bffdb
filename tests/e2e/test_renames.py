"""An Account with 100,000 Contacts gets another name, and a worker is killed between the pages in which they are read: none is left out."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import psycopg
import pytest

from deploy.rig import Rig
from models.settings import Settings
from streams.consume import read_all
from streams.topics import Topics
from tests.support.rigs import WAREHOUSE, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(900)]
CHILDREN, AT_ONCE = 100_000, 5_000
PAGES = CHILDREN // 2_000
GROWTH = 250_000_000
"""Bytes that a worker may take more while it does this: the rows of all children would be more."""
FLOW = (
    WAREHOUSE
    + """\
routes:
  contacts: {from: acme/Contact, to: warehouse, map: contact.yaml, object: person}
"""
)
MAP = "{Id: id, LastName: lastName, Title: title, Account.Name: company}"


@pytest.fixture
def made(kafka: str, database_url: str, tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "contact.yaml").write_text(MAP)
    with rig(tmp_path / "rig", kafka, database_url, records=100, hold=2.0, flow=tmp_path / "flow.yaml") as found:
        found.start_services()
        yield found


def test_a_renamed_account_reaches_all_its_contacts_through_a_kill_while_live_changes_flow(made: Rig) -> None:
    [account] = commit(made, {"op": "create", "type": "Account", "values": {"Name": "Before"}})
    for start in range(0, CHILDREN, AT_ONCE):
        values = [{"LastName": f"C{n}", "AccountId": account} for n in range(start, start + AT_ONCE)]
        commit(made, *({"op": "create", "type": "Contact", "values": each} for each in values))
    [other] = commit(made, {"op": "create", "type": "Contact", "values": {"LastName": "Other"}})
    for role in ("worker", "subscribe"):  # whose first start takes a snapshot
        made.run(role)
    with made.database() as database:
        made.await_("the table", lambda: count(database, "to_regclass('crm.person') IS NOT NULL", "pg_database") > 0)
        made.await_("all rows", lambda: slowly() and count(database, "company = 'Before'") == CHILDREN, 300)
        before, most, began = memory(made), 0, time.monotonic()
        commit(made, {"op": "update", "type": "Account", "id": account, "values": {"Name": "After"}})
        made.await_("some pages", lambda: pages(made) >= 5, 120)
        made.kill("worker")
        read = pages(made)
        commit(made, {"op": "update", "type": "Contact", "id": other, "values": {"Title": "live"}})
        made.await_("a live change", lambda: count(database, "title = 'live'") == 1, 120)
        renamed = count(database, "company = 'After'")
        while count(database, "company = 'After'") < CHILDREN:
            assert time.monotonic() < began + 300, count(database, "company = 'After'")
            most = max(most, memory(made))
            slowly()
        took = time.monotonic() - began
        assert count(database, "company = 'Before'") == 0
    print(f"\n{CHILDREN:,} children in {took:.0f} s with the kill; killed after {read} of {PAGES} pages; a live change was a row when "
          f"{renamed:,} were renamed; the worker had {before / 1e6:.0f} MB before, at most {most / 1e6:.0f} MB meanwhile")  # fmt: skip
    assert read < PAGES, "killed too late to show anything"
    assert renamed < CHILDREN, "the live change waited for all of them"
    assert most - before < GROWTH


def commit(made: Rig, *changes: Any) -> list[str]:
    ids: list[str] = made.ask("POST", "/sandbox/transaction", {"changes": list(changes)})["ids"]
    return ids


def count(database: psycopg.Connection, condition: str, table: str = "crm.person") -> int:
    """Rows of which it is true."""
    found = database.execute(f"SELECT count(*) FROM {table} WHERE {condition}".encode()).fetchone()
    return int(found[0]) if found else 0


def slowly() -> bool:
    """Counting costs the server what is measured."""
    time.sleep(1.0)
    return True


def pages(made: Rig) -> int:
    """Requests for a further page of children so far."""
    settings = Settings(kafka=made.environment["KAFKA_BOOTSTRAP_SERVERS"], installation=made.name, partitions=4)
    records = asyncio.run(read_all(settings, Topics(made.name).fetch("acme")))
    return sum(bool(orjson.loads(record.value or b"{}").get("after")) for record in records)


def memory(made: Rig) -> int:
    """Bytes of the process that works, 0 while there is none."""
    pid = made.processes["worker"].pid
    children = psutil.Process(pid).children() if pid is not None else []
    return max((child.memory_info().rss for child in children), default=0)
