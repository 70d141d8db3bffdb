"""A broker that is killed, restarted and away: what was fed is not lost, what was put out is not put out twice."""

import asyncio
import random
from pathlib import Path

import pytest

from deploy.local import LocalServices
from tests.support.fault_bench import fault_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


@pytest.mark.parametrize("seconds", [10.0, pytest.param(60.0, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
async def test_a_broker_that_is_killed_and_away_for_a_while_loses_nothing_and_doubles_nothing(
    services: LocalServices, tmp_path: Path, chance: random.Random, seconds: float
) -> None:
    async with fault_bench(services.kafka.bootstrap, tmp_path / "bench", chance) as b:
        one, two = b.worker("one"), b.worker("two")
        await one.said("partitions taken over")
        await two.said("partitions taken over")
        outages = [(services.kafka.kill, seconds)]
        if seconds > 10:
            outages += [(services.kafka.kill, 0.0), (services.kafka.stop, 5.0)]
        for end, away in outages:
            some = len(b.outputs) + chance.randrange(1, 1000)
            await b.feed(1500, rate=5000)  # a backlog: the broker goes while they work
            await b.outputs_reach(some)
            await asyncio.to_thread(end)
            await asyncio.sleep(away)
            await asyncio.to_thread(services.kafka.start)
            await b.feed(300)
            await b.outputs_reach(2 * len(b.events.sent.once))
        await b.verify()
        b.facts["exits"] = {keeper.state.name: keeper.codes for keeper in b.keepers}
        print(b.facts["exits"])
