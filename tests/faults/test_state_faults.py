"""A state folder that is lost, damaged, too old or ahead of its changelog, and a changelog that was poisoned: no state is ever made up."""

import random
import time
from functools import partial
from pathlib import Path

import pytest

from streams.engine.stage import Output
from streams.engine.store import Disk
from tests.support.fault_bench import FaultBench, damage, fault_bench, lose

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]
GHOST = b"acme/Contact|a-ghost-of-a-record"


def age(state: Path) -> None:
    """As if nobody had looked at the stores for two days: a tombstone may have come and gone."""
    for store in state.glob("records/[0-9]*"):
        disk = Disk(store)
        offset, _ = disk.position() or (0, 0.0)
        disk.write([(GHOST, b"{}")], offset, time.time() - 2 * 86_400)
        disk.close()


def run_ahead(state: Path) -> None:
    """As if the changelog had been made anew, or lost its end."""
    for store in state.glob("records/[0-9]*"):
        disk = Disk(store)
        offset, _ = disk.position() or (0, 0.0)
        disk.write([(GHOST, b"{}")], offset + 1_000_000, time.time())
        disk.close()


async def test_state_that_is_lost_too_old_ahead_or_damaged_is_rebuilt_from_the_changelog(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance, partitions=2) as b:
        worker = b.worker()
        for harm in (lose, age, run_ahead):
            some = len(b.outputs) + 100
            await b.feed(400)
            await b.outputs_reach(some)
            restarts = len(worker.pids)
            await worker.while_down(partial(harm, worker.state))
            await worker.said("partitions taken over", restarts + 1)
        await b.feed(200)
        await b.verify()
        b.facts["damaged stores"] = damage(worker.state, chance)  # met when it is read, at the start or later
        b.worker()
        await b.feed(600)
        await b.verify(stores=False)


async def test_a_poisoned_changelog_record_is_never_taken_for_state(kafka: str, tmp_path: Path, chance: random.Random) -> None:
    async with fault_bench(kafka, tmp_path, chance, partitions=1) as b:
        worker = b.worker()
        await b.feed(200)
        await b.outputs_reach(400)
        await b.until(b.settled, "not settled")
        record = next(key for key in b.events.sent.last if key[10] == "L").removeprefix("acme/")
        await worker.stop()
        lose(worker.state)
        before = dict(b.events.sent.last)
        await b.send([Output(b.topics.changelog("records"), f"acme/Contact|{record}".encode(), b"\xffpoison", partition=0)])
        again = b.worker("again")
        await again.said("partitions taken over")
        await b.send([b.events.one(record)])
        await again.said("cannot be read")
        assert await again.ended(1) == 70, again.end_of_log()
        await _nothing_made_up(b, record, before)


async def _nothing_made_up(b: FaultBench, record: str, before: dict[str, int]) -> None:
    assert b.ledgers["exact"].held[f"acme/{record}"][1] == before[f"acme/{record}"]
    assert len(b.outputs) == 400
