"""Which processes ended while they should have run, and whether a fault explains it. Read from the logs, as a person would."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.soak.faults import Struck

KILLS = frozenset({"kill", "crash", "state-lost", "state-damaged"})
KILLED_SECONDS = 3.0
LATER_SECONDS = 90.0
"""Within which a consequence counts as one: what a fault of a server does to a process shows when that process asks it next."""
FENCED = re.compile(r"fenced|took over|invalid producer epoch", re.IGNORECASE)
DAMAGED = re.compile(r"corrupt|damaged", re.IGNORECASE)
KAFKA_AWAY = re.compile(
    r"KafkaConnectionError|NodeNotReady|RequestTimedOut|Coordinator\w*Error|Kafka is not to be reached|cannot be reached|batch delivery"
    r"|it is not known whether|TimeoutError|OutOfOrderSequenceNumber"
)
"""OutOfOrderSequenceNumber: a batch that was given up with its transaction leaves a hole in the producer's numbers; aiokafka cannot begin
them anew without the risk of fencing a successor, so the process ends before it commits, and the next one does.
"""
NEVER = re.compile(r"AssertionError|KeyError|TypeError|AttributeError|IndexError|NameError|UnboundLocalError|RuntimeError")
"""No fault of the world makes these, nor a cancellation as the last word. (Further up the chain it is what a time-out is made of.)"""
RAISED = re.compile(r"^[\s|]*((?:[\w.]*(?:Error|Exception|Fenced)\b|Exception).*)$", re.MULTILINE)
"""The lines of a traceback that say what was raised; each error of a chain has one."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a process that its parent noticed. `at` epoch seconds; `how` "signal 9", "exit code 70"; `why` its own last words;
    `raised` the errors behind them.
    """

    process: str
    at: float
    how: str
    why: str
    raised: str = ""

    @property
    def words(self) -> str:
        """All it said."""
        return f"{self.why}\n{self.raised}"

    def __str__(self) -> str:
        return f"{self.process} ended by {self.how}" + (f": {self.why}" if self.why else "")


def ends(process: str, log: Path) -> list[End]:
    """From a log of HEADRACE_LOG_FORMAT=json. Lines that are none of ours count as last words too: a traceback of a start that failed."""
    found: list[End] = []
    said, raised, final = "", "", False
    text = log.read_text(errors="replace") if log.exists() else ""
    for line in text.splitlines():
        entry = _entry(line)
        if entry is None:
            said = said if final else line.strip() or said
        elif entry.get("event") == "process ended, starting it again":
            how = str(entry.get("how"))
            found.append(End(process, _seconds(entry), how, *(("", "") if how.startswith("signal") else (said, raised))))
            said, raised, final = "", "", False
        elif entry.get("level") == "critical" and not final:
            errors = RAISED.findall(str(entry.get("exception") or ""))
            said, raised, final = f"{entry.get('event')}: {entry.get('reason') or (errors or [''])[-1]}", "\n".join(errors), True
    return found


def unexplained(found: Iterable[End], struck: Sequence[Struck]) -> list[End]:
    """Those that no fault of the run accounts for."""
    return [end for end in found if not any(explains(each, end) for each in struck)]


def explains(struck: Struck, end: End) -> bool:
    """kill -9 of that process; fenced after it was suspended; its store damaged; without Kafka when it began, or when a commit's outcome
    stayed unknown.
    """
    planned = struck.planned
    mine = planned.target == end.process
    if end.how == "signal 9":
        return mine and planned.name in KILLS and struck.near(end.at, KILLED_SECONDS)
    if NEVER.search(end.words) or "CancelledError" in end.words.splitlines()[-1] or not struck.near(end.at, LATER_SECONDS):
        return False
    if FENCED.search(end.words):  # a transaction that Kafka could not end in time is fenced by Kafka itself
        return (mine and planned.name == "suspend") or planned.target == "kafka"
    if DAMAGED.search(end.words):
        return mine and planned.name == "state-damaged"
    return planned.target == "kafka" and KAFKA_AWAY.search(end.words) is not None


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _seconds(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(str(entry["timestamp"])).timestamp()
