"""Snapshots as the topic `runs` keeps them, and what people ask of them there: pause, go on, stop.

A run has two records, so that nobody writes over the other: its state, written by the process that works on it (keeper.py), and what was
asked of it, written by commands.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import orjson

from models.errors import FatalError
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output, Record
from streams.publish import send
from streams.topics import Topics

Way = Literal["rest", "bulk"]
Want = Literal["go", "pause", "stop"]
State = Literal["wanted", "running", "paused", "done", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Run:
    """Value of a snapshot's record in the `runs` topic; its key is `run`.

    source    "<connection>/<sObject>"
    state     wanted (not begun) | running | paused | done | failed | stopped; `why` says why it failed, or is not read by Bulk
    by        command | first | repair | fields (that a map has anew): who asked for it
    since     epoch s, of a repair: only what changed since then
    group     the sources that one command reads one after another, "a,b"; "" where it reads one
    where     SOQL condition; only: the fields a person named, "a,b"; via: how it was asked to be read, "" = by size
    way       how it is read; fields: fingerprint of the columns
    rows      how many are in Kafka; total: COUNT() at the begin, 0 where it was not to be had; counted: at the end, -1 before
    changed   records made, deleted or changed meanwhile; -1 where nobody had to ask, or it was not to be had
    last      REST: id of the last record read, "" before the first
    job       Bulk: the job's id, "" before it is made; tries: jobs lost since the last row; channel, epoch, began: where the channel stood
    making    epoch s, by Salesforce's clock, when a job was begun to be made of which nothing is heard yet; 0: none
    locator   Bulk: of the part being read, "" = the first; taken: rows of it that are in Kafka
    rate      rows a second of late; note: what it waits for; owner: "host:pid" of the process, "" when it left
    started   epoch ms by Salesforce's clock; at: of writing, by ours
    """

    run: str
    source: str
    state: State = "wanted"
    by: Literal["command", "first", "repair", "fields"] = "command"
    since: int = 0
    group: str = ""
    where: str = ""
    only: str = ""
    via: Way | Literal[""] = ""
    way: Way | Literal[""] = ""
    fields: str = ""
    rows: int = 0
    total: int = 0
    counted: int = -1
    changed: int = -1
    last: str = ""
    job: str = ""
    making: int = 0
    tries: int = 0
    channel: str = ""
    epoch: int = 0
    began: int = -1
    locator: str = ""
    taken: int = 0
    rate: float = 0.0
    note: str = ""
    owner: str = ""
    started: int = 0
    at: int = 0
    why: str = ""

    def output(self, topics: Topics) -> Output:
        """The record that stores the run."""
        value = {"kind": "snapshot"} | asdict(replace(self, at=int(time.time() * 1000)))
        return Output(topics.runs, self.run.encode(), orjson.dumps(value, option=orjson.OPT_SORT_KEYS))

    @property
    def open(self) -> bool:
        """Still to be worked on."""
        return self.state in ("wanted", "running", "paused")

    @property
    def asked(self) -> tuple[str, ...]:
        """What the command said; the same command goes on with the run."""
        return self.by, self.source, self.group, self.where, self.only, self.via

    def stopped(self) -> "Run":
        """Ended for good."""
        return replace(self, state="stopped", note="", owner="")

    def anew(self) -> "Run":
        """Nothing of it is read."""
        return replace(self, last="", job="", locator="", taken=0, rows=0)


def parse_run(key: bytes | None, value: bytes | None) -> Run | None:
    """A snapshot's run; None for a deleted one and for runs of another kind. Raises FatalError."""
    if value is None:
        return None
    try:
        found: dict[str, Any] = orjson.loads(value)
        if found.pop("kind", None) != "snapshot":
            return None
        return Run(**{name: found[name] for name in Run.__dataclass_fields__ if name in found})
    except (ValueError, TypeError, AttributeError) as error:
        raise FatalError(f"run {key!r} in the runs topic is damaged ({error}); delete it and start the snapshot anew") from None


def filling(source: str, fields: Sequence[str]) -> list[Run]:
    """The run that reads these fields of every record, in which only what they change is told of."""
    now = int(time.time() * 1000)
    return [Run(f"fields-{uuid.uuid4().hex[:12]}", source, by="fields", only=",".join(fields), started=now)] if fields else []


async def snapshot_runs(settings: Settings) -> dict[str, Run]:
    """All snapshot runs by run id. Raises TemporaryError, FatalError."""
    return runs_of(await read_last(settings, Topics(settings.installation).runs))


def runs_of(last: Mapping[bytes | None, Record]) -> dict[str, Run]:
    """From the last record of each key of the topic `runs`. Raises FatalError."""
    found = (parse_run(key, record.value) for key, record in last.items())
    return {run.run: run for run in found if run is not None}


def new_id() -> str:
    """The id of a run that a command begins."""
    return f"snapshot-{uuid.uuid4().hex[:12]}"


async def group_runs(settings: Settings, sources: Sequence[str], where: str, via: Way | Literal[""]) -> list[Run]:
    """The runs of one command that reads several sources, in that order; of one that was interrupted those that are left.

    New ones are stored before any is begun. Raises TemporaryError, FatalError.
    """
    group = ",".join(sorted(sources))
    wanted = [Run(new_id(), source, group=group, where=where, via=via, started=int(time.time() * 1000)) for source in sources]
    asked = {run.asked for run in wanted}
    left = [run for run in (await snapshot_runs(settings)).values() if run.open and run.asked in asked]
    if left:
        return sorted(left, key=lambda run: sources.index(run.source))
    await send(settings, [run.output(Topics(settings.installation)) for run in wanted])
    return wanted


def first_runs(sources: Mapping[str, str]) -> list[Run]:
    """Runs of a first start, to be stored with its position: source by run id."""
    return [Run(run=run, source=source, by="first") for run, source in sources.items()]


def wish_key(run: str) -> str:
    """Key of what was asked of a run."""
    return f"{run}/asked"


def parse_wish(value: bytes | None) -> Want:
    """What was last asked; nothing, and what cannot be read, is to go on."""
    try:
        want: Any = orjson.loads(value)["want"] if value else "go"
    except (ValueError, KeyError, TypeError):
        return "go"
    return want if want in ("pause", "stop") else "go"


async def ask(settings: Settings, run: str, want: Want) -> None:
    """Ask it of a run; the process that works on it obeys within seconds. Raises TemporaryError."""
    value = orjson.dumps({"kind": "asked", "want": want, "at": int(time.time() * 1000)})
    await send(settings, [Output(Topics(settings.installation).runs, wish_key(run).encode(), value)])
