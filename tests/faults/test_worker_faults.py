"""Workers that are killed, stopped, added and taken away under load: nothing lost, one output per event, nothing stale, order kept."""

import asyncio
import random
import signal
from pathlib import Path

import pytest

from tests.support.fault_bench import fault_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


async def test_a_storm_of_ten_kills_at_random_moments_loses_nothing_and_puts_out_nothing_twice(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    async with fault_bench(kafka, tmp_path, chance) as b:
        worker = b.worker()
        feeding = asyncio.create_task(b.feed(6000, rate=150))
        for kill in range(10):
            if kill % 3 == 0:
                await b.more_outputs(chance.randrange(1, 800))
            else:
                await asyncio.sleep(chance.uniform(0.3, 3.0))  # at any moment, also of its start
            worker.send(signal.SIGKILL)
            await worker.ended(kill + 1)
        await feeding
        await b.verify()
