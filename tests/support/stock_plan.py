"""What a process of the loss cases is told, stock Faust or ours: topics by case, numbers of the events, and faults that strike a few times.

Faults are counted in the folder of the plan, so that a process started again does not meet again what it has met.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

EVENTS = 20
"""Of a case; they come in two halves."""
MANY = 300
"""Of L3, in the first half."""
HEAD = 10
"""The first event of the second half: what is held or overtaken."""
GUILTY = 5
"""The event that brings the fault about, where there is one."""
NO_JSON = b"\x00 no JSON"
REFUSES = 1_000
"""max.message.bytes of the topic that refuses a delivery,"""
PAD = 2_000
"""and what the guilty event's output there is longer by."""
LARGE = 1_200_000
"""Bytes above what a producer sends."""


@dataclass(frozen=True)
class Plan:
    """One process: where Kafka is, the prefix of its topics, its cases, its settings, and the folder where faults are counted."""

    kafka: str
    name: str
    folder: str
    cases: list[str]
    settings: dict[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Plan":
        """From the command line; nothing is left there."""
        plan = cls(**json.loads(sys.argv[1]))
        del sys.argv[1:]
        return plan

    def argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    def source(self, case: str) -> str:
        """Topic that a case reads."""
        return f"{self.name}.{case}"

    def out(self, case: str) -> str:
        """Topic that a case writes."""
        return f"{self.name}.{case}.out"

    def first(self, fault: str, times: int = 1) -> bool:
        """Count; whether this fault still strikes."""
        with self._count(fault).open("a") as seen:
            seen.write("x")
            return seen.tell() <= times

    def struck(self, fault: str) -> int:
        """How often it came by."""
        return self._count(fault).stat().st_size if self._count(fault).exists() else 0

    def _count(self, fault: str) -> Path:
        return Path(self.folder) / f"{fault}.count"
