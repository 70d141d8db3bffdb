"""Targets that are away, answer nonsense, hang, or refuse the key: nothing lost, nothing old at the end, and the other target goes on.

What the other target's latency was meanwhile is printed, never asserted.
"""

import asyncio
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.fault_bench import FaultBench, fault_bench
from tests.support.ledger import Ledger

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]
ODD = {"500": 4, "429": 2, "garbage": 3, "half": 3, "drop": 3}
"""Answers and how many requests get them."""


async def while_broken(b: FaultBench, broken: Ledger, other: Ledger, fault: str, seconds: float) -> None:
    """Two seconds of calm, then the fault for so long, then whole again. The other one gets everything meanwhile. Keeps its latencies."""
    calm = time.time()
    await asyncio.sleep(2.0)
    broken.fault(fault)
    began = time.time()
    await asyncio.sleep(seconds)
    async with asyncio.timeout(60):  # {other.name} is told of news while the broken one is called in vain
        await broken.until(lambda: broken.fired[fault] > 0)
        await other.until(lambda: other.entries[-1].at >= began)
    ended = time.time()
    figures = [f"{other.percentile(part, *span):.0f}" for span in ((calm, began), (began, ended)) for part in (0.5, 0.99)]
    b.facts["meanwhile"] = f"{other.name}: p50 and p99 before {figures[:2]} ms, during {figures[2:]} ms"
    broken.heal()


@pytest.mark.parametrize("seconds", [10.0, pytest.param(60.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("broken", ["exact", "loose"])
async def test_a_target_that_is_down_delays_nobody_and_gets_everything_later(
    kafka: str, tmp_path: Path, chance: random.Random, seconds: float, broken: str
) -> None:
    if seconds < 60 and broken == "exact":
        pytest.skip("one of the two is enough beside the slow runs")
    async with fault_bench(kafka, tmp_path, chance) as b:
        worker = b.worker()
        await b.feed(400)
        await b.outputs_reach(800)
        other = "exact" if broken == "loose" else "loose"
        async with b.load(150):
            await while_broken(b, b.ledgers[broken], b.ledgers[other], "down", seconds)
        await b.verify(regress=False)
        assert len(worker.pids) == 1, worker.end_of_log()


def struck(ledger: Ledger, name: str) -> bool:
    return ledger.fired[name] >= ODD[name]


async def test_odd_answers_and_lost_ones_lose_nothing_and_leave_nothing_old(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        worker = b.worker()
        await b.feed(100)
        async with b.load(300):
            for name in chance.sample(sorted(ODD), len(ODD)):
                for ledger in b.ledgers.values():
                    ledger.fault(name, ODD[name])
                for ledger in b.ledgers.values():
                    async with asyncio.timeout(60):
                        await ledger.until(partial(struck, ledger, name))
        await b.verify(regress=False)
        assert len(worker.pids) == 1, worker.end_of_log()


async def test_a_key_that_is_revoked_and_given_back_pauses_and_loses_nothing(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        worker = b.worker()
        await b.feed(400)
        await b.outputs_reach(800)
        async with b.load(200):
            await while_broken(b, b.ledgers["loose"], b.ledgers["exact"], "unauthorized", 3.0)
            await worker.said("target paused")
            await worker.said("target resumed")
        await b.verify(regress=False)
        assert len(worker.pids) == 1, worker.end_of_log()


async def test_a_target_that_hangs_through_a_rebalance_keeps_nobody_out_and_ends_with_the_truth(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    moments = ("hold", "hold-done")
    await asyncio.gather(*(hang(moment, kafka, tmp_path / moment, random.Random(chance.random())) for moment in moments))


async def hang(moment: str, kafka: str, folder: Path, chance: random.Random) -> None:
    """A call that waits before it does anything, or before it answers, until its caller is gone."""
    async with fault_bench(kafka, folder, chance, drain_seconds=1.0) as b:
        one = b.worker("one")
        await b.feed(300)
        await b.outputs_reach(600)
        b.ledgers["loose"].fault(moment)
        async with b.load(200):
            await b.ledgers["loose"].caught.wait()
            two = b.worker("two")
            await two.said("partitions taken over")
            assert await one.stop(signal.SIGTERM) in (0, 70), one.end_of_log()
            b.stopped_pids.add(one.pid)  # what it had asked for is done late, when it is gone
            b.ledgers["loose"].heal()
        await b.outputs_reach(2 * len(b.events.sent.once))
        await b.send([b.events.one(key.removeprefix("acme/")) for key in list(b.events.sent.last)])  # what came late is overtaken
        await b.verify()
