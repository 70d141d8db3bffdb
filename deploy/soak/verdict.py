"""Does the verdict hold? Asks both ends, Kafka, the logs and Headrace's own commands, and says in sentences what is not as it must be."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from deploy.demo import compare_now, settle
from deploy.latency import Latency, quantile
from deploy.local.process import LocalServiceError
from deploy.oracle import Verdict
from deploy.rig import Rig, as_line
from deploy.soak.counts import Counts, count, read
from deploy.soak.ends import End, ends, unexplained
from deploy.soak.faults import Struck
from deploy.soak.schedule import WORKERS

QUIET_SECONDS = 90.0
REPAIR_SECONDS = 90.0
AFTER_SECONDS = 10.0
"""An event committed so long after a fault still counts as one under it: a group needs that long to notice a dead member."""
ALLOWED = {
    "quality": ("process", re.compile("fails quality: "), ()),
    "position refused": ("subscribe", re.compile("^position refused: "), ("refuse-resubscribe", "invalid-replay")),
    "poison": ("subscribe", re.compile("cannot be read: |is no id: "), ("poison",)),
    "oversize": ("process", re.compile("bytes for .* is above Kafka's limit"), ("oversize",)),
}
"""Dead letters that must or may be there: stage, reason, and the faults of which each makes at most one."""


@dataclass
class Report:
    """All that a soak says at its end. `problems` empty: the verdict holds."""

    seed: int
    seconds: float
    struck: list[Struck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    zombie: int = 0
    counts: Counts = field(default_factory=Counts)
    webhooks: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)
    ended: list[End] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    faulty: list[float] = field(default_factory=list)
    settled_seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Nothing is wrong, and something was compared."""
        return not self.problems and sum(self.compared.values()) > 0

    def as_dict(self) -> dict[str, Any]:
        """For --json: names as in this file, ms, seconds."""
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "holds": self.holds,
            "problems": self.problems,
            "compared": self.compared,
            "held_by_quality": self.held,
            "taken_from_a_zombie": self.zombie,
            "events_in": self.counts.events,
            "rows_in": self.counts.rows,
            "webhooks": self.webhooks,
            "writes_out": self.counts.writes,
            "dead_letters": self.dead_letters,
            "incidents": self.incidents,
            "restarts": [str(end) for end in self.ended],
            "latency_ms": {
                name: {"p50": quantile(samples, 0.5), "p99": quantile(samples, 0.99), "samples": len(samples)}
                for name, samples in (("outside_faults", self.calm), ("in_faults", self.faulty))
            },
            "settled_seconds": self.settled_seconds,
            "faults": [
                {**each.planned.as_dict(), "begun": each.begun, "ended": each.ended, "outcome": each.outcome} for each in self.struck
            ],
        }


def judge(report: Report, rig: Rig, database: psycopg.Connection, after: int, accepted: dict[str, str], seconds: float) -> None:
    """Fill in what the run left behind. `after`: replay id before the first change; `seconds`: how long both ends may take to be equal."""
    verdict = settle(rig, database, seconds)
    if not verdict.equal and _from_a_zombie(verdict, report.struck):
        report.zombie = verdict.count
        verdict = repair(rig, database)
    report.compared, report.held = verdict.compared, verdict.held
    if not verdict.equal:
        report.problems.append(f"{verdict.count} differences between the ends: {verdict.differences[:8]}")
    report.problems += signups(database, accepted)
    report.problems += unfinished(rig)
    commits = rig.ask("GET", f"/sandbox/commits?after={after}")["commits"]
    records = read(rig.environment["KAFKA_BOOTSTRAP_SERVERS"], rig.name, int(rig.environment["HEADRACE_PARTITIONS"]))
    incidents = _answer(rig, "incidents")
    report.incidents, wrong = incidents_by_cause(incidents)
    report.problems += wrong
    events = [(replay, entity, ids) for replay, _, entity, ids in commits]
    report.counts = count(records, rig.name, events, accepted, [each["id"] for each in incidents])
    report.problems += report.counts.problems()
    letters = _answer(rig, "dead-letters")
    report.dead_letters, wrong = letters_by_cause(letters, report.struck)
    report.problems += wrong


def _from_a_zombie(verdict: Verdict, struck: Sequence[Struck]) -> bool:
    """Only users of Iterable differ, and a worker was suspended: the window the README names."""
    suspended = any(each.planned.name == "suspend" and each.planned.target in WORKERS for each in struck)
    return suspended and verdict.count == len(verdict.differences) and all(text.startswith("user ") for text in verdict.differences)


