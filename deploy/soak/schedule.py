"""Which fault strikes what, when and for how long: a pure function of seed and length, so that a soak can be repeated.

It knows nothing of how a fault is done (faults.py) and nothing of the clock.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

WORKERS = ("worker", "worker-2")
SUBSCRIBERS = ("subscribe", "subscribe-2")
RECEIVER = "receive"
CALM_SECONDS = 5.0
"""At the beginning, so that every run has something to compare its faults with."""
AT_ONCE = 3
GAP = (1.5, 4.5)
"""Seconds between the beginnings of two faults."""
REST_SECONDS = 4.0
"""What a target has for itself after a fault: a process that never gets up again is another test's matter."""
PAUSE_SECONDS = 60.0
"""After faults that only a person can end (a key revoked) Headrace asks once in this time whether they did; another such fault meanwhile
would find it still asleep, and one at the end would only make the soak longer."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault. `targets` share it; `seconds` is its range of durations; `variants` are handed to whoever does it.

    pauses   Headrace sleeps PAUSE_SECONDS after it
    """

    name: str
    targets: tuple[str, ...]
    seconds: tuple[float, float] = (0.0, 0.0)
    variants: tuple[str, ...] = ("",)
    pauses: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of a run: at `at` seconds, for `seconds`. `number` makes what it invents its own (poison, bytes damaged)."""

    number: int
    name: str
    target: str
    at: float
    seconds: float
    variant: str = ""
    pauses: bool = False

    @property
    def end(self) -> float:
        """Second at which it is over."""
        return self.at + self.seconds

    def __str__(self) -> str:
        what = f"{self.name} {self.variant}".rstrip()
        return f"{what} → {self.target}" + (f" for {self.seconds:.1f} s" if self.seconds else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number,
            "name": self.name,
            "variant": self.variant,
            "target": self.target,
            "at": self.at,
            "seconds": self.seconds,
        }


KINDS = (
    # processes; 10 s is the group's session timeout here
    Kind("kill", (*WORKERS, *SUBSCRIBERS, RECEIVER)),
    Kind("crash", (*WORKERS, *SUBSCRIBERS, RECEIVER), (0.5, 4.0)),
    Kind("terminate", (*WORKERS, *SUBSCRIBERS, RECEIVER), (0.5, 4.0)),
    Kind("suspend", (*WORKERS, *SUBSCRIBERS), (12.0, 15.0)),
    Kind("suspend", (RECEIVER,), (2.0, 6.0)),
    Kind("state-lost", WORKERS, (0.5, 2.0)),
    Kind("state-damaged", WORKERS, (0.5, 2.0), ("flip", "cut")),
    Kind("add", ("worker-3",), (10.0, 18.0)),
    Kind("clock", (*WORKERS, *SUBSCRIBERS, RECEIVER), (4.0, 10.0), ("1", "-1", "40", "-2")),  # days
    Kind("roll", ("flow",), (2.0, 6.0)),
    # servers
    Kind("restart", ("kafka",)),
    Kind("kill", ("kafka",), (0.0, 1.0)),
    Kind("away", ("kafka",), (3.0, 9.0)),
    Kind("restart", ("postgres",)),
    Kind("kill", ("postgres",), (0.0, 1.0)),
    Kind("away", ("postgres",), (3.0, 9.0)),
    # Salesforce's wire
    Kind("drop-connections", ("salesforce",), variants=("held", "reply", "request")),
    Kind("unknown-client", ("salesforce",), variants=("handshake", "none")),
    Kind("server-restart", ("salesforce",), (1.0, 5.0)),
    Kind("refuse-resubscribe", ("salesforce",)),
    Kind("invalid-replay", ("salesforce",)),
    Kind("silent", ("salesforce",), (4.0, 10.0), ("all",)),
    Kind("silent", ("salesforce",), variants=("session",)),
    Kind("duplicate", ("salesforce",), variants=("1", "5", "20")),
    Kind("reorder", ("salesforce",), variants=("1", "5", "20")),
    Kind("expire-token", ("salesforce",)),
    Kind("revoke", ("salesforce",), (2.0, 5.0), pauses=True),
    Kind("html-503", ("salesforce",), variants=("all", "cometd", "rest", "token")),
    Kind("html-200", ("salesforce",), variants=("all", "cometd", "rest", "token")),
    Kind("empty-body", ("salesforce",), variants=("all", "cometd", "rest", "token")),
    Kind("slow", ("salesforce",), (0.5, 2.0), ("all", "cometd", "rest", "token")),
    Kind("limit-403", ("salesforce",), pauses=True),
    Kind("handshake-denied", ("salesforce",), pauses=True),
    # what Salesforce withholds
    Kind("gap", ("salesforce",), variants=("all", "create", "update", "delete", "undelete")),
    Kind("gap-wildcard", ("salesforce",)),
    Kind("wildcard", ("salesforce",)),
    Kind("overflow", ("salesforce",)),
    # Iterable
    Kind("cut-body", ("iterable",)),
    Kind("text-429", ("iterable",)),
    Kind("json-429", ("iterable",), variants=("plain", "retry-after")),
    Kind("500-json", ("iterable",), variants=("before",)),
    Kind("latency", ("iterable",), (1.0, 12.0)),
    Kind("reset-after-commit", ("iterable",)),
    Kind("reset-before", ("iterable",)),
    Kind("down", ("iterable",), (3.0, 9.0), ("503", "refuse")),
    Kind("revoke", ("iterable",), (2.0, 5.0), pauses=True),
    Kind("html-404", ("iterable",), pauses=True),
    # what the events themselves may be
    Kind("poison", ("org",), variants=("no-list", "no-header", "no-id")),
    Kind("oversize", ("org",), variants=("event", "write")),
    Kind("snapshot", ("org",), variants=("acme/Contact", "acme/Lead", "acme/Account")),
)
"""Not among them: Salesforce's rest-limit (Headrace then waits a quarter of an hour, as it should) and lock-row (it writes nothing there);
Iterable's 500 that blames the record (a dead letter by right)."""


