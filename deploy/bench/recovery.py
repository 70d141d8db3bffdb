"""(e) How fast a worker is back: with its local store lost (everything comes from the changelog) and with it intact. (f) How long a
rebalance stops it.
"""

import asyncio
import os
import re
import time
import urllib.request
from contextlib import suppress
from typing import Any

import orjson

from agents.maps import load_maps
from agents.rules.identity import Keys
from agents.rules.merge import RecordState, merge
from agents.rules.message import from_event
from agents.tables import records_key
from agents.targets import make_target
from deploy.bench import cases, contest
from deploy.bench.cases import Ground
from deploy.bench.contenders.headrace import FLOW
from deploy.bench.contest import Entry
from deploy.bench.work import MARK, Work, record_id
from deploy.local.process import LocalServiceError, Progress, free_port
from models.change_event import parse
from streams.flow_file import load_flow

BATCH = 50_000
STOCK_MOST = 50_000
REBALANCE_RATE = 500
SOURCE = "acme/Contact"


async def recovery(ground: Ground, count: int, say: Progress) -> dict[str, Any]:
    """Of `count` records of state: seconds to the first row, changelog records a second, and memory."""
    entry = cases.headrace(ground, f"Headrace, {count:,} records", 1, 0)
    await ground.topics([entry], schema=True)
    changelog = f"{entry.spec.name}.records-changelog"
    state, place = _state(ground, entry), ground.place
    for start in range(0, count, BATCH):
        ids = [record_id(number) for number in range(start, min(count, start + BATCH))]
        await place.load_at(
            changelog, [(place.partition(id.encode()), records_key(SOURCE, id), state.replace(b"<id>", id.encode()), []) for id in ids]
        )
    marks, port = contest.marker_ids(place), free_port()
    entry.work = Work(marks)
    entry.racer.set(HEADRACE_METRICS_PORT=str(port))
    speed = asyncio.create_task(_speed(port, count))
    lost = await _start(entry, ground, entry.work.create() + entry.work.marks(marks, "lost"), "lost")
    memory = {"peak_mb": round(entry.racer.peak_mb())}
    entry.racer.end()
    intact = await _start(entry, ground, entry.work.marks(marks, "intact"), "intact")
    memory["peak_mb_intact"] = round(entry.racer.peak_mb())
    entry.racer.end()
    found = {
        "records": count,
        "first_row_seconds_store_lost": round(lost, 2),
        "first_row_seconds_store_intact": round(intact, 2),
        "changelog_records_per_second": round(await speed),
        **memory,
    }
    say(f"recovery: {found}")
    await place.drop(entry.spec.name)
    return found


async def _speed(port: int, count: int) -> float:
    """Changelog records a second, from the first that the worker counts to the last: without its start, without joining the group."""
    began, first = 0.0, 0
    while True:
        with suppress(OSError):
            seen = int(await asyncio.to_thread(_metric, port, r'headrace_recovered_records_total{table="records"}'))
            if seen and not first:
                began, first = time.monotonic(), seen
            if seen >= count:
                return (count - first) / max(0.001, time.monotonic() - began)
        await asyncio.sleep(0.01)


async def stock_recovery(ground: Ground, count: int, say: Progress) -> dict[str, Any]:
    """Stock Faust's own recovery of its table, of at most `STOCK_MOST` records."""
    count = min(count, STOCK_MOST)
    times = []
    for records in (count, 0):
        entry = ground.entry(cases.STOCK, "e", "stock_faust", "step", 0, contest.sent_on, contest.same_bodies)
        await ground.topics([entry])
        changelog, place = f"{entry.spec.name}-records-changelog", ground.place
        await place.make(f"{entry.spec.name}-", [], [changelog])
        value = orjson.dumps(
            {"values": {"Id": "<id>", "Email": "person@example.org", "Title": "Analyst"}, "positions": {"Email": 1, "Title": 1}}
        )
        ids = [record_id(number) for number in range(records)]
        await place.load_at(
            changelog, [(place.partition(id.encode()), orjson.dumps(id), value.replace(b"<id>", id.encode()), []) for id in ids]
        )
        entry.work = Work(contest.marker_ids(place))
        events = entry.work.create()
        await place.load(entry.spec.source, contest.records(entry, events))
        began = time.monotonic()
        entry.racer.start()
        try:
            await _wait(entry, lambda: _all(ground, entry, len(events)))  # noqa: B023 - awaited here
            times.append(time.monotonic() - began)
        finally:
            entry.racer.stop()
        await place.drop(f"{entry.spec.name}-")
        await place.drop(entry.spec.name)
    found = {"records": count, "changelog_records_per_second": round(count / max(0.01, times[0] - times[1]))}
    say(f"recovery of stock Faust: {found}")
    return found


