"""A contest: every contender does the same kind of work in turn, round after round, and its result is compared with the oracle."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson

from deploy.bench.place import Place, Record, differences
from deploy.bench.racer import Racer
from deploy.bench.spec import Spec
from deploy.bench.work import MARK, Event, Row, Work, record_id
from deploy.local.process import LocalServiceError, Progress

HUNG = 120.0
MARKS = 16
Done = Callable[["Entry", Place], Awaitable[bool]]
Check = Callable[["Entry", Place], Awaitable[dict[str, int]]]


@dataclass
class Entry:
    """One contender. `events` is what one round gives it: about equal times for fast and slow ones.

    flat       of peers that cannot merge: they get whole rows instead of change events, each as this makes it
    """

    name: str
    spec: Spec
    racer: Racer
    events: int
    done: Done
    check: Check
    flat: Callable[[Row], bytes] | None = None
    work: Work = field(default_factory=lambda: Work([]))
    loaded: Counter[int] = field(default_factory=Counter)
    sent: Counter[int] = field(default_factory=Counter)
    round: int = -1
    figures: dict[str, Any] = field(default_factory=dict)


async def contest(entries: Sequence[Entry], place: Place, ids: int, rounds: int, say: Progress) -> dict[str, Any]:
    """By contender: events a second and CPU microseconds an event of each round, peak memory, and what differs from the oracle.

    A peer that ends, or takes longer than `HUNG` seconds, is out, and its figures say why; of our own that raises LocalServiceError.
    """
    marks = marker_ids(place)

    async def all_of(step: Callable[[Entry], Awaitable[None]]) -> None:
        for entry in entries:
            if "failed" in entry.figures:
                continue
            try:
                await step(entry)
            except LocalServiceError as error:
                if not entry.flat:
                    raise
                entry.figures = {"failed": str(error).splitlines()[0]}
                entry.racer.stop()
                say(f"{entry.name}: {error}")

    async def warm(entry: Entry) -> None:
        entry.work = Work([*(record_id(number) for number in range(ids)), *marks], keep_rows=entry.flat is not None)
        entry.figures = {"events_per_second": [], "cpu_us_per_event": []}
        entry.racer.start()
        await _load(entry, place, entry.work.create() + entry.work.marks(marks, "0"))
        await _until_done(entry, place)

    async def race(entry: Entry) -> None:
        events = entry.work.updates(entry.events) + entry.work.marks(marks, str(entry.round + 1))
        entry.racer.freeze()
        await _load(entry, place, events)
        began = time.monotonic()
        entry.racer.thaw()
        rate = len(events) / await _until_done(entry, place, began)
        entry.figures["events_per_second"].append(round(rate, 1))
        entry.figures["cpu_us_per_event"].append(round(entry.racer.cpu() / len(events) * 1e6, 1))
        say(f"round {entry.round}: {entry.name}: {rate:,.0f} events/s")

    async def judge(entry: Entry) -> None:
        entry.figures |= {"peak_mb": round(entry.racer.peak_mb()), "oracle": await entry.check(entry, place)}

    try:
        for step in (warm, *[race] * rounds, judge):
            await all_of(step)
    finally:
        for entry in entries:
            entry.racer.stop()
    return {entry.name: entry.figures for entry in entries}


@cache
def marker_ids(place: Place) -> Sequence[str]:
    """Records whose arrival proves that everything before is through: one for each pair of in-partition and partition of the writes."""
    found: dict[tuple[int, int], str] = {}
    number = 0
    while len(found) < MARKS:
        id = f"003Mark{number:08d}AAA"
        found.setdefault((place.partition(id.encode()), place.partition(f"person|acme/{id}".encode())), id)
        number += 1
    return tuple(found.values())


def records(entry: Entry, events: Sequence[Event]) -> list[Record]:
    """As Headrace's subscriber writes them; who does not know the headers ignores them."""
    headers = [("kind", b"change"), ("reason", b"live"), ("received", b"%d" % (time.time() * 1000)), ("channel", b"/data/ChangeEvents"),
               ("epoch", b"1")]  # fmt: skip
    if entry.flat:
        return [(event.id.encode(), entry.flat(row), []) for event, row in entry.work.flat_rows(events)]
    return [(event.id.encode(), event.value, [*headers, ("position", b"%d" % event.position)]) for event in events]


async def _load(entry: Entry, place: Place, events: list[Event]) -> None:
    await place.load(entry.spec.source, records(entry, events))
    entry.loaded.update(place.partition(event.id.encode()) for event in events)
    if entry.check is same_records:
        entry.sent.update(hash(event.value) for event in events)
    entry.round += 1


async def _until_done(entry: Entry, place: Place, began: float | None = None) -> float:
    start = time.monotonic() if began is None else began
    while not await entry.done(entry, place):
        if time.monotonic() - start > HUNG:
            raise LocalServiceError(f"did not finish its events in {HUNG:.0f} s")
        entry.racer.check()
        await asyncio.sleep(0.02)
    return time.monotonic() - start


async def committed(entry: Entry, place: Place) -> bool:
    """Its group has committed everything that was loaded."""
    return await place.committed(entry.spec.name, entry.spec.source) == dict(entry.loaded)


async def sent_on(entry: Entry, place: Place) -> bool:
    """The markers are at the end of the out topic (for stock Faust, which commits only now and then, and may send an event twice)."""
    text = f'"{MARK} {entry.round}"'.encode()
    return len({key for key, value in await place.tail(entry.spec.out) if text in value}) == MARKS


async def marked(entry: Entry, place: Place) -> bool:
    """The last markers are in PostgreSQL."""
    return await place.marked(entry.spec.schema, marker_ids(place), f"{MARK} {entry.round}") == MARKS


async def same_records(entry: Entry, place: Place) -> dict[str, int]:
    """The out topic holds exactly what the in-topic does."""
    found = Counter(hash(record.value) for record in await place.read(entry.spec.out))
    wanted = entry.sent
    return {"compared": wanted.total(), "missing": (wanted - found).total(), "unexpected": (found - wanted).total()}


async def same_bodies(entry: Entry, place: Place) -> dict[str, int]:
    """The last body of each key in the out topic is the oracle's."""
    read = [orjson.loads(record.value) for record in await place.read(entry.spec.out)]
    return differences(entry.work.truth(), {body["externalId"]: body for said in read if (body := said["body"])})


async def same_rows(entry: Entry, place: Place) -> dict[str, int]:
    """The table is the oracle's."""
    return differences(entry.work.truth(), await place.rows(entry.spec.schema))


async def same_texts(entry: Entry, place: Place) -> dict[str, int]:
    """The table is the oracle's, where an empty text stands for null."""
    rows = await place.rows(entry.spec.schema)
    return differences(entry.work.truth(), {id: {name: value or None for name, value in row.items()} for id, row in rows.items()})
