"""Gates on real Kafka and PostgreSQL: a swarm is held, refused, mended, told; what the table would refuse is stopped, or held back."""

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

from agents.dead_letters import list_letters
from models.dead_letter import DeadLetter
from models.envelope import Envelope, Kind, Reason
from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Output
from streams.pauses import Pause, read_pauses
from streams.publish import send
from streams.refills import lift, parked_of
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
  strict: {from: acme/Contact, to: warehouse, map: contact, object: strict, quality: [required, target]}
  sole:
    {from: acme/Contact, to: warehouse, map: contact, object: sole, where: "Phone = '7'", quality: [required, duplicates], unique: title}
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

        async def sent() -> None:
            await send(self.settings, outputs)

        asyncio.run(sent())

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

    def held(self) -> tuple[list[Pause], int]:
        """Pauses, and how many records wait for the route `gated`."""

        async def read() -> tuple[list[Pause], int]:
            runs = await read_all(self.settings, Topics(self.settings.installation).runs)
            return list((await read_pauses(self.settings)).values()), parked_of(runs).get("gated", 0)

        return asyncio.run(read())

    def letters(self, *stages: str, route: str = "strict") -> list[DeadLetter]:
        """Open ones of the route."""
        return [one for one in asyncio.run(list_letters(self.settings)) if one.route == route and one.stage in (stages or (one.stage,))]

    def alter(self, change: str, route: str = "strict") -> None:
        table = sql.Identifier(self.schema, route)
        self.database.execute(sql.SQL("ALTER TABLE {} ").format(table) + sql.SQL(change))


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
    desk.until("the pause", lambda: [(one.name, one.gate) for one in desk.held()[0]] == [("gated", "delete")])
    desk.until("each to have left or to wait", lambda: len(desk.rows("gated")) == 10 + desk.held()[1])
    [pause], waiting = desk.held()
    assert "records left it within an hour" in pause.because
    kept = desk.rows("gated")
    assert waiting >= 15, "at most what the gate lets through has left"
    desk.change("UPDATE", range(20, 22), {"Title": "other"})
    desk.until("a change that waits too", lambda: desk.held()[1] == waiting + 2)

    refused = desk.command("refuse", "gated", "--because", "an import")
    assert (refused["gate"], refused["waiting"]) == ("delete", waiting + 2)
    desk.until("what was no delete", lambda: sum(title == "other" for title in desk.rows("gated").values()) == 2)
    desk.until("nothing left to tell", lambda: desk.held() == ([], 0))
    assert desk.rows("gated").keys() == kept.keys(), "the target keeps what it has"
    [decision] = desk.command("quality", "gated")["refused"]
    assert (decision["dropped"], "an import" in decision["why"]) == (waiting, True)

    desk.change("UPDATE", range(20, 30), {"Title": None})
    desk.until("the other route", lambda: set(desk.rows("open").values()) == {None})
    desk.until("the pause", lambda: [one.gate for one in desk.held()[0]] == ["null Title"])
    assert sum(title is None for title in desk.rows("gated").values()) <= 5
    desk.change("UPDATE", range(20, 30), {"Title": "mended"})
    desk.until("the other route", lambda: set(desk.rows("open").values()) == {"mended"})
    asyncio.run(lift(desk.settings, "route", "gated"))
    desk.until("all as it was mended", lambda: sum(title == "mended" for title in desk.rows("gated").values()) == 10)
    assert len(desk.rows("gated")) == len(kept)

    assert desk.command("refill", "gated")["done"]
    desk.until("what was refused, told after all", lambda: desk.rows("gated").keys() == desk.rows("open").keys())


def test_of_records_with_the_same_in_a_unique_column_one_stands_and_the_next_one_comes_back(desk: Desk) -> None:
    def titled(title: str, *ids: int, kind: str = "UPDATE") -> None:
        for n in ids:
            desk.change(kind, range(n, n + 1), {**BODY, "Phone": "7", "Title": title} if kind == "CREATE" else {"Title": title})

    def stand(**ids: int) -> None:
        rows = {f"acme/003Qx{n:010d}AAA": title for title, n in ids.items()}
        desk.until(f"{ids}", lambda: desk.rows("sole") == rows)

    titled("X", 200, kind="CREATE")
    stand(X=200)
    desk.alter("ADD UNIQUE (title)", "sole")
    titled("X", 201, 202, kind="CREATE")
    stand(X=202)
    desk.change("DELETE", range(202, 203))
    stand(X=201)
    titled("Y", 201)
    stand(X=200, Y=201)
    titled("X", 201)
    stand(X=201)
    titled("Y", *range(210, 230), kind="CREATE")
    stand(X=201, Y=229)
    for title in ("Y", "X", "Y"):
        titled(title, 201, *range(210, 215))  # they exchange both values, time and again
        titled("Z", 229)
        titled("XY".replace(title, ""), 229)
    stand(X=229, Y=214)
    assert desk.letters(route="sole") == []
    found = [row["total"] for row in desk.command("quality", "sole")["batches"]]
    counts = [sum(row[name] for row in found) for name in ("inputCount", "passedCount", "failedCount", "duplicatesRemoved")]
    assert counts[0] == sum(counts[1:]) > counts[1], counts
    assert desk.command("quality", "sole")["learned"] == []


@pytest.mark.slow
def test_what_the_table_would_refuse_is_stopped_and_asked_again_when_a_person_says_so(desk: Desk) -> None:
    desk.change("CREATE", range(50, 150), BODY)
    desk.until("all rows", lambda: len(desk.rows("strict")) >= 100)
    desk.alter("ALTER COLUMN title TYPE varchar(10)")
    asked = iter(range(50, 150))

    def stopped(**body: str) -> bool:
        """Whether it is by the time that another record becomes so."""
        before = len(desk.letters())
        desk.change("UPDATE", range((n := next(asked)), n + 1), body)
        desk.until("a dead letter", lambda: len(desk.letters()) > before)
        return bool(desk.letters("process"))

    desk.until("the gate", lambda: stopped(Title="longer than ten"))
    assert desk.letters("write"), "the table itself was asked first"
    first = desk.letters("process")[0].reason
    assert "title: refused by target, found longer text" in first or "title: length in target" in first
    takes = "title: length in target, found text (the target takes at most 10 characters)"
    desk.until("its describe", lambda: stopped(Title="longer than ten") and takes in desk.letters("process")[-1].reason)
    desk.alter("ALTER COLUMN title TYPE text")
    letters = desk.letters()
    for cause in {letter.cause for letter in letters}:
        desk.command("redrive", cause)
    desk.until("what was stopped", lambda: sum(title == "longer than ten" for title in desk.rows("strict").values()) == len(letters))

    desk.alter("ADD CONSTRAINT phones CHECK (phone <> 'bad')")
    assert not stopped(Phone="bad"), "the table is asked"
    desk.until("what was learned", lambda: [one["rule"] for one in desk.command("quality", "strict")["learned"]] == ["value"])

    desk.until("the gate", lambda: stopped(Phone="bad"))
    assert "phone: refused by target" in desk.letters("process")[0].reason
    desk.alter("DROP CONSTRAINT phones")
    desk.command("redrive", desk.letters("process")[0].id)
    desk.until("it was taken", lambda: "bad" in desk.rows("strict", "phone").values())
    desk.until("it is forgotten", lambda: desk.command("quality", "strict")["learned"] == [])
