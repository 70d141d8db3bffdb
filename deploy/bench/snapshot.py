"""`headrace bench snapshot`: how fast every record of an object comes through Kafka into PostgreSQL, and what live changes beside it wait.

The records are filled into the sandbox Salesforce without an event, and read by `headrace snapshot` as a person types it: whichever way of
reading that chooses is the one that is measured.
"""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg

from deploy.bench.latency import percentiles, start
from deploy.latency import Latency
from deploy.local.process import LocalServiceError, Progress
from deploy.rig import Rig

FLOW = Path(__file__).parent / "sandbox.yaml"
RATE = 100
"""Transactions a second beside it; one has about 1.1 changes."""
BEFORE_SECONDS, STILL_SECONDS, HUNG_SECONDS = 10.0, 3.0, 600.0
WRITTEN = "SELECT count(*), extract(epoch FROM max(_written_at) FILTER (WHERE _reason = 'snapshot')) FROM crm.person"
MOST = 0.99
"""Share of the records whose rows must be there: a few are deleted meanwhile."""
FILL = 5000
"""Records a call: the sandbox answers nobody meanwhile."""


def snapshot(folder: Path, records: int, say: Progress) -> dict[str, Any]:
    """Of `records` Contacts: seconds until all were in Kafka and in PostgreSQL, records a second, live latency before and beside."""
    with Rig(folder / "snapshot", records=2000, flow=FLOW) as rig, ThreadPoolExecutor(1) as pool:
        start(rig)
        say(f"filling the sandbox Salesforce with {records:,} Contacts")
        for begun in range(0, records, FILL):
            rig.ask("POST", "/sandbox/fill", {"type": "Contact", "count": min(FILL, records - begun), "seed": begun})
        with rig.database() as database:
            samples = Latency(rig)
            rig.ask("POST", "/sandbox/change", {"rate": RATE, "seconds": 900, "seed": 1, "rename_parents": False})
            samples.restart()
            _look(samples, database, BEFORE_SECONDS)
            found: dict[str, Any] = {"live_before": percentiles(samples.samples)}
            samples.restart()
            before = _written(database)[0]
            began = time.time()
            say(f"headrace snapshot acme/Contact, beside {RATE} transactions/s")
            command = pool.submit(rig.command, "snapshot", "acme/Contact", "--json", timeout=HUNG_SECONDS)
            command.add_done_callback(lambda _: found.update(in_kafka=round(time.time() - began, 1)))
            written = _until_written(samples, database, command, before + records * MOST) - began
            found["live_beside"] = percentiles(samples.samples)
            rig.ask("DELETE", "/sandbox/change")
        said = command.result()[1]
        rows = json.JSONDecoder().raw_decode(said, said.index("{"))[0]["rows"]  # its progress comes behind
    done = {
        "records": rows,
        "seconds_until_all_in_kafka": found.pop("in_kafka"),
        "seconds_until_all_in_postgresql": round(written, 1),
        "records_per_second": round(rows / written),
    }
    say(f"{done | found}")
    return {"snapshot": done} | found


def _look(samples: Latency, database: psycopg.Connection, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.25)
        samples.look(database)


def _written(database: psycopg.Connection) -> tuple[int, float]:
    """People, and when a snapshot wrote one last, in epoch seconds."""
    count, last = database.execute(WRITTEN).fetchone() or (0, None)
    return int(count), float(last or 0)


def _until_written(samples: Latency, database: psycopg.Connection, command: Future[Any], least: float) -> float:
    """When the last row of the snapshot was written, in epoch seconds: all people are there, and no more came for a while."""
    until = time.monotonic() + HUNG_SECONDS
    before, still_since = 0.0, time.monotonic()
    while time.monotonic() < until:
        _look(samples, database, 0.5)
        if command.done() and command.result()[0]:
            raise LocalServiceError("headrace snapshot ended with {}: {}".format(*command.result()))
        count, last = _written(database)
        if last != before or count < least or not command.done():
            before, still_since = last, time.monotonic()
        elif time.monotonic() - still_since > STILL_SECONDS:
            return last
    raise LocalServiceError(f"not all rows of the snapshot were there after {HUNG_SECONDS:.0f} s")
