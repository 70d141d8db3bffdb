"""`headrace soak`: start everything, change the world, break everything by the schedule, and judge. The order of things; nothing else."""

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
from aiokafka.errors import KafkaError
from rich.console import Console

from deploy.demo import base_folder, count_rows
from deploy.latency import Latency, quantile
from deploy.local.process import LocalServiceError
from deploy.local.services import KAFKA_VARIABLE, POSTGRES_VARIABLE, exit_on_sigterm
from deploy.rig import Rig, as_json, as_line
from deploy.sandbox.client import SandboxError
from deploy.soak.crew import RETURNED, Crew, own_flow
from deploy.soak.faults import Faults, Struck, resume_all
from deploy.soak.hooks import Sender
from deploy.soak.schedule import RECEIVER, SUBSCRIBERS, WORKERS, Planned, plan
from deploy.soak.verdict import Report, judge, processes, split_latency

RECORDS, RATE, HOLD = 300, 15.0, 5.0
TICK_SECONDS = 0.2
LOOK_SECONDS = 1.0
READY_SECONDS = 120.0
SETTLE_SECONDS = 150.0
INTERRUPTED = 130
NAMES = (*WORKERS, *SUBSCRIBERS, RECEIVER)


def run_soak(seconds: float, seed: int | None, as_json_: bool) -> int:
    """0 when the verdict holds, 1 when it does not or could not be had, 130 after Ctrl-C.

    Its own Kafka and PostgreSQL always: whatever servers the environment names are nobody's to break. Nothing is left behind; after a
    failure the logs are kept, and where is said.
    """
    exit_on_sigterm()
    for name in (KAFKA_VARIABLE, POSTGRES_VARIABLE):
        os.environ.pop(name, None)
    seed = random.randrange(10**6) if seed is None else seed
    console = Console(stderr=as_json_, soft_wrap=True)
    say = teller(console)
    report = Report(seed, seconds)
    console.print(f"seed [bold]{seed}[/bold]: `headrace soak --for {seconds:g}s --seed {seed}` repeats it", highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=base_folder()))
    kept: Path | None = None
    try:
        try:
            flow = own_flow(folder)
            rig = Rig(
                folder, records=RECORDS, seed=seed % 2**31, hold=HOLD, flow=flow, progress=say, environ={"HEADRACE_LOG_FORMAT": "json"}
            )
            with rig:
                crew = Crew(rig)
                start(rig, crew, say)
                soak(rig, crew, report, say)
        except (LocalServiceError, SandboxError, KafkaError, psycopg.Error, TimeoutError) as error:
            report.problems.append(f"{type(error).__name__}: {(str(error) or 'no text').splitlines()[0]}")
        if not report.holds:
            kept = keep(folder, report)
    except KeyboardInterrupt:
        console.print("stopped: no verdict")
        return INTERRUPTED
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tell(report, as_json_, console, kept)
    return 0 if report.holds else 1


def start(rig: Rig, crew: Crew, say: Callable[[str], None]) -> None:
    """Two workers, a subscriber and one that waits to take over, a receiver."""
    rig.start_services()
    for name in NAMES:
        crew.start(name)
    for name in NAMES:
        say(f"waiting for headrace {name}")
        rig.wait_ready(name)


def soak(rig: Rig, crew: Crew, report: Report, say: Callable[[str], None]) -> None:
    """The run itself, and its judgement."""
    rig.await_("the first snapshot", lambda: _rows(rig) > 0)
    after = rig.ask("GET", "/sandbox/state")["lastReplayId"]
    rig.ask("POST", "/sandbox/change", {"rate": RATE, "seconds": report.seconds, "seed": report.seed % 2**31, "rename_parents": False})
    say(f"{RATE:g} transactions a second change the sandbox Salesforce for {report.seconds:g} s")
    stop, enough = threading.Event(), threading.Event()
    latency, sender = Latency(rig), Sender(rig, enough)
    with ThreadPoolExecutor(max_workers=8) as pool:
        try:
            sending = pool.submit(sender.run)
            report.struck = strike(
                plan(report.seed, report.seconds), Faults(rig, crew, stop), pool, lambda: look(rig, latency), report.seconds, say
            )
            enough.set()
            sending.result()
        finally:
            stop.set()
            enough.set()
            resume_all(rig)
    try:
        finish(rig, report, after, sender, latency, say)
    finally:
        report.calm, report.faulty = split_latency(latency, report.struck)
        report.ended, wrong = processes(rig, NAMES, report.struck)
        report.problems += wrong


