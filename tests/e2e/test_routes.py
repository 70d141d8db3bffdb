"""Two orgs whose record ids are the same, two workers that are killed: what a pause parked and a refill tells, by record."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from agents.rules.writes import decode_write
from deploy.local.process import free_port
from deploy.rig import Rig
from deploy.sandbox import client
from models.settings import Settings
from models.write import Write
from streams.consume import read_all
from streams.topics import Topics
from tests.support.rigs import rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(400)]

LOGIN = "{flow: client_credentials, client_id: '${SF_CLIENT_ID}', client_secret: '${SF_CLIENT_SECRET}'}"
FLOW = f"""
connections:
  acme: {{type: salesforce, url: '${{SF_URL}}', auth: {LOGIN}}}
  uat: {{type: salesforce, url: '${{UAT_URL}}', auth: {LOGIN}}}
targets:
  warehouse: {{type: postgres, dsn: '${{DATABASE_URL}}', schema: crm}}
routes:
  contacts: {{from: [acme/Contact, uat/Contact], to: warehouse, map: person}}
  accounts: {{from: [acme/Account, uat/Account], to: warehouse, map: account}}
"""
COPIES = ("acme", "uat")


class Copies:
    """A rig with an org and its full copy."""

    def __init__(self, made: Rig, uat: str) -> None:
        self.rig, self._urls = made, {"acme": made.salesforce, "uat": uat}
        self.settings = Settings(
            installation=made.name,
            kafka=made.environment["KAFKA_BOOTSTRAP_SERVERS"],
            partitions=int(made.environment["HEADRACE_PARTITIONS"]),
        )

    def ask(self, org: str, method: str, path: str, body: Any = None) -> Any:
        return client.call(self._urls[org], method, path, body)

    def expected(self, name: str = "Contact") -> dict[str, str]:
        """By key the last name, or the name, of every living record of both orgs that the rules let through."""
        found = {}
        for org in COPIES:
            for record in self.ask(org, "GET", f"/sandbox/records?type={name}")["records"]:
                whole = name == "Account" or record.get("Email") or (record.get("FirstName") and record.get("LastName"))
                if not record["IsDeleted"] and whole:
                    found[f"{org}/{record['Id']}"] = (record["Name"] if name == "Account" else record["LastName"]).strip()
        return found

    def rows(self, table: str = "person", column: str = '"lastName"') -> dict[str, str]:
        with self.rig.database() as database:
            try:
                return dict(database.execute(f"SELECT _key, {column} FROM crm.{table} WHERE NOT _deleted").fetchall())
            except psycopg.errors.UndefinedTable:
                return {}

    def equal(self) -> bool:
        return self.rows() == self.expected() and self.rows("account", "name") == self.expected("Account")

    def change(self, org: str, count: int, round: int) -> list[str]:
        """Change so many Contacts, each in a transaction of its own; their ids."""
        ids = sorted(
            record["Id"] for record in self.ask(org, "GET", "/sandbox/records?type=Contact")["records"] if not record["IsDeleted"]
        )[:count]
        for id in ids:
            change = {"op": "update", "type": "Contact", "id": id, "values": {"LastName": f"{org} {round}"}}
            self.ask(org, "POST", "/sandbox/transaction", {"changes": [change]})
        return ids

    async def writes(self, *, bulk: bool) -> list[Write]:
        topic = Topics(self.settings.installation).writes("warehouse", bulk=bulk)
        return [decode_write(record.value).whole() for record in await read_all(self.settings, topic)]

    def status(self) -> Any:
        return json.loads(self.rig.command("status", "--json")[1])  # code 1 while a process that was killed does not answer


@pytest.fixture(scope="module")
def copies(kafka: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    folder = tmp_path_factory.mktemp("copies")
    file = folder / "flow.yaml"
    file.write_text(FLOW)
    port = free_port()
    url = f"http://localhost:{port}"
    with rig(folder / "rig", kafka, database_url, records=4000, hold=3.0, flow=file, environ={"UAT_URL": url}) as made:
        made._spawn("uat", "sandbox", "salesforce", "--port", str(port), *made._sandbox)  # the same seed: the same ids
        made.start_services()
        made.await_("the copy", lambda: bool(client.call(url, "GET", "/sandbox/state")))
        for name in ("worker", "worker-2"):
            made.run("worker", name=name)
        made.run("subscribe", "all", "--from", "new")
        for name in ("worker", "worker-2", "subscribe"):
            made.wait_ready(name)
        yield Copies(made, url)


def test_records_of_two_orgs_with_the_same_ids_are_two_rows_each(copies: Copies) -> None:
    copies.rig.await_("both snapshots", copies.equal, 120)
    ids = Counter(key.partition("/")[2] for key in copies.rows())
    assert set(ids.values()) == {2}
    assert len(ids) > 1000
    for org in COPIES:
        copies.change(org, 3, 1)
    copies.rig.await_("the changes", copies.equal)
    assert {"acme 1", "uat 1"} <= set(copies.rows().values())
    code, printed = copies.rig.command("verify", "uat/Contact", "--json", "--no-repair")
    assert (code, json.loads(printed.splitlines()[0])["differences"]) == (0, []), printed


async def test_a_paused_route_tells_each_record_that_changed_once_though_workers_are_killed(copies: Copies) -> None:
    made = copies.rig
    assert made.command("pause", "contacts", "--because", "a new map is tried")[0] == 0
    made.await_(
        "the pause to be heard",
        lambda: "paused" in made.processes["worker"].log_tail(5) and "paused" in made.processes["worker-2"].log_tail(5),
    )
    before = len(await copies.writes(bulk=False))
    changed = {org: copies.change(org, 150, 2) for org in COPIES}
    made.kill("worker")
    changed = {org: [*ids, *copies.change(org, 150, 3)] for org, ids in changed.items()}
    expected = sum(len(set(ids)) for ids in changed.values())
    made.await_("all to be parked", lambda: [held["waiting"] for held in copies.status()["held"]] == [expected])
    assert not {"acme 2", "uat 3"} & set(copies.rows().values())
    assert len(await copies.writes(bulk=False)) == before, "nothing of the route was emitted, and nothing else changed"
    assert made.command("resume", "contacts")[0] == 0
    made.kill("worker-2")
    made.await_("the rows", copies.equal, 120)
    made.await_("nothing left to tell", lambda: copies.status()["held"] == [])
    told = Counter(write.key for write in await copies.writes(bulk=True) if write.run == "resume-contacts")
    assert told == {f"{org}/{id}": 1 for org, ids in changed.items() for id in ids}


async def test_a_refill_emits_each_record_exactly_once_though_both_workers_are_killed_and_it_is_paused_between(copies: Copies) -> None:
    made = copies.rig
    made.await_("peace", copies.equal, 120)
    expected = copies.expected()
    with made.database() as database:
        database.execute("DELETE FROM crm.person")
    assert made.command("pause", "contacts")[0] == 0
    process = made.run("refill", "contacts")
    made.await_("the run", lambda: bool(copies.status()["refills"]))
    process.stop(20.0)
    [begun] = copies.status()["refills"]
    assert not begun["done"], "it waits"
    assert made.command("resume", "contacts")[0] == 0
    made.kill("worker")
    assert made.command("pause", "contacts")[0] == 0
    made.kill("worker-2")
    assert made.command("resume", "contacts")[0] == 0
    made.kill("worker")

    def run() -> Any:
        return next(one for one in copies.status()["refills"] if one["run"] == begun["run"])

    made.await_("its end", lambda: run()["done"], 120)
    made.await_("the rows", copies.equal, 120)
    told = Counter(write.key for write in await copies.writes(bulk=True) if write.run == begun["run"])
    assert set(told.values()) == {1}
    assert told.keys() == expected.keys()
    assert run()["seen"] == run()["total"] >= len(expected)
    code, printed = made.command("refill", "contacts", "--json")
    assert (code, json.loads(printed.splitlines()[0])["run"] != begun["run"]) == (0, True), printed
