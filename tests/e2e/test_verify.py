"""What no event told of and what somebody did to the target is found, all of it and nothing else, and mended; then nothing is left."""

import json
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.rig import Rig
from tests.support.rigs import WAREHOUSE, metric, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(600)]
FLOW = (
    WAREHOUSE
    + """\
routes:
  contacts: {from: acme/Contact, to: warehouse, map: person, verify: 24h}
  leads: {from: acme/Lead, to: warehouse, map: person}
"""
)


@pytest.fixture
def chance() -> random.Random:
    """The same differences every time."""
    return random.Random(20)


@contextmanager
def running(folder: Path, kafka: str, database_url: str, records: int, seconds: float) -> Iterator[tuple[Rig, list[str]]]:
    """Contacts in PostgreSQL, all of them; and their ids."""
    (folder / "flow.yaml").write_text(FLOW)
    with rig(folder / "rig", kafka, database_url, records=records, hold=2.0, flow=folder / "flow.yaml") as made:
        made.start_services()
        for role in ("worker", "subscribe"):
            made.run(role)
            made.wait_ready(role)
        everybody = live(made)
        with made.database() as database:
            made.await_("the snapshot", lambda: count(database) == everybody, seconds)
            keys = database.execute("SELECT _key FROM crm.person WHERE _source LIKE 'acme/Contact/%' ORDER BY _key").fetchall()
        contacts = [key.removeprefix("acme/") for (key,) in keys]
        yield made, contacts


def claimed(made: Rig) -> Any:
    """What `status` says of the route that is verified by itself."""
    code, said = made.command("status", "--json")
    assert code == 0, said
    [claim] = [one for one in json.loads(said)["verified"] if one["route"] == "contacts"]
    return claim


def gauge(made: Rig) -> float:
    """The same of the subscriber's metrics; -1 while it has none."""
    return metric(made, "subscribe", "headrace_verified_through_timestamp_seconds", route="contacts")


def live(made: Rig) -> int:
    """Contacts and Leads of the org."""
    objects = made.ask("GET", "/sandbox/state")["objects"]
    return sum(int(objects[name]["records"]) - objects[name]["deleted"] for name in ("Contact", "Lead"))


def count(database: psycopg.Connection) -> int:
    there = database.execute("SELECT to_regclass('crm.person')").fetchone()
    if there is None or there[0] is None:
        return -1
    found = database.execute("SELECT count(*) FROM crm.person WHERE NOT _deleted").fetchone()
    return int(found[0]) if found else -1


