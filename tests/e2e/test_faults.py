"""Wire faults at random and kill -9 under load: at the end PostgreSQL and Iterable hold what Salesforce holds, field by field."""

import random
import time
from pathlib import Path

import psycopg
import pytest

from deploy.demo import count_rows, settle
from deploy.latency import Latency
from deploy.rig import Rig
from tests.support.rigs import explain, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

WIRE = (
    {"name": "drop-connections", "variant": "held"},
    {"name": "drop-connections", "variant": "reply"},
    {"name": "drop-connections", "variant": "request"},
    {"name": "unknown-client"},
    {"name": "server-restart", "seconds": 1},
    {"name": "duplicate", "times": 5},
    {"name": "expire-token"},
    {"name": "html-503", "times": 3},
    {"name": "slow", "times": 3, "seconds": 0.5},
    {"name": "refuse-resubscribe", "times": 1},
    {"name": "invalid-replay", "times": 1},
)


CALM_SECONDS = 12.0


def _run(made: Rig, rate: float, seconds: float, seed: int, settle_seconds: float) -> None:
    """Changes at `rate` for `seconds`, after a calm beginning with a wire fault every few seconds, then compare; prints latencies."""
    chance = random.Random(seed)
    made.start()
    made.await_("the first snapshot", lambda: _rows(made) > 0)
    made.ask("POST", "/sandbox/change", {"rate": rate, "seconds": seconds, "seed": seed})
    begun, fired = time.monotonic(), []
    with made.database() as database:
        calm, faulty = Latency(made), Latency(made)
        _watch(calm, database, begun + CALM_SECONDS)
        while time.monotonic() < begun + seconds:
            fault = chance.choice(WIRE)
            fired.append(fault["name"])
            made.ask("POST", "/sandbox/faults", fault)
            _watch(faulty, database, min(time.monotonic() + chance.uniform(2.0, 6.0), begun + seconds))
        made.ask("DELETE", "/sandbox/faults")
        verdict = settle(made, database, settle_seconds)
        faulty.look(database)
    print(f"\nseed {seed}, faults {fired}\ncompared {verdict.compared}, held {verdict.held}")
    for when, latency in (("before the faults", calm), ("with faults", faulty)):
        p50, p99 = latency.quantile(0.5), latency.quantile(0.99)
        print(f"commit to row {when}: p50 {p50} ms, p99 {p99} ms over {len(latency.samples)} changes")
    assert verdict.equal, explain(made, verdict)


def _watch(latency: Latency, database: psycopg.Connection, until: float) -> None:
    while time.monotonic() < until:
        time.sleep(0.4)
        latency.look(database)


def _rows(made: Rig) -> int:
    with made.database() as database:
        return count_rows(database, "person")


@pytest.mark.timeout(360)
def test_a_minute_of_changes_under_wire_faults_loses_nothing(kafka: str, database_url: str, tmp_path: Path) -> None:
    with rig(tmp_path, kafka, database_url, records=1000, hold=5.0) as made:
        _run(made, 100, 60, random.randrange(10**6), 120)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_records_and_five_minutes_under_wire_faults_lose_nothing(kafka: str, database_url: str, tmp_path: Path) -> None:
    with rig(tmp_path, kafka, database_url, records=10_000, hold=5.0) as made:
        _run(made, 100, 300, random.randrange(10**6), 300)


@pytest.mark.timeout(360)
def test_kill_9_of_subscriber_worker_and_broker_under_load_loses_nothing(database_url: str, tmp_path: Path) -> None:
    with rig(tmp_path, None, database_url, records=500, hold=5.0) as made:
        made.start()
        made.await_("the first row", lambda: _rows(made) > 0)
        made.ask("POST", "/sandbox/change", {"rate": 60, "seconds": 300, "seed": 11})  # until it settles, however slow the machine is
        for victim in ("subscribe", "worker", "broker"):
            _some_more_rows(made)
            if victim == "broker":
                made.services.kafka.kill()
                made.services.kafka.start()
            else:
                made.kill(victim)
        with made.database() as database:
            verdict = settle(made, database, 120.0)
        assert verdict.equal, explain(made, verdict)


def _some_more_rows(made: Rig) -> None:
    """Until the flow has visibly moved: so each kill meets a running process under load."""
    with made.database() as database:
        row = database.execute("SELECT coalesce(max(_position), 0) FROM crm.person").fetchone()
        before = row[0] if row else 0

        def moved() -> bool:
            found = database.execute("SELECT count(*) FROM crm.person WHERE _position > %s", [before]).fetchone()
            return bool(found and found[0] > 50)

        made.await_("rows after the last fault", moved, 120)
