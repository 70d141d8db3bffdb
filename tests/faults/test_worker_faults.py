"""Workers killed, stopped, added, taken away and renewed under load: nothing lost, one output per event, order kept, nothing stale.

Every case feeds raw change events through the real process stage and the real writers into two ledgers, one that compares turns and one
that cannot, and counts by sequence id (tests/support/fault_bench.py: verify).
"""

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from streams.replay import run_replay
from tests.support import fault_points
from tests.support.fault_bench import FaultBench, fault_bench
from tests.support.fault_events import flow_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


async def storm(b: FaultBench, kills: int) -> None:
    """Kill at random moments: while it works, while it starts, while it takes over."""
    worker = b.worker()
    for number in range(kills):
        if number % 3 == 0:
            await b.more_outputs(b.chance.randrange(1, 800))
        else:
            await asyncio.sleep(b.chance.uniform(0.3, 3.0))
        await worker.kill()


async def test_a_storm_of_ten_kills_at_random_moments_loses_nothing_and_puts_out_nothing_twice(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        async with b.load(150):
            await storm(b, 10)
        await b.verify()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_storm_of_fifty_kills_loses_nothing_and_puts_out_nothing_twice(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance, partitions=12) as b:
        async with b.load(300):
            await storm(b, 50)
        await b.verify()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
async def test_death_at_chosen_moments_of_a_chunk_loses_nothing_and_puts_out_nothing_twice(
    kafka: str, tmp_path: Path, chance: random.Random, every: bool
) -> None:
    """All moments side by side, each in an installation of its own: most of the time is the group's wait for the dead."""
    writers = [(at, stage) for at in ("call", *fault_points.IN_ORDER) for stage in ("write-exact", "write-loose")]
    cases = [(at, "process") for at in fault_points.IN_ORDER] + (writers if every else chance.sample(writers, 3))
    places = asyncio.Semaphore(8)

    async def die(at: str, stage: str) -> None:
        async with places, fault_bench(kafka, tmp_path / f"{at}-{stage}", random.Random(chance.random()), partitions=2) as b:
            worker = b.worker(points=[{"at": at, "stage": stage, "after": b.chance.randrange(2, 5), "do": "kill"}])
            await b.feed(400, rate=300)
            assert await worker.ended(1) == -signal.SIGKILL, worker.end_of_log()
            assert f"fault point {at} of {stage}" in worker.log.read_text()
            await b.verify()

    async with asyncio.TaskGroup() as group:
        for at, stage in cases:
            group.create_task(die(at, stage))


async def test_death_while_the_target_works_and_before_its_answer_ends_with_the_truth(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    moments = ("hold", "hold-done")
    await asyncio.gather(*(die_in_a_call(moment, kafka, tmp_path / moment, random.Random(chance.random())) for moment in moments))


async def die_in_a_call(moment: str, kafka: str, folder: Path, chance: random.Random) -> None:
    """Every target has a call when the worker dies."""
    async with fault_bench(kafka, folder, chance) as b:
        worker = b.worker()
        await b.feed(400)
        await b.outputs_reach(400)
        for ledger in b.ledgers.values():
            ledger.fault(moment, 1)
        await b.feed(100)
        for ledger in b.ledgers.values():
            await ledger.caught.wait()
        await worker.kill()
        for ledger in b.ledgers.values():
            ledger.heal()  # what was underway is done now, and nobody hears of it
        await b.feed(300)
        await b.verify()
        assert all(ledger.fired[moment] == 1 for ledger in b.ledgers.values())


async def test_sigterm_under_load_hands_over_without_telling_anybody_anything_old(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance, drain_seconds=10.0) as b:
        worker = b.worker()
        async with b.load(300):
            for number in range(3):
                await worker.said("partitions taken over", number + 1)
                await b.more_outputs(b.chance.randrange(100, 700))
                worker.send(signal.SIGTERM)
                assert await worker.ended(number + 1) == 0, worker.end_of_log()
        await b.verify(regress=False)
        assert b.facts["loose"]["repeated"] == 0


async def test_workers_that_come_and_go_under_load_lose_nothing_and_put_out_nothing_twice(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        b.worker("one")
        async with b.load(200):
            await b.more_outputs(200)
            two = b.worker("two")
            await two.said("partitions taken over")
            await b.more_outputs(b.chance.randrange(100, 600))
            three = b.worker("three")
            await three.said("partitions taken over")
            assert await two.stop() == 0, two.end_of_log()
            await b.more_outputs(b.chance.randrange(100, 600))
            await three.stop(signal.SIGKILL)
        await b.verify()


async def test_a_rolling_change_of_the_flow_with_a_new_object_loses_nothing(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance, sobjects=("Contact", "Account")) as b:
        old = flow_for(str(tmp_path), {n: t.model_dump() for n, t in b.flow.targets.items()}, ["Contact"])
        one, two = b.worker("one", flow=old), b.worker("two", flow=old)
        async with b.load(100), b.load(100, sobject="Account"):
            await one.said("partitions taken over")
            await two.said("partitions taken over")
            for number, member in enumerate((one, two)):
                await b.more_outputs(200)
                taken = member.log.read_text().count("partitions taken over")
                assert await member.stop() == 0, member.end_of_log()
                fresh = b.worker(("one", "two")[number])
                await fresh.said("partitions taken over", taken + 1)
            await b.more_outputs(400)
        await b.verify()


async def test_a_worker_stopped_for_longer_than_its_session_repeats_nothing_when_it_wakes(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        one = b.worker("one")
        await one.said("partitions taken over")
        async with b.load(200):
            await b.more_outputs(b.chance.randrange(100, 600))
            b.stopped_pids.add(one.pid)
            one.send(signal.SIGSTOP)
            two = b.worker("two")
            await two.said("partitions taken over")
            await b.more_outputs(400)
            one.send(signal.SIGCONT)
            await b.more_outputs(400)
        await b.verify()


async def test_what_a_target_that_cannot_compare_took_from_a_zombie_is_counted_and_repaired_by_a_replay(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        points = [{"at": "call", "stage": f"write-{name}", "after": chance.randrange(6, 12), "do": "stop"} for name in b.ledgers]
        one = b.worker("one", points=points)
        await one.said("partitions taken over")
        async with b.load(200, bulk=0.0):
            await one.said("fault point call")
            b.stopped_pids.add(one.pid)
            two = b.worker("two")
            await two.said("partitions taken over")
            await b.more_outputs(600)
        await b.verify(stores=False)  # the others' truth, while the zombie sleeps in the middle of a call
        calls = {name: ledger.calls for name, ledger in b.ledgers.items()}
        one.send(signal.SIGCONT)
        await b.until(_later_call(b, calls), "the zombie's call never came")
        await one.stop()
        taken = {name: [e for e in ledger.entries if e.worker in b.stopped_pids and e.behind] for name, ledger in b.ledgers.items()}
        wrong = sum(b.ledgers["loose"].held[key][1] != seq for key, seq in b.events.sent.last.items())
        print(f"from the zombie: { ({n: len(t) for n, t in taken.items()}) }; stale in the target that cannot compare: {wrong}")
        assert all(b.ledgers["exact"].held[key][1] == seq for key, seq in b.events.sent.last.items())
        await run_replay(b.settings, b.flow, "Contact-loose", "-1d", stop=asyncio.Event())
        await b.until(_all_true(b), "a replay did not repair what the zombie overwrote")
        for ledger in b.ledgers.values():
            b.count_effects(ledger)


def _later_call(b: FaultBench, calls: dict[str, int]) -> Any:
    async def later() -> bool:
        return any(ledger.calls > calls[name] for name, ledger in b.ledgers.items())

    return later


def _all_true(b: FaultBench) -> Any:
    async def true() -> bool:
        return await b.settled() and all(b.ledgers["loose"].held[key][1] == seq for key, seq in b.events.sent.last.items())

    return true