async def rebalance(ground: Ground, say: Progress) -> dict[str, Any]:
    """Under a steady load one worker is joined and left by another: how long the first stood still each time, by its own metric."""
    first, second = (cases.headrace(ground, cases.ONE, 1, 0) for _ in range(2))
    second.spec = first.spec
    await ground.topics([first], schema=True)
    port, other = free_port(), free_port()
    first.racer.set(HEADRACE_METRICS_PORT=str(port))
    second.racer.set(**ground.environ(first.spec), HEADRACE_METRICS_PORT=str(other))
    marks = contest.marker_ids(ground.place)
    first.work = Work([*map(record_id, range(500)), *marks])
    loading = None
    try:
        await _start(first, ground, first.work.create() + first.work.marks(marks, "0"), "0")
        loading = asyncio.create_task(_steady(first, ground))
        second.racer.start()
        joined = await _stood(port, 2, first)
        second.racer.end()
        left = await _stood(port, 3, first)
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        await ground.place.load(first.spec.source, contest.records(first, first.work.marks(marks, "end")))
        await _wait(first, lambda: _marked(ground, first, "end"))
        found = {"stop_seconds_join": joined, "stop_seconds_leave": left, "oracle": await contest.same_rows(first, ground.place)}
    finally:
        if loading is not None:
            loading.cancel()
        second.racer.stop()
        first.racer.stop()
    say(f"rebalance: {found}")
    return found


def _state(ground: Ground, entry: Entry) -> bytes:
    """A value of the table `records` as the worker would have written it, with <id> in the place of the id."""
    flow = load_flow(FLOW, os.environ | ground.environ(entry.spec))
    plan = load_maps(flow, {name: make_target(name, target, "") for name, target in flow.targets.items()}).plan(SOURCE)
    if plan is None:
        raise LocalServiceError(f"{FLOW} has no route from {SOURCE}")
    event = Work([record_id(1)]).create()[0]
    state = RecordState.decode(None, event.id)
    merge(state, from_event(parse(orjson.loads(event.value)), event.id, plan, 1), plan, "live", -1)
    state.keys["contacts"] = Keys(f"acme/{event.id}")
    return state.encode().replace(event.id.encode(), b"<id>")


async def _start(entry: Entry, ground: Ground, events: list[Any], text: str) -> float:
    """Load events, start, and the seconds until their rows are there."""
    await ground.place.load(entry.spec.source, contest.records(entry, events))
    began = time.monotonic()
    entry.racer.start()
    try:
        await _wait(entry, lambda: _marked(ground, entry, text))
    except BaseException:
        entry.racer.stop()
        raise
    return time.monotonic() - began


async def _marked(ground: Ground, entry: Entry, text: str) -> bool:
    return await ground.place.marked(entry.spec.schema, contest.marker_ids(ground.place), f"{MARK} {text}") == contest.MARKS


async def _all(ground: Ground, entry: Entry, count: int) -> bool:
    return sum((await ground.place.ends(entry.spec.out)).values()) >= count


async def _wait(entry: Entry, true: Any) -> None:
    until = time.monotonic() + contest.HUNG
    while not await true():
        entry.racer.check()
        if time.monotonic() > until:
            raise LocalServiceError(f"{entry.name} was not back after {contest.HUNG:.0f} s")
        await asyncio.sleep(0.02)


async def _steady(entry: Entry, ground: Ground) -> None:
    while True:
        await ground.place.load(entry.spec.source, contest.records(entry, entry.work.updates(REBALANCE_RATE // 10)))
        await asyncio.sleep(0.1)


async def _stood(port: int, times: int, entry: Entry) -> float:
    """Wait for the rebalance of this number; the seconds of it."""
    begun: list[float] = []

    async def passed() -> bool:
        count, total = [await asyncio.to_thread(_metric, port, f"headrace_rebalance_seconds_{part}") for part in ("count", "sum")]
        if count == times - 1 and not begun:
            begun.append(total)
        if count >= times and not begun:
            begun.append(total * (times - 1) / count)
        if count >= times:
            begun.append(total)
        return count >= times

    await _wait(entry, passed)
    return round(begun[-1] - begun[0], 3)


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{re.escape(name)}(?:{{}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