def repair(rig: Rig, database: psycopg.Connection) -> Verdict:
    """What the README says a person does then: the records once more."""
    for source in ("acme/Contact", "acme/Lead"):
        rig.command("snapshot", source)
    verdict = compare_now(rig, database)

    def equal() -> bool:
        nonlocal verdict
        verdict = compare_now(rig, database)
        return verdict.equal

    with contextlib.suppress(LocalServiceError):
        rig.await_("the repair", equal, REPAIR_SECONDS)
    return verdict


def signups(database: psycopg.Connection, accepted: dict[str, str]) -> list[str]:
    """Every webhook that got a 2xx is a row, with what it said."""
    try:
        rows: dict[str, str] = dict(
            database.execute(sql.SQL("SELECT {}, email FROM crm.signup").format(sql.Identifier("externalId"))).fetchall()
        )
    except psycopg.errors.UndefinedTable:
        rows = {}
    wrong = [name for name, address in accepted.items() if rows.get(name) != address]
    strange = sorted(set(rows) - set(accepted))
    told = [f"{len(wrong)} of {len(accepted)} accepted webhooks are no rows: {wrong[:5]}"] if wrong else []
    return told + ([f"{len(strange)} rows of webhooks that were never accepted: {strange[:5]}"] if strange else [])


def unfinished(rig: Rig) -> list[str]:
    """Hops that still hold something after a while of quiet, and incidents that were not repaired."""
    waiting: dict[str, int] = {}

    def quiet() -> bool:
        nonlocal waiting
        status = _answer(rig, "status")
        waiting = {
            f"{hop['stage']} {hop['name']}": (hop["lag"] or 0) + (hop["bulk_lag"] or 0)
            for hop in status["hops"]
            if hop["stage"] != "receive" and (hop["lag"] is None or hop["lag"] or hop["bulk_lag"])
        }
        waiting |= {f"incident {each['id']}": 1 for each in _answer(rig, "incidents", "--open")}
        return not waiting and not status["unknown"]

    try:
        rig.await_("an end of all work", quiet, QUIET_SECONDS)
    except LocalServiceError:
        return [f"work is left: {waiting or 'status does not know'}"]
    return []


def letters_by_cause(letters: Sequence[dict[str, Any]], struck: Sequence[Struck]) -> tuple[dict[str, int], list[str]]:
    """How many of each allowed cause, and what is wrong with the others."""
    found: Counter[str] = Counter()
    wrong: list[str] = []
    for letter in letters:
        for name, (stage, reason, _) in ALLOWED.items():
            if letter["stage"] == stage and reason.search(letter["reason"]):
                found[name] += 1
                break
        else:
            wrong.append(
                f"dead letter of no allowed cause: {letter['stage']}, route {letter.get('route')}: {as_line(letter['reason'], 300)}"
            )
    for name, (_, _, faults) in ALLOWED.items():
        done = sum(each.planned.name in faults for each in struck)
        if faults and found[name] > done:
            wrong.append(f"{found[name]} dead letters say {name!r}, and there were only {done} faults that make one")
    return dict(found), wrong


def incidents_by_cause(incidents: Sequence[dict[str, Any]]) -> tuple[dict[str, int], list[str]]:
    """How many of each cause, and which are not closed with a proof."""
    wrong = [each for each in incidents if each["state"] != "closed" or not each["proof"]]
    told = [f"incident {each['id']} is {each['state']}: {as_line(each['proof'] or 'no proof', 200)}" for each in wrong]
    return dict(Counter(str(each["cause"]) for each in incidents)), told


def processes(rig: Rig, names: Sequence[str], struck: Sequence[Struck]) -> tuple[list[End], list[str]]:
    """Every end of a process, and what is wrong: ends that no fault explains, parents that gave up."""
    found = [end for name in rig.processes for end in ends(name, rig.processes[name].log)]
    gone = [f"headrace {name} gave up with exit code {code}" for name in names if (code := rig.processes[name].exited()) is not None]
    return found, [f"unexplained: {end}" for end in unexplained(found, struck)] + gone


def split_latency(latency: Latency, struck: Sequence[Struck]) -> tuple[list[float], list[float]]:
    """Samples of events committed outside and within faults, in ms."""
    sides: tuple[list[float], list[float]] = ([], [])
    for sample, commit in zip(latency.samples, latency.commits, strict=True):
        sides[any(each.near(commit / 1000, AFTER_SECONDS) for each in struck)].append(sample)
    return sides


def _answer(rig: Rig, command: str, *more: str) -> Any:
    """The JSON a looking command prints, before what else it may say. Raises LocalServiceError."""
    code, printed = rig.command(command, *more, "--json")
    try:
        return json.JSONDecoder().raw_decode(printed)[0]
    except ValueError:
        raise LocalServiceError(f"headrace {command} answered with exit code {code} and no JSON: {as_line(printed)}") from None