def verify(made: Rig, *more: str, code: int = 0) -> Any:
    began = time.monotonic()
    done, said = made.command("verify", "acme/Contact", "--json", *more, timeout=280)
    assert done == code, said
    facts = json.loads(next(line for line in said.splitlines() if line.startswith('{"calls"')))
    return facts | {"seconds": time.monotonic() - began, "peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}


def lost(made: Rig, *changes: dict[str, Any]) -> list[str]:
    answer = made.ask("POST", "/sandbox/transaction", {"changes": changes, "deliver": "lost"})
    return list(answer["ids"])


def plant(made: Rig, contacts: list[str], each: int, chance: random.Random) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """`each` of every kind: what must be found in the source, and in the target, by kind."""
    ids = iter(chance.sample(contacts, 6 * each))
    some = [[next(ids) for _ in range(each)] for _ in range(6)]
    titles: list[dict[str, Any]] = [{"op": "update", "type": "Contact", "id": id, "values": {"Title": f"Lost {id}"}} for id in some[0]]
    emptied: list[dict[str, Any]] = [{"op": "update", "type": "Contact", "id": id, "values": {"Phone": None}} for id in some[1]]
    for change in (*titles, *emptied):
        lost(made, change | {"values": {**change["values"], "FirstName": "Lost"}})
    made_now = [lost(made, {"op": "create", "type": "Contact", "values": {"FirstName": "L", "LastName": f"{n}"}})[0] for n in range(each)]
    for id in some[2]:
        lost(made, {"op": "delete", "type": "Contact", "id": id})
    keys = [[f"acme/{id}" for id in part] for part in some]
    strange = [f"acme/003xx{n:010d}AAA" for n in range(each)]
    with made.database() as database:
        database.execute("DELETE FROM crm.person WHERE _key = ANY(%s)", [keys[3]])
        database.execute("UPDATE crm.person SET title = coalesce(title, '') || '!' WHERE _key = ANY(%s)", [keys[4]])
        database.execute("UPDATE crm.person SET _deleted = true WHERE _key = ANY(%s)", [keys[5]])
        for key in strange:
            database.execute("INSERT INTO crm.person (_key, _turn, _deleted, \"firstName\") VALUES (%s, 0, false, 'Stranger')", [key])
    source = {"changed": {*some[0], *some[1]}, "missing": set(made_now), "deleted": set(some[2])}
    return source, {"missing": set(keys[3]), "changed": set(keys[4]), "deleted": set(keys[5]), "extra": set(strange)}


def by_kind(part: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in part["differences"]:
        found.setdefault(one["kind"], set()).add(one["id"])
    return found


def everything_is_found_and_mended(made: Rig, contacts: list[str], each: int, chance: random.Random) -> Any:
    source, target = plant(made, contacts, each, chance)
    seen = verify(made, "--no-repair", code=1)
    assert (by_kind(seen), by_kind(seen["routes"]["contacts"])) == (source, target)
    assert seen["routes"]["contacts"]["verified_through"] is None
    fields = {field for one in seen["differences"] if one["kind"] == "changed" for field in one["fields"]}
    assert {"Title", "FirstName"} <= fields <= {"Title", "FirstName", "Phone", "Name"}
    mended = verify(made, "--target", "warehouse")
    assert (mended["repaired"], mended["routes"]["contacts"]["repaired"]) == (4 * each, 4 * each)
    assert mended["routes"]["contacts"]["verified_through"] == mended["through"]
    again = verify(made)
    assert not any(again["kinds"].values()) and not any(again["routes"]["contacts"]["kinds"].values()), again
    _, said = made.command("incidents", "--json")
    incidents = [i for i in json.loads(said) if i["cause"] == "verify"]
    assert all(i["state"] == "closed" for i in incidents)
    assert sorted(id for i in incidents for id in i["ids"]) == sorted(set().union(*source.values()))
    with made.database() as database:
        assert count(database) == live(made)
        row = database.execute("SELECT count(*) FROM crm.person WHERE \"firstName\" = 'Lost' AND NOT _deleted").fetchone()
        assert row == (2 * each,)
    return mended


def test_verify_finds_exactly_what_was_lost_or_tampered_with_and_repairs_it(
    kafka: str, database_url: str, tmp_path: Path, chance: random.Random
) -> None:
    with running(tmp_path, kafka, database_url, 4600, 120) as (made, contacts):
        made.await_("the first verification by itself", lambda: gauge(made) > 0, 60)
        first = claimed(made)
        assert (first["through"], first["every"], first["differed"], first["why"]) == (gauge(made), 86_400, 0, "")
        quick = verify(made, "--quick")
        assert (quick["whole"], quick["calls"] < 8, claimed(made)["through"] > first["through"]) == (0, True, True), quick
        everything_is_found_and_mended(made, contacts, 5, chance)
        made.ask("POST", "/sandbox/change", {"rate": 40, "seconds": 600, "seed": 3, "rename_parents": False})
        busy = verify(made)
        assert not any(busy["kinds"].values()) and not any(busy["routes"]["contacts"]["kinds"].values()), busy
        made.ask("DELETE", "/sandbox/change")
        assert not any(verify(made)["kinds"].values())
        with made.database() as database:
            rows = database.execute("SELECT _key FROM crm.person WHERE NOT _deleted AND _source LIKE 'acme/Contact/%' LIMIT 9").fetchall()
        chosen = chance.choice(rows)[0].removeprefix("acme/")
        lost(made, {"op": "update", "type": "Contact", "id": chosen, "values": {"FirstName": "Last"}})
        gone = lost(made, {"op": "delete", "type": "Contact", "id": next(id for id in contacts if id != chosen)})
        made.ask("POST", "/sandbox/purge", {"type": "Contact", "ids": gone})
        time.sleep(2.0)  # so that what follows has a later stamp, in the range of what was lost
        told = {"op": "update", "type": "Contact", "id": contacts[-1], "values": {"FirstName": "Behind"}}
        made.ask("POST", "/sandbox/transaction", {"changes": [told]})
        quick = verify(made, "--quick", "--no-repair", code=1)
        assert by_kind(quick) == {"changed": {chosen}, "extra": set(gone)}
        verify(made, "--quick")
        assert not any(verify(made)["kinds"].values())
        last = claimed(made)
        assert (last["through"] > first["through"], last["at"] > first["at"]) == (True, True)
        made.kill("subscribe")
        made.await_("the end", lambda: gauge(made) < 0)
        made.await_("the subscriber", lambda: gauge(made) == last["through"])
        assert claimed(made) == last, "it did not begin anew"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_differences_among_a_hundred_thousand_rows_are_found_by_reading_few_of_them_whole(
    kafka: str, database_url: str, tmp_path: Path, chance: random.Random
) -> None:
    with running(tmp_path, kafka, database_url, 223_000, 900) as (made, contacts):
        assert len(contacts) >= 100_000
        made.await_("the first verification by itself", lambda: gauge(made) > 0, 300)
        mended = everything_is_found_and_mended(made, contacts, 13, chance)
        print(f"{len(contacts):,} rows: {mended['seconds']:.1f} s, {mended['calls']} calls, {mended['thin']:,} rows thin, "
              f"{mended['whole']} whole ({mended['whole'] / len(contacts):.2%}), {mended['peak'] / 1e6:.0f} MB")  # fmt: skip
        assert mended["whole"] < 0.02 * len(contacts)
