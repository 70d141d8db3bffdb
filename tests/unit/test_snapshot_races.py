"""Snapshots beside live events, in every order: what an event said a row that was read before never takes back, and at rest all is true.

A small org, its events in order on one lane, rows of REST pages and of Bulk jobs on the other: their `began` is read before a page, or when
the job is made, while the job runs later and its parts come later still. hypothesis draws what happens; the rules are the real ones.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agents.rules import merge as merging
from agents.rules.merge import RecordState, merge
from agents.rules.message import Message, from_event, from_row
from agents.rules.plan import make_plan
from agents.rules.versions import EVENT, Version
from models.change_event import parse
from models.envelope import Envelope, Kind, Reason

PLAN = make_plan("Contact", ["A__c", "B__c"])
FIELDS = ("A__c", "B__c")
IDS = ("003A", "003B", "003C")
Rows = deque[tuple[int, str, Message]]
"""With the number of commits when they were read, or of the commit that an event is of."""


@dataclass
class Reader:
    """A Bulk job: `began` when it was made; rows once it has run."""

    began: int
    columns: tuple[str, ...]
    deleted: bool
    rows: "Rows | None" = None


@dataclass
class Org:
    """The truth, and everything on its way. A value is the number of the commit that set it, so a greater one is a newer one."""

    draw: Callable[[Any], Any]
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: int = 0
    position: int = 10
    second: int = 1000
    durable: int = -1
    bus: Rows = field(default_factory=deque)
    live: Rows = field(default_factory=deque)
    bulk: Rows = field(default_factory=deque)
    told: dict[str, int] = field(default_factory=dict)  # the commit of the event that said whether a record is deleted
    jobs: list[Reader] = field(default_factory=list)
    states: dict[str, RecordState] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=lambda: {"live": -1, "bulk": -1})

    def change(self) -> None:
        id = self.draw(st.sampled_from(IDS))
        self.commits += 1
        self.position += self.draw(st.integers(1, 3))
        self.second += self.draw(st.sampled_from((0, 0, 0, 1, 2, 5)))
        held = self.truth.get(id)
        if held is None or held["deleted"]:
            kind = "CREATE" if held is None else "UNDELETE"
            body = {name: (held or {}).get(name, self.commits) for name in FIELDS}
        elif self.draw(st.integers(0, 4)) == 0:
            kind, body = "DELETE", {}
        else:
            kind, body = "UPDATE", dict.fromkeys(self.draw(st.sampled_from((FIELDS[:1], FIELDS[1:], FIELDS))), self.commits)
        self.truth[id] = (held or {}) | body | {"deleted": kind == "DELETE", "stamp": self.second}
        header = {
            "entityName": "Contact",
            "recordIds": [id],
            "changeType": kind,
            "changedFields": list(body) if kind == "UPDATE" else [],
            "commitTimestamp": (self.second + self.draw(st.sampled_from((0, 0, -1, 1)))) * 1000,
        }
        message = {"data": {"payload": {"ChangeEventHeader": header, **body}, "event": {"replayId": self.position}}, "channel": "c"}
        self.bus.append((self.commits, id, from_event(parse(message), id, PLAN, 1)))

    def forward(self) -> None:
        """The subscriber puts the next event into Kafka, and its position with it."""
        if self.bus:
            self.live.append(self.bus.popleft())
            self.durable = self.live[-1][2].position or 0

    def page(self) -> None:
        """REST: began, then the rows, at once."""
        self.bulk += self._rows(self.durable, self.draw(st.sampled_from((FIELDS, FIELDS[:1]))), self.draw(st.booleans()))

    def make(self) -> None:
        self.jobs.append(Reader(self.durable, self.draw(st.sampled_from((FIELDS, FIELDS[1:]))), self.draw(st.booleans())))

    def run(self) -> None:
        """A job looks at the org now."""
        if waiting := [job for job in self.jobs if job.rows is None]:
            job = self.draw(st.sampled_from(waiting))
            job.rows = self._rows(job.began, job.columns, job.deleted)

    def part(self) -> None:
        """The next row of a job's result comes."""
        if ready := [job for job in self.jobs if job.rows]:
            job = self.draw(st.sampled_from(ready))
            self.bulk.append((job.rows or deque()).popleft())

    def take_live(self) -> None:
        if self.live:
            commit, id, message = self.live.popleft()
            self._merge("live", id, message)
            if message.deleted is not None and self.states[id].deleted_version == message.version:
                self.told[id] = commit

    def take_bulk(self) -> None:
        if self.bulk:
            read, id, message = self.bulk.popleft()
            state = self.states.get(id)
            said = {p: state.values[p] for p in FIELDS if state and p in state.values and _of_event(state.version(p))} if state else {}
            gone = state.deleted if state and _of_event(state.deleted_version) else None
            self._merge("bulk", id, message)
            after = self.states[id]
            assert all(after.values[path] >= value for path, value in said.items()), f"a row took {said} back to {after.values}"
            if gone not in (None, after.deleted):
                assert read >= self.told[id], "a row undid a delete, or its undoing, that came after it was read"

    def rest(self) -> None:
        """Everything arrives."""
        while self.bus:
            self.forward()
        while any(job.rows is None for job in self.jobs):
            self.run()
        while any(job.rows for job in self.jobs):
            self.part()
        while self.live or self.bulk:
            (self.take_live if self.live and (not self.bulk or self.draw(st.booleans())) else self.take_bulk)()
        for id, state in self.states.items():
            held = self.truth[id]
            assert state.deleted == held["deleted"], f"{id} deleted: {state.deleted}, it is {held['deleted']}"
            if not state.deleted:
                assert {p: v for p, v in state.values.items() if p in FIELDS} == {p: held[p] for p in FIELDS if p in state.values}

    def _rows(self, began: int, columns: tuple[str, ...], deleted: bool) -> Rows:
        found: Rows = deque()
        for id in self.draw(st.permutations(sorted(self.truth))):
            held = self.truth[id]
            if held["deleted"] and not deleted:
                continue
            stamp = f"1970-01-01T00:{held['stamp'] // 60:02}:{held['stamp'] % 60:02}.000+0000"
            row = {"Id": id, "IsDeleted": held["deleted"], "SystemModstamp": stamp} | {name: held[name] for name in columns}
            envelope = Envelope(kind=Kind.ROW, reason=Reason.SNAPSHOT, received=1, epoch=1, began=began, run="s")
            found.append((self.commits, id, from_row(row, envelope, PLAN)))
        return found

    def _merge(self, lane: Any, id: str, message: Message) -> None:
        state = self.states.setdefault(id, RecordState({"Id": id, "IsDeleted": False}))
        self.offsets[lane] += 1
        merge(state, message, PLAN, lane, self.offsets[lane])


def _of_event(version: Version | None) -> bool:
    return version is not None and version[0] == EVENT


STEPS = ("change", "change", "change", "forward", "forward", "page", "make", "run", "part", "part", "take_live", "take_live", "take_bulk")


def races(data: st.DataObject) -> None:
    org = Org(data.draw)
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=5, max_size=50)):
        getattr(org, step)()
    org.rest()


def test_no_row_overwrites_what_is_newer_in_whatever_order_rows_and_events_come() -> None:
    settings(max_examples=200)(given(st.data())(races))()


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("the last to come wins", lambda new, old: True),
        ("a row wins over every event", lambda new, old: new[0] != EVENT or (old[0] == EVENT and new[1:] >= old[1:])),
        ("nothing replaces a row", lambda new, old: old[0] == EVENT and new[1:3] >= old[1:3]),
    ],
)
def test_a_rule_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch, what: str, broken: Any) -> None:
    monkeypatch.setattr(merging, "wins", broken)
    with pytest.raises(AssertionError):
        settings(max_examples=1000, phases=[Phase.generate], report_multiple_bugs=False)(given(st.data())(races))()