def finish(rig: Rig, report: Report, after: int, sender: Sender, latency: Latency, say: Callable[[str], None]) -> None:
    """Mend what is broken, let everything come through, judge."""
    mended = time.monotonic()
    rig.ask("DELETE", "/sandbox/faults")
    rig.ask("DELETE", "/sandbox/faults", target="iterable")
    say("all is mended; waiting until everything is through")
    for name in NAMES:
        rig.wait_ready(name, READY_SECONDS)
    rig.await_("the last change", lambda: bool(rig.ask("GET", "/sandbox/change")["runs"][0]["finished"]))
    if lost := sender.finish():
        report.problems.append(f"{len(lost)} webhooks were never accepted: {lost[:5]}")
    report.webhooks = {"accepted": len(sender.accepted), "requests": sender.attempts}
    if any(each.planned.name == "roll" for each in report.struck):
        say(f"{RETURNED} once more: its route was away for a while, and writes of it that still waited then were dropped")
        code, printed = rig.command("snapshot", RETURNED)
        if code:
            report.problems.append(f"the snapshot of {RETURNED} ended with {code}: {as_line(printed)}")
    with rig.database() as database:
        judge(report, rig, database, after, sender.accepted, SETTLE_SECONDS)
        report.settled_seconds = round(time.monotonic() - mended, 1)
        latency.look(database)


def strike(
    planned: Sequence[Planned],
    faults: Faults,
    pool: ThreadPoolExecutor,
    look_: Callable[[], None],
    seconds: float,
    say: Callable[[str], None],
) -> list[Struck]:
    """Each fault at its moment; looks meanwhile. Returns when the time is over and every fault is mended."""
    begun, waiting = time.monotonic(), list(planned)
    looked = begun
    running: list[Future[Struck]] = []
    while (now := time.monotonic() - begun) < seconds or waiting:
        while waiting and waiting[0].at <= now:
            say(f"[yellow]{waiting[0]}[/yellow]")
            running.append(pool.submit(faults.do, waiting.pop(0)))
        if time.monotonic() - looked > LOOK_SECONDS:
            look_()
            looked = time.monotonic()
        time.sleep(TICK_SECONDS)
    return [each.result() for each in running]


def look(rig: Rig, latency: Latency) -> None:
    """Take samples; while PostgreSQL is away there are none."""
    with contextlib.suppress(psycopg.Error, SandboxError), rig.database() as database:
        latency.look(database)


def keep(folder: Path, report: Report) -> Path:
    """The logs of a failed run and what was found, where they outlive it."""
    kept = folder.with_name(f"{folder.name}-seed-{report.seed}-failed")
    for log in folder.rglob("*.log"):
        place = kept / log.relative_to(folder)
        if "state" not in place.relative_to(kept).parts[0]:  # the stores' own logs say nothing
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(log, place)
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "report.json").write_text(as_json(report.as_dict()))
    return kept


def tell(report: Report, as_json_: bool, console: Console, kept: Path | None) -> None:
    """The verdict for people or machines."""
    if as_json_:
        sys.stdout.write(json.dumps(report.as_dict() | {"logs": None if kept is None else str(kept)}, indent=2) + "\n")
        return
    for text in lines(report):
        console.print(text, highlight=False, markup=False)
    if kept is not None:
        console.print(f"logs: {kept}", highlight=False)
    verdict = "[green]the verdict holds[/green]" if report.holds else "[red]the verdict does not hold[/red]"
    console.print(f"seed {report.seed}: {verdict}", highlight=False)


def lines(report: Report) -> Iterator[str]:
    """What a person reads at the end."""
    for each in report.struck:
        if each.outcome:
            yield f"fault {each.planned}: {each.outcome}"
    yield from (f"restarted: {end}" for end in report.ended)
    yield "compared " + ", ".join(f"{number} {name}" for name, number in report.compared.items())
    yield (
        f"counted {report.counts.events} events and {report.counts.rows} rows in, {report.counts.writes} outputs, "
        f"{report.webhooks.get('accepted', 0)} webhooks accepted; dead letters: {report.dead_letters or 'none'}; "
        f"incidents repaired: {report.incidents or 'none'}"
    )
    if report.zombie:
        yield f"{report.zombie} values of Iterable came from a suspended worker and were repaired by a snapshot"
    for name, samples in (("outside faults", report.calm), ("in faults", report.faulty)):
        p50, p99 = quantile(samples, 0.5), quantile(samples, 0.99)
        if p50 is not None and p99 is not None:
            yield f"commit to row {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms over {len(samples)} changes"
    yield f"{len(report.struck)} faults; settled in {report.settled_seconds:.0f} s"
    yield from (f"PROBLEM {text}" for text in report.problems)


def teller(console: Console) -> Callable[[str], None]:
    """Prints with the seconds since now."""
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/dim]  {text}", highlight=False)

    return say


def _rows(rig: Rig) -> int:
    with rig.database() as database:
        return count_rows(database, "person")
