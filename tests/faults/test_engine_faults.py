"""What must hold when a worker is killed, stopped under load, fenced, or lets an error out: nothing lost, nothing twice, nothing half."""

import asyncio
import random
import signal
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from streams.engine.stage import Output
from streams.publish import TransactionalPublisher
from tests.support.workers import Bench, bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


async def feed(b: Bench, count: int, rate: int) -> None:
    """Live and bulk records at about this rate a second."""
    for n in range(0, count, 50):
        await b.send(50, lane="bulk" if n % 200 == 150 else "live")
        await asyncio.sleep(50 / rate)


@pytest.mark.slow  # test_worker_faults.py does it with the real stages
async def test_kill_9_at_random_moments_loses_nothing_and_repeats_nothing(kafka: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    async with bench(kafka, tmp_path) as b:
        feeding = asyncio.create_task(feed(b, 5000, 500))
        for _ in range(4):
            worker = await b.start()
            await worker.said("partitions taken over")
            await b.arrived(len(b.outputs) + chance.randrange(1, 600))
            worker.kill()
            await worker.code()
        last = await b.start()
        await last.said("partitions taken over")
        await feeding
        await b.exactly(5000)
        assert await last.stop() == 0
        assert b.stored("state") == await b.changelog()
        assert sum(int(v) for v in (await b.changelog()).values()) == 5000


@pytest.mark.slow  # test_worker_faults.py does it with the real stages
async def test_sigterm_under_load_loses_nothing_and_repeats_nothing(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        feeding = asyncio.create_task(feed(b, 3000, 1000))
        for _ in range(3):
            worker = await b.start()
            await worker.said("partitions taken over")
            await b.arrived(len(b.outputs) + 300)
            assert await worker.stop(signal.SIGTERM) == 0
        last = await b.start()
        await last.said("partitions taken over")
        await feeding
        await b.exactly(3000)
        assert await last.stop() == 0
        assert b.stored("state") == await b.changelog()


@pytest.mark.slow  # test_worker_faults.py does it with the real stages
async def test_a_worker_that_joins_and_one_that_is_killed_under_load_lose_and_repeat_nothing(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        feeding = asyncio.create_task(feed(b, 4000, 500))
        one = await b.start("one")
        await b.arrived(300)
        two = await b.start("two")
        await two.said("partitions taken over")
        await b.arrived(len(b.outputs) + 300)
        one.kill()
        await feeding
        await b.exactly(4000)
        assert await two.stop() == 0
        assert b.stored("two") == await b.changelog()


@pytest.mark.slow  # test_worker_faults.py does it with the real stages
async def test_a_stopped_worker_that_wakes_after_its_session_ends_without_repeating_anything(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        one = await b.start("one")
        await one.said("partitions taken over")
        feeding = asyncio.create_task(feed(b, 3000, 500))
        await b.arrived(200)
        one.process.send_signal(signal.SIGSTOP)
        two = await b.start("two")
        await two.said("partitions taken over")
        one.process.send_signal(signal.SIGCONT)
        one.ended = True  # it may meet its fence and end, or find that it was thrown out and join again
        await feeding
        await b.exactly(3000)
        assert one.process.returncode in (None, 70)


async def test_an_error_out_of_a_handler_ends_the_process_with_70_and_commits_nothing_of_its_chunk(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=1) as b:
        await b.send(200)
        first = await b.start()
        await b.arrived(200)
        before = await b.committed(b.live)
        await b.send(1, do="poison")
        assert await first.code() == 70
        assert "a rule let an error out" in first.log.read_text()
        assert await b.committed(b.live) == before
        second = await b.start()  # meets it again
        assert await second.code() == 70
        assert await b.committed(b.live) == before
        await b.exactly(200)


async def test_a_transaction_open_at_a_crash_is_aborted_by_the_takeover_and_not_waited_for(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b, TransactionalPublisher(b.settings, f"{b.settings.installation}.count.0") as dead:
        producer = dead._producer
        assert producer is not None
        await producer.begin_transaction()
        changelog = f"{b.settings.installation}.records-changelog"
        await producer.send_and_wait(changelog, b"999", b"k-of-the-dead", partition=0)
        await producer.send_and_wait(b.out, b'{"seq": 999999}', b"k", partition=0)
        await b.send(400)
        await b.start()
        await b.exactly(400)
        assert b"k-of-the-dead" not in await b.changelog()
        with pytest.raises(Exception, match=r"(?i)fenced|newer producer"):
            await producer.commit_transaction()


async def test_a_producer_of_before_the_takeover_cannot_commit_offsets_or_outputs(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b, TransactionalPublisher(b.settings, f"{b.settings.installation}.count.1") as zombie:
        await b.send(400)
        await b.start()
        await b.arrived(400)
        with pytest.raises(Exception, match="took over"):
            await zombie.send(
                [Output(b.out, b"k", b'{"seq": 999999}', partition=1)],
                offsets={TopicPartition(b.live, 1): 1},
                group=b.settings.installation,
            )
        await b.exactly(400)
        assert await b.committed(b.live) == 400


async def test_a_hanging_handler_does_not_keep_the_worker_out_of_a_rebalance(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, drain_seconds=1.0) as b:
        one = await b.start("one")
        await one.said("partitions taken over")
        await b.send(1, partition=0, do="hang")
        await b.send(300, partition=1)
        await b.arrived(300)
        two = await b.start("two")
        await two.said("partitions taken over")
        assert "partition abandoned" in one.log.read_text()
        await b.send(300, partition=1)
        await b.send(300, partition=2)
        await b.send(300, partition=3)
        await b.arrived(1200)