@dataclass(slots=True)
class _Board:
    """What runs when, while the plan is being made."""

    seconds: float
    free: dict[str, float] = field(default_factory=dict)
    planned: list[Planned] = field(default_factory=list)
    awake: float = 0.0

    def fits(self, kind: Kind, target: str, at: float, seconds: float) -> bool:
        """Whether the fault may begin at that second."""
        if at < self.free.get(target, 0.0) or at + seconds > self.seconds:
            return False
        return not kind.pauses or (at >= self.awake and at <= max(self.seconds / 3, self.seconds - 1.5 * PAUSE_SECONDS))

    def running(self, at: float) -> int:
        return sum(each.at <= at < each.end for each in self.planned)

    def put(self, planned: Planned) -> None:
        self.planned.append(planned)
        self.free[planned.target] = planned.end + REST_SECONDS
        if planned.pauses:
            self.awake = planned.end + 1.5 * PAUSE_SECONDS


def plan(seed: int, seconds: float, kinds: Iterable[Kind] = KINDS) -> list[Planned]:
    """The faults of a run of `seconds`, in order of time: each fits into it, none meets another on its target, few run at once.

    Drawn like cards, from a pack that holds each kind once: none comes again before every other has come, where there was room for it.
    """
    chance = random.Random(seed)
    pack: list[Kind] = []
    board = _Board(seconds)
    at = CALM_SECONDS
    while at < seconds:
        if len(pack) < AT_ONCE:  # so that a card that does not fit just now holds nothing up
            fresh = list(kinds)
            chance.shuffle(fresh)
            pack += fresh
        if board.running(at) < AT_ONCE:
            _draw(chance, pack, board, at)
        at = round(at + chance.uniform(*GAP), 2)
    return board.planned


def _draw(chance: random.Random, pack: list[Kind], board: _Board, at: float) -> None:
    """Take the first card that fits now, with one of its targets by chance."""
    for place, kind in enumerate(pack):
        target, variant = chance.choice(kind.targets), chance.choice(kind.variants)
        length = round(chance.uniform(*kind.seconds), 2)
        if board.fits(kind, target, at, length):
            del pack[place]
            board.put(Planned(len(board.planned), kind.name, target, at, length, variant, kind.pauses))
            return
