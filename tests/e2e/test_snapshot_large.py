"""200,000 records through Kafka into PostgreSQL while they change, and a kill -9 in the middle: at the end both sides are equal."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.latency import Latency, quantile
from deploy.oracle import compare_people
from deploy.rig import Rig
from models.settings import Settings
from streams.consume import read_batches
from streams.topics import Topics
from tests.support.rigs import WAREHOUSE, explain, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(1200)]
RECORDS = 444_450
"""Of them 45 % are contacts."""
FLOW = (
    WAREHOUSE
    + """\
routes:
  contacts: {from: acme/Contact, to: warehouse, map: person}
"""
)


@pytest.fixture
def made(kafka: str, database_url: str, tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "flow.yaml").write_text(FLOW)
    with rig(tmp_path / "rig", kafka, database_url, records=RECORDS, hold=2.0, flow=tmp_path / "flow.yaml") as found:
        found.start_services()
        yield found


def test_changes_made_meanwhile_are_not_overwritten_and_a_kill_loses_and_doubles_nothing(made: Rig) -> None:
    contacts = int(made.ask("GET", "/sandbox/state")["objects"]["Contact"]["records"])
    assert contacts >= 200_000
    made.ask("POST", "/sandbox/change", {"rate": 100, "seconds": 120, "seed": 3, "rename_parents": False})
    began = time.monotonic()
    for role in ("worker", "subscribe"):  # whose first start takes a snapshot
        made.run(role)
    samples = Latency(made)
    with made.database() as database:

        def rows() -> int:
            time.sleep(1.0)  # counting costs the server what is measured
            samples.look(database)
            found = database.execute("SELECT to_regclass('crm.person') IS NOT NULL").fetchone()
            if not found or not found[0]:
                return 0
            return int((database.execute("SELECT count(*) FROM crm.person").fetchone() or (0,))[0])

        made.await_("half of the rows", lambda: rows() > contacts / 2, 300)
        made.kill("subscribe")
        made.await_("all rows", lambda: rows() >= contacts, 300)
        took = time.monotonic() - began
        during = list(samples.samples)
        made.await_("the changes", lambda: bool(rows()) and made.ask("GET", "/sandbox/change")["runs"][0]["finished"], 300)
        verdict = compare_people(lambda path: made.ask("GET", path), database)
        until = time.monotonic() + 120
        while not verdict.equal and time.monotonic() < until:
            verdict = compare_people(lambda path: made.ask("GET", path), database)
        samples.look(database)
    assert verdict.equal, explain(made, verdict)
    after = samples.samples[len(during) :]
    print(f"\n{contacts:,} records in {took:.0f} s, {contacts / took:,.0f} a second, starts and the kill included")
    for when, found in (("during", during), ("after", after)):
        print(f"commit to row {when} the snapshot: {len(found)} changes, p50 {quantile(found, 0.5)} ms, p99 {quantile(found, 0.99)} ms")
    code, printed = made.command("status", "--json")
    assert code == 0, printed
    [run] = json.loads(printed)["snapshots"]
    assert (run["state"], run["way"]) == ("done", "bulk")
    settings = Settings(kafka=made.environment["KAFKA_BOOTSTRAP_SERVERS"], installation=made.name, partitions=4)
    keys = asyncio.run(read_keys(settings))
    assert (len(keys), len(set(keys))) == (run["rows"], run["rows"])  # the kill doubled none


async def read_keys(settings: Settings) -> list[bytes]:
    """Of every row in the bulk lane."""
    topic = Topics(settings.installation).inbound("acme/Contact", bulk=True)
    return [record.key or b"" async for batch in read_batches(settings, topic) for record in batch]
