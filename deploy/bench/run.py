"""`headrace bench`: starts the servers it needs, runs the cases one after the other, writes what came of them."""

import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.bench import cases, contest, machine, peers, report
from deploy.bench.cases import Ground
from deploy.bench.latency import latency
from deploy.bench.mapping import mapping
from deploy.bench.place import Place
from deploy.bench.recovery import rebalance, recovery, stock_recovery
from deploy.bench.snapshot import snapshot
from deploy.local.jars import KAFKA_VERSION
from deploy.local.process import LocalServiceError, Progress
from deploy.local.services import KAFKA_VARIABLE, LocalServices, exit_on_sigterm
from deploy.sandbox.client import SandboxError

FOLDER = Path(".headrace") / "bench"
Case = Callable[[Ground, "Size", bool, Progress], Coroutine[Any, Any, dict[str, Any]]]


class Size:
    """How much: a quick run fits into five minutes on two cores. `records` is what a snapshot reads."""

    def __init__(self, quick: bool, records: int) -> None:
        self.records = records
        self.scale, self.rounds = (0.25, 2) if quick else (1.0, 5)
        self.ids, self.slow_ids = 40_000, 3000 if quick else 20_000  # stock Faust takes its time with the first events of each
        self.seconds = 5.0 if quick else 60.0
        self.states = (100_000,) if quick else (100_000, 1_000_000)


def run_bench(quick: bool, as_json: bool, with_peers: bool, only: Sequence[str], records: int = 0) -> int:
    """Measure, print and write; 1 when a case could not be measured. `only` are keys of CASES. No figure is judged."""
    exit_on_sigterm()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # new topics have no leader for a moment
    console = Console(stderr=True)
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.1f} s[/dim]  {text}", highlight=False)

    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=FOLDER.resolve()))
    try:
        with LocalServices(folder / "services", temporary=True) as services:
            local = KAFKA_VARIABLE not in os.environ
            endpoints = services.start(progress=say)
            os.environ.update(endpoints.environment())  # the sandbox's rig uses these too
            run = asyncio.run(_run(folder, endpoints.bootstrap, endpoints.database_url, local, Size(quick, records), with_peers, only, say))
    except LocalServiceError as error:
        console.print(f"[red]error[/red]: {error}", highlight=False)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    run |= {"seconds": round(time.monotonic() - begun, 1), "command": " ".join(["headrace", "bench", *sys.argv[2:]])}
    run["ratios"] = report.ratios(run["cases"])
    text, data = report.markdown(run), json.dumps(run, indent=2)
    name = FOLDER / datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    name.with_suffix(".md").write_text(text)
    name.with_suffix(".json").write_text(data + "\n")
    say(f"written: {name}.md and {name}.json")
    print(data if as_json else text)
    return 1 if any("failed" in found for found in run["cases"].values()) else 0


async def _run(
    folder: Path, bootstrap: str, dsn: str, local: bool, size: Size, with_peers: bool, only: Sequence[str], say: Progress
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with Place(bootstrap, dsn) as place:
        described = machine.describe(kafka=KAFKA_VERSION if local else "", postgres=await place.version())
        for case in only:
            say(f"[bold]{report.TITLES[case]}[/bold]")
            try:
                found[case] = await CASES[case](Ground(place, folder, size.scale), size, with_peers, say)
            except (LocalServiceError, SandboxError) as error:
                say(f"[red]{error}[/red]")
                found[case] = {"failed": str(error)}
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": described, "cases": found}


async def _pass(ground: Ground, size: Size, _: bool, say: Progress) -> dict[str, Any]:
    return await _contest(cases.pass_through(ground), ground, size.slow_ids, size, say)


async def _processing(ground: Ground, size: Size, _: bool, say: Progress) -> dict[str, Any]:
    return await _contest(cases.processing(ground), ground, size.slow_ids, size, say)


async def _whole(ground: Ground, size: Size, with_peers: bool, say: Progress) -> dict[str, Any]:
    entries = cases.whole_way(ground)
    failed: dict[str, Any] = {}
    if with_peers:
        more, failed = await asyncio.to_thread(peers.entries, ground, say)
        entries += more
    return await _contest(entries, ground, size.ids, size, say) | failed


async def _contest(entries: list[contest.Entry], ground: Ground, ids: int, size: Size, say: Progress) -> dict[str, Any]:
    await ground.topics(entries, schema=any(entry.done is contest.marked for entry in entries))
    found = await contest.contest(entries, ground.place, ids, size.rounds, say)
    for entry in entries:
        await ground.place.drop(entry.spec.name)
    return found


async def _latency(ground: Ground, size: Size, _: bool, say: Progress) -> dict[str, Any]:
    return await latency(ground.place, ground.folder, size.seconds, say)


async def _recovery(ground: Ground, size: Size, _: bool, say: Progress) -> dict[str, Any]:
    found = {f"Headrace, {count:,} records": await recovery(ground, count, say) for count in size.states}
    try:
        found["stock Faust"] = await stock_recovery(ground, size.states[0], say)
    except LocalServiceError as error:  # its own recovery may wait for ever; our figures stand
        say(f"[red]{error}[/red]")
        found["stock Faust"] = {"failed": str(error)}
    return found


async def _rebalance(ground: Ground, _size: Size, _: bool, say: Progress) -> dict[str, Any]:
    return await rebalance(ground, say)


async def _mapping(_ground: Ground, _size: Size, _: bool, _say: Progress) -> dict[str, Any]:
    return mapping()


async def _snapshot(ground: Ground, size: Size, _: bool, say: Progress) -> dict[str, Any]:
    return await asyncio.to_thread(snapshot, ground.folder, size.records, say)


CASES: dict[str, Case] = {
    "a": _pass, "b": _processing, "c": _whole, "d": _latency, "e": _recovery, "f": _rebalance, "g": _mapping, "snapshot": _snapshot,
}  # fmt: skip
