"""Swarm gates on real Kafka and PostgreSQL: a route is held, the other flows; what was held is refused, or told once it is mended."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from models.envelope import Envelope, Kind, Reason
from models.settings import Settings
from streams.engine.stage import Output
from streams.publish import Publisher
from streams.topics import Topics
from tests.support.broker import settings_for, topics

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(240)]
FLOW = """\
connections:
  acme: {type: salesforce, url: "https://x.my.salesforce.com", auth: {flow: client_credentials, client_id: x, client_secret: y}}
targets: {warehouse: {type: postgres, dsn: "${DATABASE_URL}", schema: "${SCHEMA}"}}
routes:
  gated: {from: acme/Contact, to: warehouse, map: contact, object: gated, gates: {delete: 5, null: 5}}
  open: {from: acme/Contact, to: warehouse, map: contact, object: open}
"""
BODY = {"FirstName": "Z", "LastName": "M", "Title": "t", "Phone": "1", "AccountId": "001"}
Rows = dict[str, str | None]


class Desk:
    """A worker on real servers; events are written where a subscriber writes them."""

    def __init__(self, settings: Settings, folder: Path, database_url: str) -> None:
        self.settings, self.folder, self.schema = settings, folder, settings.installation.replace("-", "_")
        self.position = 10
        self.database = psycopg.connect(database_url, autocommit=True)
        self.environ = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka,
            "HEADRACE_INSTALLATION": settings.installation,
            "HEADRACE_PARTITIONS": str(settings.partitions),
            "HEADRACE_STATE_DIR": str(settings.state),
            "HEADRACE_FLOW": str(folder / "flow.yaml"),
            "DATABASE_URL": database_url,
            "SCHEMA": self.schema,
        }

        with (folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "deploy", "worker", "--no-supervise"]
            self.worker = subprocess.Popen(command, env=self.environ, stdout=log, stderr=subprocess.STDOUT)

    def command(self, *arguments: str) -> Any:
        """Its answer in JSON."""
        command = [sys.executable, "-m", "deploy", *arguments, "--json"]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def change(self, kind: str, ids: range, body: Mapping[str, Any] | None = None) -> None:
        """Of each of these Contacts one event."""
        outputs = []
        for n in ids:
            self.position += 1
            id, second = f"003Qx{n:010d}AAA", 1_700_000_000 + self.position
            header = {"entityName": "Contact", "recordIds": [id], "changeType": kind, "commitTimestamp": second * 1000}
            payload = {"ChangeEventHeader": {**header, "changedFields": list(body or ()) if kind == "UPDATE" else []}, **(body or {})}
            if kind in ("CREATE", "UNDELETE"):
                payload["Email"] = f"{n}@example.org"
            message = {"data": {"schema": "x", "payload": payload, "event": {"replayId": self.position}}, "channel": "/data/ChangeEvents"}
            envelope = Envelope(kind=Kind.CHANGE, reason=Reason.LIVE, received=second * 1000, epoch=1, position=self.position)
            topic = Topics(self.settings.installation).inbound("acme/Contact")
            outputs.append(Output(topic, id.encode(), json.dumps(message).encode(), envelope.headers()))

        async def send() -> None:
            publisher = Publisher(self.settings)
            await publisher.send(outputs)
            await publisher.stop()

        asyncio.run(send())

    def rows(self, table: str, column: str = "title") -> Rows:
        """By key, of what stands."""
        query = sql.SQL("SELECT _key, {} FROM {} WHERE NOT _deleted").format(sql.Identifier(column), sql.Identifier(self.schema, table))
        try:
            return dict(self.database.execute(query).fetchall())
        except psycopg.errors.UndefinedTable:
            return {}

    def until(self, what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not true():
            lives = self.worker.poll() is None and time.monotonic() < deadline
            assert lives, f"{what}: {self.rows('gated')}\n{(self.folder / 'log').read_text()[-3000:]}"
            time.sleep(0.1)

    def held(self) -> Any:
        """As `status` shows it; its exit code tells of processes that a test does not have."""
        command = [sys.executable, "-m", "deploy", "status", "--json"]
        return json.loads(subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=90, check=False).stdout)["held"]


@pytest.fixture(scope="module")
def desk(kafka: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("swarms")
    (folder / "flow.yaml").write_text(FLOW)
    settings = settings_for(kafka, folder / "state")
    made = Desk(settings, folder, database_url)
    try:
        made.until("the worker", lambda: "worker started" in (folder / "log").read_text())
        yield made
    finally:
        made.worker.kill()
        made.worker.wait()
        made.database.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(made.schema)))
        made.database.close()

        async def clean() -> None:
            async with topics(settings, []):
                pass

        asyncio.run(clean())


def test_a_mass_delete_is_held_and_refused_a_mass_null_is_held_mended_and_resumed(desk: Desk) -> None:
    desk.change("CREATE", range(30), BODY)
    desk.until("all rows", lambda: len(desk.rows("gated")) == len(desk.rows("open")) == 30)
    desk.change("DELETE", range(20))
    desk.until("the other route", lambda: len(desk.rows("open")) == 10)
    [held] = desk.held()
    assert (held["name"], "records left it within an hour" in held["because"]) == ("gated", True)
    kept = desk.rows("gated")
    assert len(kept) == 10 + held["waiting"] >= 25, "at most what the gate lets through has left"
    desk.change("UPDATE", range(20, 22), {"Title": "other"})
    desk.until("a change that waits too", lambda: desk.held()[0]["waiting"] == held["waiting"] + 2)

    refused = desk.command("refuse", "gated", "--because", "an import")
    assert (refused["gate"], refused["waiting"]) == ("delete", held["waiting"] + 2)
    desk.until("what was no delete", lambda: sum(title == "other" for title in desk.rows("gated").values()) == 2)
    assert desk.rows("gated").keys() == kept.keys(), "the target keeps what it has"
    assert desk.held() == []
    [decision] = desk.command("quality", "gated")["refused"]
    assert (decision["dropped"], "an import" in decision["why"]) == (held["waiting"], True)

    desk.change("UPDATE", range(20, 30), {"Title": None})
    desk.until("the other route", lambda: set(desk.rows("open").values()) == {None})
    assert [one["name"] for one in desk.held()] == ["gated"]
    assert sum(title is None for title in desk.rows("gated").values()) <= 5
    desk.change("UPDATE", range(20, 30), {"Title": "mended"})
    desk.until("the other route", lambda: set(desk.rows("open").values()) == {"mended"})
    desk.command("resume", "gated")
    desk.until("all as it was mended", lambda: sum(title == "mended" for title in desk.rows("gated").values()) == 10)
    assert len(desk.rows("gated")) == len(kept)

    assert desk.command("refill", "gated")["done"]
    desk.until("what was refused, told after all", lambda: desk.rows("gated").keys() == desk.rows("open").keys())
