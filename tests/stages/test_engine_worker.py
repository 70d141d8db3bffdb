"""A worker on a real Kafka: everything once, live before bulk, nobody stopped by another, state that can be lost."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.support.workers import bench

pytestmark = pytest.mark.kafka


async def test_every_event_comes_out_once_over_a_clean_restart_and_stores_equal_the_changelog(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        await b.send(1500)
        first = await b.start()
        await b.arrived(1500)
        assert await first.stop() == 0
        await b.send(1500, lane="bulk")
        second = await b.start()
        await b.send(500)
        await b.exactly(3500)
        assert await second.stop() == 0
        assert b.stored("state") == await b.changelog()


async def test_state_that_was_lost_is_recovered_from_a_transactional_changelog(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        await b.send(1200)
        first = await b.start()
        await b.arrived(1200)
        assert await first.stop() == 0
        shutil.rmtree(tmp_path / "state" / "records")
        second = await b.start()
        await b.send(400)
        await b.exactly(1600)
        assert await second.stop() == 0
        assert b.stored("state") == await b.changelog()
        assert sum(int(v) for v in (await b.changelog()).values()) == 1600


async def test_live_records_overtake_a_bulk_backlog(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=1) as b:
        await b.send(3000, lane="bulk", do="slow")
        await b.start()
        await b.arrived(100)
        await b.send(50)
        await b.exactly(3050)
        last_live = max(place for place, o in enumerate(b.outputs) if o["lane"] == "live")
        assert last_live < 2500, "live records waited behind the bulk backlog"


async def test_a_partition_whose_handler_hangs_does_not_stop_the_others(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, drain_seconds=0.5) as b:
        await b.send(3, partition=0, do="hang")
        worker = await b.start()
        for number in (1, 2, 3):
            await b.send(1000, partition=number)
        await b.arrived(3000)
        assert {o["partition"] for o in b.outputs} == {1, 2, 3}
        assert await worker.stop() == 0  # the hanging one is abandoned at the end of the drain


async def test_a_second_worker_on_the_same_folder_is_refused_by_name(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        first = await b.start()
        await first.said("partitions taken over")
        second = await b.start()
        assert await second.code() == 70
        assert f"in use by process {first.process.pid}" in second.log.read_text()


async def test_a_worker_whose_topics_are_missing_is_refused_with_their_names(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        worker = await b.start(installation="t-nothing-here")
        assert await worker.code() == 70
        said = worker.log.read_text()
        assert "topics are missing" in said
        assert "t-nothing-here.in.x.bulk" in said
        assert "t-nothing-here.records-changelog" in said


async def test_two_workers_share_the_partitions_and_everything_comes_out_once(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        one = await b.start("one")
        await one.said("partitions taken over")
        await b.send(1000)
        two = await b.start("two")
        await two.said("partitions taken over")
        await b.send(1000)
        await b.arrived(2000)
        assert await one.stop() == 0
        await b.send(1000)
        await b.exactly(3000)
        assert await two.stop() == 0
        assert b.stored("one", "two") == await b.changelog()


async def test_an_idle_worker_stops_by_sigterm_with_exit_code_zero(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        worker = await b.start()
        await worker.said("partitions taken over")
        assert await worker.stop() == 0


async def test_stopping_before_the_group_is_joined_ends_cleanly(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        worker = await b.start()
        await worker.said("Starting...")
        await asyncio.sleep(0)
        assert await worker.stop() == 0
