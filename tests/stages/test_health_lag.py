"""Lag is what Kafka says, and a transaction's end marker is no lag."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from models.errors import TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams import metrics
from streams.consume import read_all
from streams.engine.stage import Output
from streams.health import Health
from streams.lag import Lag, LagWatch
from streams.publish import TransactionalPublisher
from streams.topics import Topics, ensure
from tests.support.broker import settings_for, topics

pytestmark = pytest.mark.kafka
FLOW = Flow.model_validate(
    {
        "connections": {
            "acme": {"type": "salesforce", "auth": {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}},
            "shop": {"type": "webhook", "secrets": ["x"]},
        },
        "targets": {"w": {"type": "postgres"}},
        "routes": {"r": {"from": ["shop", "acme/Contact"], "to": "w", "map": "m"}},
    }
)


class Desk:
    """An installation with topics, a transactional producer and a watch."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.topics, self.watch = settings, Topics(settings.installation), LagWatch(settings, FLOW)
        self.publisher = TransactionalPublisher(settings, f"{settings.installation}.test.0")
        self.hooks = self.topics.inbound("shop")

    async def put(self, count: int) -> None:
        """One transaction of that many records in partition 0."""
        await self.publisher.send([Output(self.hooks, b"k", b"v", partition=0) for _ in range(count)])

    async def commit(self, offset: int) -> None:
        """The group is done below this offset of partition 0."""
        await self.publisher.send([], offsets={TopicPartition(self.hooks, 0): offset}, group=self.settings.installation)

    async def lag(self) -> Lag:
        """Of the hooks' topic."""
        return next(lag for lag in await self.watch.read() if lag.topic == self.hooks)


@pytest.fixture
async def desk(kafka: str, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = settings_for(kafka, tmp_path, partitions=2)
    async with topics(settings, []):
        await ensure(settings, Topics(settings.installation).all(FLOW, settings))
        desk = Desk(settings)
        await desk.publisher.start()
        yield desk
        await desk.publisher.stop()
        await desk.watch.close()


async def test_the_lag_falls_with_every_commit_to_zero_although_the_marker_stays(desk: Desk) -> None:
    await desk.put(5)
    await desk.put(3)
    await desk.lag()  # whatever is remembered of an earlier question must not answer the next one
    offsets = [record.offset for record in await read_all(desk.settings, desk.hooks)]
    seen = []
    for done in (2, 5, 8):
        await desk.commit(offsets[done - 1] + 1)
        lag = await desk.lag()
        seen.append(lag.records)
        assert (lag.oldest > 0) is (done < 8)
    assert seen[0] > seen[1] > seen[2] == 0
    assert await desk.lag() == await desk.lag()
    await desk.put(1)
    assert (await desk.lag()).records > 0


async def test_the_oldest_is_the_first_record_that_is_not_committed(desk: Desk) -> None:
    await desk.put(1)
    first = time.time()
    await asyncio.sleep(0.3)
    second = time.time()
    await desk.put(1)
    asked = time.time()
    lag = await desk.lag()
    assert lag.oldest >= asked - first - 0.01
    await desk.commit(1)
    assert (await desk.lag()).oldest <= time.time() - second + 0.01
    assert lag.loss is not None
    assert lag.loss + lag.oldest == pytest.approx(7 * 86_400)


async def test_each_topic_that_a_stage_reads_is_there_once(desk: Desk) -> None:
    lags = await desk.watch.read()
    assert sorted((lag.stage, lag.topic.removeprefix(desk.settings.installation)) for lag in lags) == [
        ("fetch", ".fetch.acme"),
        ("process", ".in.acme.Contact"),
        ("process", ".in.acme.Contact.bulk"),
        ("process", ".in.shop"),
        ("process", ".in.shop.bulk"),
        ("process", ".refill"),
        ("write", ".writes.w"),
        ("write", ".writes.w.bulk"),
    ]


async def test_without_kafka_it_says_so_and_without_topics_it_is_empty(kafka: str, tmp_path: Path) -> None:
    assert await LagWatch(settings_for(kafka, tmp_path), FLOW).read() == []
    with pytest.raises(TemporaryError, match=r"Kafka at 127\.0\.0\.1:1"):
        await LagWatch(settings_for("127.0.0.1:1", tmp_path), FLOW).read()


async def test_a_process_measures_and_beats_by_itself_and_leaves_the_list_when_it_stops(desk: Desk) -> None:
    position = {"epoch": 1, "position": 4, "second": int(time.time()) - 3600, "org": "", "instance": "", "started": 1, "from": "new"}
    await desk.publisher.send([Output(desk.topics.positions, b"acme|/data/ChangeEvents", json.dumps(position).encode())])
    await desk.put(4)
    loss = metrics.SALESFORCE_HOURS.labels("acme", "/data/ChangeEvents")
    loss.set(0)
    health = Health(desk.settings, "worker", flow=FLOW, name="parent-1", restarts=3, beat=0.1)
    await health.start()
    try:
        async with asyncio.timeout(30):
            beats: list[Any] = []
            while not beats or not loss._value.get():
                beats = await read_all(desk.settings, desk.topics.processes)
    finally:
        await health.stop()
    assert beats[-1].key == b"parent-1"
    said = json.loads(beats[-1].value or b"")
    assert (said["role"], said["restarts"]) == ("worker", 3)
    assert said["metrics"].startswith("http://127.0.0.1:")
    assert metrics.LAG.labels("process", desk.hooks)._value.get() >= 4
    assert loss._value.get() == pytest.approx(71 * 3600, abs=300)
    assert metrics.DISK_FREE._value.get() > 0
    assert (await read_all(desk.settings, desk.topics.processes))[-1].value is None
