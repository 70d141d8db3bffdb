"""(d) From a commit in the sandbox Salesforce to the row in PostgreSQL, open loop: it changes records at a rate, whatever comes of it.

The start, when the snapshot is read, is not seen.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from deploy.bench.figures import quantile
from deploy.bench.place import Place, Record
from deploy.bench.work import Work
from deploy.latency import Latency
from deploy.local.process import LocalServiceError, Progress
from deploy.rig import Rig

FLOW = Path(__file__).parent / "sandbox.yaml"
RATES = (50, 100, 200, 400, 800, 1600)
"""Transactions a second; one has about 1.1 changes."""
SUSTAINED_MS, SETTLE_SECONDS = 500.0, 15.0
"""Median above which events pile up."""
CROWD = 20_000
"""Events that fall upon one partition at once."""


async def latency(place: Place, folder: Path, seconds: float, say: Progress) -> dict[str, Any]:
    """Highest sustained rate, then percentiles at 50 % and 80 % of it, and at 50 % beside a partition at its limit."""
    figures: dict[str, Any] = {}
    with Rig(folder / "latency", records=2000, flow=FLOW) as rig:
        await asyncio.to_thread(start, rig)
        with rig.database() as database:
            samples = Latency(rig)
            best = 0
            for rate in RATES:
                held, found = await asyncio.to_thread(_hold, samples, database, rate, min(seconds, 5.0))
                say(f"{rate} transactions/s: {'sustained' if held else 'not sustained'}, p50 {found['p50']} ms, p99 {found['p99']} ms")
                if not held:
                    break
                best = rate
            figures["highest_sustained"] = {"transactions_per_second": best}
            for share in (0.5, 0.8):
                _, found = await asyncio.to_thread(_hold, samples, database, max(1.0, best * share), seconds)
                figures[f"at_{share:.0%}"] = found
                say(f"at {share:.0%}: {found}")
            await place.load(f"{rig.name}.in.acme.Contact", _crowd(place))
            samples.restart()
            await asyncio.to_thread(_hold, samples, database, max(1.0, best * 0.5), seconds, fresh=False)
            timed = list(zip(samples.ids, samples.samples, strict=True))
            crowded = {True: [ms for id, ms in timed if place.partition(id.encode()) == 0],
                       False: [ms for id, ms in timed if place.partition(id.encode()) != 0]}  # fmt: skip
            figures["beside_a_partition_at_its_limit"] = {
                "other_partitions": percentiles(crowded[False]),
                "that_partition": percentiles(crowded[True]),
            }
            say(f"beside {CROWD} events upon one partition: {figures['beside_a_partition_at_its_limit']}")
    return figures


def percentiles(values: list[float]) -> dict[str, int | None]:
    """p50, p99, p99.9 in ms, and how many samples."""
    named = {name: quantile(values, q) for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))}
    return {name: None if value is None else round(value) for name, value in named.items()} | {"samples": len(values)}


def start(rig: Rig) -> None:
    """A worker and a subscriber, until the rows of the first snapshot are there."""
    rig.start_services()
    for role in ("worker", "subscribe"):
        rig.run(role)
    for role in ("worker", "subscribe"):
        rig.wait_ready(role)
    with rig.database() as database:
        rig.await_("the snapshot's rows", lambda: _quiet(database))


def _quiet(database: psycopg.Connection) -> bool:
    """Rows are there, and none was written for two seconds."""
    with contextlib.suppress(psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        found = database.execute("SELECT max(_written_at) < now() - interval '2 seconds' FROM crm.person").fetchone()
        return bool(found and found[0])
    return False


def _hold(
    samples: Latency, database: psycopg.Connection, rate: float, seconds: float, fresh: bool = True
) -> tuple[bool, dict[str, int | None]]:
    """Change at this rate for so long: whether all of it came in time, and the percentiles."""
    if fresh:
        samples.restart()
    run = samples.rig.ask("POST", "/sandbox/change", {"rate": rate, "seconds": seconds, "seed": int(rate) + 1, "rename_parents": False})[
        "run"
    ]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.25)
        samples.look(database)
    said = samples.rig.ask("GET", "/sandbox/change")["runs"][run]
    made = said["done"] >= said["wanted"] * 0.95
    _until(lambda: _settled(samples, database), SETTLE_SECONDS)
    found = percentiles(samples.samples)
    return made and found["p50"] is not None and found["p50"] < SUSTAINED_MS, found


def _settled(samples: Latency, database: psycopg.Connection) -> bool:
    before = len(samples.samples)
    samples.look(database)
    return len(samples.samples) == before


def _until(true: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.5)
        if true():
            return
    raise LocalServiceError(f"rows still came {seconds:.0f} s after the last change: the rate was too high to measure a latency")


def _crowd(place: Place) -> list[Record]:
    """Events of records of partition 0 that the sandbox does not know."""
    ids = [id for n in range(400) if place.partition((id := f"003Crowd{n:07d}AAA").encode()) == 0]
    work = Work(ids)
    headers = [("kind", b"change"), ("reason", b"live"), ("received", b"%d" % (time.time() * 1000)), ("channel", b"/data/ChangeEvents"),
               ("epoch", b"1")]  # fmt: skip
    return [(event.id.encode(), event.value, headers) for event in work.create() + work.updates(CROWD)]
