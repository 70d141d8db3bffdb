"""Workers that die, stand still, hang, come and go, with a real Kafka: every event comes out once, and nobody waits for the dead."""

import asyncio
import re
import signal
from collections import defaultdict
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from streams.consume import read_all
from streams.kafka import client_options
from tests.support.workers import Bench, Worker, bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

LONG = 600.0  # a session, and a rebalance (drain and a little), that nobody can wait for in a test


async def lives(b: Bench, expected: int) -> int:
    """Start workers one after another until one brings the outputs to this number; how many ended before."""
    for ended in range(20):
        worker = await b.start(session_timeout=LONG)
        arriving, ending = asyncio.create_task(b.arrived(expected)), asyncio.create_task(worker.code())
        await asyncio.wait({arriving, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if arriving.done():
            await arriving
            worker.ended = False
            return ended
        arriving.cancel()
        await asyncio.wait({arriving})
    raise AssertionError(f"no worker lived:\n{worker.log.read_text()[-3000:]}")


async def numbers(worker: Worker, times: int = 1) -> list[int]:
    """Partition numbers this worker took over at its n-th rebalance."""
    said = "partitions taken over"
    async with asyncio.timeout(60):
        while worker.log.read_text().count(said) < times:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.05)
    line = [line for line in worker.log.read_text().splitlines() if said in line][times - 1]
    found = re.search(r"\bpartitions\W+\[([0-9, ]*)\]", line)
    assert found is not None, line
    return [int(number) for number in found[1].split(",") if number]


async def test_a_record_that_kills_the_process_each_time_becomes_a_dead_letter_and_no_other_does(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=2, drain_seconds=LONG) as b:
        await b.send(1, partition=0)
        await b.send(1, partition=0, do="kill")
        await b.send(2, partition=0)
        await b.send(300, partition=1)
        assert 3 <= await lives(b, 303) <= 8
        await b.exactly(304, dead={1})
        (letter,) = await b.letters()
        assert letter.retryable
        assert "ended the process again and again" in letter.reason
        assert letter.redrive_to == b.live


async def test_a_record_whose_handler_raises_each_time_becomes_a_dead_letter_and_no_other_does(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=1, drain_seconds=LONG) as b:
        await b.send(2)
        await b.send(1, do="poison")
        await b.send(1)
        assert 3 <= await lives(b, 3) <= 6
        await b.send(50)
        await b.exactly(54, dead={2})


async def test_what_is_too_large_for_kafka_is_a_dead_letter_and_ends_no_process(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=1) as b:
        await b.send(100)
        await b.send(1, do="large")
        await b.send(50, lane="bulk")
        await b.send(1, do="large-state", lane="bulk")
        await b.send(100)
        worker = await b.start()
        await b.exactly(252, dead={100, 151})
        assert all("above Kafka's limit" in letter.reason and not letter.retryable for letter in await b.letters())
        assert await worker.stop() == 0
        assert b.stored("state") == await b.changelog()


async def test_a_topic_that_takes_only_smaller_records_is_refused_at_the_start(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        admin = AIOKafkaAdminClient(**client_options(b.settings))
        await admin.start()
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, b.bulk, {"max.message.bytes": "500000"})])
        await admin.close()
        worker = await b.start()
        assert await worker.code() == 70
        assert f"topic {b.bulk} takes records of 500,000 bytes only" in worker.log.read_text()


async def test_a_worker_that_comes_back_after_a_kill_does_not_wait_for_its_own_session(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, drain_seconds=LONG) as b:
        for n in (1, 2):
            worker = await b.start(session_timeout=LONG)
            await b.send(200)
            await b.arrived(200 * n)
            worker.kill()
            await worker.code()
        await b.start(session_timeout=LONG)
        await b.send(200)
        await b.exactly(600)


