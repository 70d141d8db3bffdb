"""Events that are poison, too large, doubled, out of order, on two lanes at once; a rule that raises; a clock that jumps."""

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from pathlib import Path

import orjson
import pytest
from msgspec.structs import replace

from agents.rules.writes import decode_write
from streams.consume import read_all
from streams.engine.stage import Output
from tests.support.fault_bench import FaultBench, fault_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]
FAKETIME = Path(os.environ.get("LIBFAKETIME") or "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
NEEDS = pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime: apt install libfaketime")
HOUR = 3600.0


def poison(b: FaultBench) -> list[Output]:
    """One of each kind; each must become one dead letter."""
    record, raw = "003QxP000000001AAA", b.events.raw
    good = b.events.event(record, "Contact", 10**9, create=False, bulk=False)
    other = b.events.event("001QxP000000001AAA", "Account", 10**9, create=False, bulk=False)
    return [
        raw(record, b"\x00\xff not JSON", position=None),
        raw(record, None, position=None),
        raw(record, b"[]", position=None),
        raw(record, b'{"data": {"payload": {}, "event": {}}}', position=None),
        raw(record, b"[" * 100_000, position=None),
        raw("003QxP000000002AAA", good.value, position=1),  # speaks of another record
        replace(good, value=other.value),  # of another object
        replace(good, headers=[]),
        replace(good, headers=[("kind", b"change"), ("reason", b"live"), ("received", b"soon")]),
        replace(good, key=None, partition=0),
    ]


async def test_poison_of_every_kind_is_set_aside_and_stops_nobody(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance, partitions=2) as b:
        worker = b.worker()
        feeding = asyncio.create_task(b.feed(1000, rate=300))
        bad = poison(b)
        for output in chance.sample(bad, len(bad)):
            await b.send([output])
            b.events.sent.dead += 1
        await worker.kill()  # and none of them twice
        await feeding
        await b.verify()


async def test_a_rule_that_raises_for_one_record_sets_aside_that_record_alone(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance, partitions=2) as b:
        worker = b.worker(points=[{"at": "rule", "stage": "process", "after": 0, "do": "raise", "for": "003QxR"}])
        feeding = asyncio.create_task(b.feed(600, rate=300))
        for n in range(5):
            await b.send([b.events.event(f"003QxR{n:09d}AAA", "Contact", 10**6 + n, create=True, bulk=False)])
            b.events.sent.dead += 2  # one per route
        await feeding
        await b.verify()
        assert len(worker.pids) == 1, worker.end_of_log()


async def test_an_event_whose_output_is_too_large_is_set_aside_and_stops_nobody(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    """Each event fits into Kafka; the record merged of two of them does not."""
    async with fault_bench(kafka, tmp_path, chance, partitions=2) as b:
        b.worker()
        feeding = asyncio.create_task(b.feed(600, rate=300))
        record, large = "003QxO000000001AAA", "x" * 600_000
        await b.send([b.events.event(record, "Contact", 10**6, create=True, bulk=False, body={"LastName": large})])
        await b.send([b.events.event(record, "Contact", 10**6 + 1, create=False, bulk=False, body={"Title": large})])
        await feeding

        async def set_aside() -> bool:
            letters = [orjson.loads(r.value or b"") for r in await read_all(b.settings, b.topics.dead_letters)]
            return any(letter["key"] and "bytes" in letter["reason"] for letter in letters)

        await b.outputs_reach(2 * len(b.events.sent.once))
        await b.until(set_aside, "no dead letter for the record that grew too large")
        await b.until(b.settled, "something still waits")


async def test_doubled_reordered_and_on_two_lanes_at_once_each_record_ends_with_its_newest_event(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    """Under kills. An event that repeats one, or is older than what is known, must not bring anything old back."""
    async with fault_bench(kafka, tmp_path, chance) as b:
        worker = b.worker()
        records = [f"003QxT{n:09d}AAA" for n in range(40)]
        creates = [b.events.event(r, "Contact", n, create=True, bulk=False) for n, r in enumerate(records)]
        await b.send(creates)
        updates = [(seq, chance.choice(records)) for seq in range(100, 1600)]
        newest = {record: n for n, record in enumerate(records)} | {record: seq for seq, record in updates}
        lanes = [(seq, record, bulk) for seq, record in updates for bulk in (False, True) if bulk or chance.random() < 0.9]
        doubled = lanes + chance.sample(lanes, 300)
        shuffled = sorted(doubled, key=lambda one: one[0] + chance.uniform(0, 60))
        for start in range(0, len(shuffled), 50):
            some = shuffled[start : start + 50]
            await b.send([b.events.event(record, "Contact", seq, create=False, bulk=bulk) for seq, record, bulk in some])
            if start % 1200 == 600:
                await worker.kill()
        await b.until(b.settled, "something still waits")
        for target, ledger in b.ledgers.items():
            held = {key.removeprefix("acme/"): seq for key, (_, seq) in ledger.held.items()}
            stale = {record: (held.get(record), seq) for record, seq in newest.items() if held.get(record) != seq}
            assert not stale, f"{target}: {stale}"
            await no_output_twice(b, target)
        assert not await read_all(b.settings, b.topics.dead_letters)


async def no_output_twice(b: FaultBench, target: str) -> None:
    """A revision belongs to one event, and grows in each lane; values of a record never go back in either."""
    times: Counter[tuple[str, int]] = Counter()
    for bulk in (False, True):
        order: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for record in await read_all(b.settings, b.topics.writes(target, bulk=bulk)):
            write = decode_write(record.value).whole()
            times[write.source, write.revision] += 1
            order[write.source].append((write.revision, str((write.body or {}).get("title") or (write.body or {}).get("seq")).zfill(9)))
        assert all(seen == sorted(seen) for seen in order.values())
        assert all([s for _, s in seen] == sorted(s for _, s in seen) for seen in order.values()), "a value went back"
    assert not [one for one, count in times.items() if count > 1]


@pytest.mark.parametrize("how", ["injected", pytest.param("libfaketime", marks=[pytest.mark.slow, NEEDS])])
async def test_a_clock_that_jumps_changes_nothing(kafka: str, tmp_path: Path, chance: random.Random, how: str) -> None:
    off = tmp_path / "off"
    async with fault_bench(kafka, tmp_path, chance) as b:
        off.write_text("0" if how == "injected" else "+0s")
        faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(off), "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1"}
        worker = b.worker(clock=off) if how == "injected" else b.worker(environ=faked)
        await worker.said("partitions taken over")
        async with b.load(200):
            for hours in (26, -26, 2, -1):
                await b.more_outputs(300)
                off.write_text(str(hours * HOUR) if how == "injected" else f"{hours * 3600:+d}s")
                if how == "injected":
                    worker.send(signal.SIGUSR1)
            await b.more_outputs(300)
            await worker.kill()
        await b.verify()
        off.write_text("0")
