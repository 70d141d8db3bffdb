"""Refills: a route told of everything that is known, step by step (agents/refill.py). Here they are asked for and looked at.

How far a partition is stands in the topic `runs`, written by its owner in the transaction of each step.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import structlog

from models.errors import SettingsError, TemporaryError
from models.flow import Flow, is_event
from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Output, Record
from streams.pauses import What, read_pauses
from streams.publish import TransactionalPublisher
from streams.refusals import Refused
from streams.topics import Topics
from streams.typed import of_type

log = structlog.get_logger()
LOOK_SECONDS = 0.5


class Step(msgspec.Struct, omit_defaults=True):
    """Value of a record of the topic `refill`: the next step of a route in a partition. What was parked comes first, then the run.

    run      "": only what was parked
    source   being walked, "" before the first; after: id of the last record of it that was walked
    seen     records walked; asked: of them those that lacked something and are read from Salesforce; total: of them all, -1: not counted
    refused  what of the parked is not told: those that count by its gate
    """

    route: str
    run: str = ""
    source: str = ""
    after: str = ""
    seen: int = 0
    asked: int = 0
    total: int = -1
    started: int = 0
    refused: Refused | None = None

    def output(self, topics: Topics, partition: int) -> Output:
        """The record that makes a partition's owner take it."""
        return Output(topics.refill, f"{self.route}/{partition}".encode(), msgspec.json.encode(self), partition=partition)

    def progress(self, topics: Topics, partition: int, *, done: bool = False) -> Output:
        """The record that tells how far it is."""
        now = int(time.time() * 1000)
        told = Progress(self.run, self.route, partition, self.seen, self.asked, self.total, done, self.started or now, now)
        return Output(topics.runs, f"{self.run}/{partition}".encode(), msgspec.json.encode(told))


class Progress(msgspec.Struct, tag_field="kind", tag="refill"):
    """Of one partition of a run; figures as those of Step. `started`, `at`: epoch ms."""

    run: str
    route: str
    partition: int
    seen: int
    asked: int
    total: int
    done: bool
    started: int
    at: int


@dataclass(frozen=True, slots=True)
class Refill:
    """A run, of all its partitions together. `total`: -1 while a partition has not begun."""

    run: str
    route: str
    seen: int
    asked: int
    total: int
    done: bool
    started: int
    at: int


class _Parked(msgspec.Struct, tag_field="kind", tag="parked"):
    route: str
    partition: int
    count: int


def refills_of(records: Iterable[Record]) -> dict[str, Refill]:
    """By run, from the records of the topic `runs`."""
    parts: dict[str, list[Progress]] = {}
    for part in of_type(records, Progress):
        parts.setdefault(part.run, []).append(part)
    return {
        run: Refill(
            run,
            some[0].route,
            sum(part.seen for part in some),
            sum(part.asked for part in some),
            -1 if any(part.total < 0 for part in some) else sum(part.total for part in some),
            all(part.done for part in some),
            min(part.started for part in some),
            max(part.at for part in some),
        )
        for run, some in parts.items()
    }


def parked_of(records: Iterable[Record]) -> dict[str, int]:
    """By route how many records wait for it to go on, from the records of the topic `runs`."""
    found: Counter[str] = Counter()
    for one in of_type(records, _Parked):
        found[one.route] += one.count
    return {route: count for route, count in found.items() if count}


async def run_refill(settings: Settings, flow: Flow, route: str, *, progress: Callable[[Refill, str], None], stop: asyncio.Event) -> Refill:
    """Have the workers refill a route, and watch until it is done or `stop`; one that is under way is watched, none begun beside it.

    `progress` gets what it waits for, "" for nothing. Raises SettingsError (nothing to fill from), TemporaryError, FatalError.
    """
    if all(is_event(source) for source in flow.routes[route].sources):
        raise SettingsError(f"route {route} reads platform events, of which nothing is kept: `headrace replay {route}` sends them again")
    topics = Topics(settings.installation)
    async with TransactionalPublisher(settings, f"{settings.installation}.refill.{route}") as publisher:
        # Of two commands that begin at once one is fenced by now.
        open_ = [one for one in refills_of(await read_all(settings, topics.runs)).values() if one.route == route and not one.done]
        run = open_[0].run if open_ else f"refill-{route}-{uuid.uuid4().hex[:8]}"
        step = Step(route, "" if open_ else run, started=int(time.time() * 1000))
        begun = [step.output(topics, number) for number in range(settings.partitions)]
        told = [step.progress(topics, number) for number in range(settings.partitions)] if not open_ else []
        await publisher.send([*told, *begun])
    while True:
        try:
            found = refills_of(await read_all(settings, topics.runs))[run]
            pause = (await read_pauses(settings)).get(f"route/{route}")
            progress(found, str(pause) if pause else "")
            if found.done:
                return found
        except TemporaryError as error:
            log.warning("refill goes on unseen", reason=error.reason)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await stop.wait()
                return found
        except TimeoutError:
            pass


async def lift(settings: Settings, what: What, name: str, refused: Refused | None = None) -> None:
    """End a pause, and have a route tell of what was parked, but for what is `refused`, in one transaction.

    Raises TemporaryError, FatalError.
    """
    topics = Topics(settings.installation)
    steps = [Step(name, refused=refused).output(topics, number) for number in range(settings.partitions)] if what == "route" else []
    steps += [refused.output(topics)] if refused else []
    async with TransactionalPublisher(settings, f"{settings.installation}.resume.{what}.{name}") as publisher:
        await publisher.send([Output(topics.pauses, f"{what}/{name}".encode(), None, partition=0), *steps])