async def test_a_transaction_left_open_holds_up_readers_only_until_the_takeover(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        dead = AIOKafkaProducer(
            **client_options(b.settings),
            transactional_id=f"{b.settings.installation}.count.0",
            transaction_timeout_ms=800_000,  # Kafka's own clean-up comes too late for this test
        )
        await dead.start()
        await dead.begin_transaction()
        await dead.send_and_wait(b.out, b'{"seq": 999999}', b"k", partition=0)
        await b.send(400)
        await b.start()
        await b.exactly(400)
        with pytest.raises(Exception, match=r"(?i)fenced|newer producer"):
            await dead.commit_transaction()
        await dead.stop()


async def test_what_a_stopped_worker_had_in_its_transaction_fails_when_it_wakes(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        zombie = await b.start("zombie")
        await zombie.said("partitions taken over")
        await b.send(200)
        await b.arrived(200)
        await b.send(1, partition=0, do="stop")
        await zombie.said("stopped before the commit")
        await b.send(100)
        heir = await b.start("heir", bold=True)
        await heir.said("partitions taken over")
        await b.exactly(301)
        zombie.ended = True
        zombie.process.send_signal(signal.SIGCONT)
        assert await zombie.code() == 70
        assert "took over" in zombie.log.read_text()
        await b.send(100)
        await b.exactly(401)
        assert await heir.stop() == 0
        assert b.stored("heir") == await b.changelog()


async def test_a_worker_that_stands_still_ends_itself_and_the_other_takes_over(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        hanging = await b.start("hanging", patience=2.0)
        await numbers(hanging)
        heir = await b.start("heir", bold=True)
        (hung, *_), others = await numbers(hanging, 2), await numbers(heir)
        await b.send(1, partition=hung, do="hang")
        await b.send(100, partition=others[0])
        assert await hanging.code() == 70
        assert "partition stands still" in hanging.log.read_text()
        await b.exactly(101)
        assert await numbers(heir, 2) == [0, 1, 2, 3]


async def test_a_declared_wait_longer_than_the_watchdogs_patience_ends_nobody(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        worker = await b.start(patience=2.0)
        await b.send(1, partition=0, do="wait")
        await b.send(100, partition=1)
        await b.exactly(101)
        assert await worker.stop() == 0


async def test_a_rolling_change_of_the_flow_writes_no_foreign_state_and_loses_nothing(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        old = await b.start("old")
        await numbers(old)
        new = await b.start("new", more=["y"])
        of_old, of_new = await numbers(old, 2), await numbers(new)
        await b.send(200)
        await b.send(200, source="y")
        at_new = sum(record.partition in of_new for record in await read_all(b.settings, f"{b.settings.installation}.in.y"))
        await b.arrived(200 + at_new)
        by = defaultdict(set)
        for output in b.outputs:
            by[output["pid"]].add(output["partition"])
        assert by == {old.process.pid: set(of_old), new.process.pid: set(of_new)}, "two workers wrote for one partition number"
        assert "topic waits for members that do not read it" in old.log.read_text() + new.log.read_text()
        assert await old.stop() == 0
        newer = await b.start("old", more=["y"])
        await numbers(newer)
        await b.exactly(400)
        await b.send(100, source="y")
        await b.send(100)
        await b.exactly(600)
        assert await new.stop() == 0
        assert await newer.stop() == 0
        assert b.stored("old", "new") == await b.changelog()
        assert sum(int(value) for value in (await b.changelog()).values()) == 600


async def test_two_workers_share_a_targets_rate_by_their_partitions(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=4) as b:
        one = await b.start("one")
        await numbers(one)
        two = await b.start("two")
        assert [len(await numbers(one, 2)), len(await numbers(two))] == [2, 2]
        for n in range(40):
            await b.send(1, partition=n % 4, do="call")
        await b.exactly(40)
        assert {o["share"] for o in b.outputs} == {0.5}
        calls = [float(at) for _, at in {(o["pid"], str(o["at"])) for o in b.outputs}]  # the partitions of a process share one
        assert len({o["pid"] for o in b.outputs}) == 2
        most = max(sum(start <= at < start + 1.0 for at in calls) for start in calls)
        assert most <= 20 + 4, "more calls in a second than the target's limit"


async def test_a_stop_while_a_target_hangs_takes_the_drain_and_not_longer(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, drain_seconds=0.5) as b:
        hanging = await b.start("one")
        await hanging.said("partitions taken over")
        await b.send(1, partition=0, do="hang")
        await b.send(100, partition=1)
        await b.arrived(100)
        assert await hanging.stop() == 0
        assert "partition abandoned" in hanging.log.read_text()
        assert "work stopped" in hanging.log.read_text()
        await b.start("one", bold=True)
        await b.exactly(101)
