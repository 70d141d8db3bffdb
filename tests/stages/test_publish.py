"""Publishing and reading back on a real Kafka: all or nothing, fenced, batched, to the end."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError

from models.errors import FatalError, PermanentError, TemporaryError
from models.settings import Settings
from streams.consume import close_consumer, read_all
from streams.engine.stage import Output
from streams.kafka import client_options, partition_of
from streams.publish import MAX_RECORD, Publisher, TransactionalPublisher, send
from tests.support.broker import settings_for, topics

pytestmark = pytest.mark.kafka


@pytest.fixture
async def settings(kafka: str, tmp_path: Path) -> AsyncIterator[Settings]:
    found = settings_for(kafka, tmp_path)
    async with topics(found, [f"{found.installation}.out"]):
        yield found


def outputs(settings: Settings, numbers: range, size: int = 10) -> list[Output]:
    return [Output(f"{settings.installation}.out", b"k%d" % n, b"%d" % n + b" " * size, [("n", b"%d" % n)]) for n in numbers]


async def arrived(settings: Settings) -> list[int]:
    return sorted(int(r.value or b"") for r in await read_all(settings, f"{settings.installation}.out"))


async def test_a_transaction_arrives_whole_with_headers_in_the_partition_of_its_key(settings: Settings) -> None:
    async with TransactionalPublisher(settings, f"{settings.installation}.x") as publisher:
        await publisher.send(outputs(settings, range(2000), size=1000))
        await publisher.send(outputs(settings, range(2000, 2010)))
    records = await read_all(settings, f"{settings.installation}.out")
    assert sorted(int(r.value or b"") for r in records) == list(range(2010))
    assert all(r.partition == partition_of(r.key or b"", 4) for r in records)
    assert all(dict(r.headers) == {"n": str(int(r.value or b"")).encode()} for r in records)


async def test_offsets_are_committed_with_the_outputs(settings: Settings) -> None:
    async with TransactionalPublisher(settings, f"{settings.installation}.x") as publisher:
        await publisher.send(
            outputs(settings, range(1)), offsets={TopicPartition(f"{settings.installation}.out", 1): 7}, group=settings.installation
        )
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    committed = await admin.list_consumer_group_offsets(settings.installation)
    await admin.close()
    assert {tp.partition: meta.offset for tp, meta in committed.items()} == {1: 7}


async def test_a_successor_fences_the_first_and_sees_nothing_of_its_open_transaction(settings: Settings) -> None:
    async with TransactionalPublisher(settings, f"{settings.installation}.x") as first:
        await first.send(outputs(settings, range(3)))
        assert first._producer is not None
        await first._producer.begin_transaction()
        await first._producer.send_and_wait(f"{settings.installation}.out", b"99", b"open")
        async with TransactionalPublisher(settings, f"{settings.installation}.x") as second:
            assert await arrived(settings) == [0, 1, 2]
            with pytest.raises(Exception, match=r"(?i)fenced|epoch"):
                await first._producer.commit_transaction()
            await second.send(outputs(settings, range(3, 5)))
        assert await arrived(settings) == [0, 1, 2, 3, 4]


async def test_a_fenced_publisher_raises_fatal_and_writes_nothing(settings: Settings) -> None:
    first, second = (TransactionalPublisher(settings, f"{settings.installation}.x") for _ in range(2))
    async with first, second:
        for _ in range(2):
            with pytest.raises(FatalError, match="took over"):
                await first.send(outputs(settings, range(3)))
    assert await arrived(settings) == []


async def test_a_fenced_publisher_leaves_no_error_behind_that_nobody_asked_for(settings: Settings) -> None:
    left: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: left.append(context["message"]))

    async def fenced(**offsets: Any) -> None:
        first, second = (TransactionalPublisher(settings, f"{settings.installation}.x") for _ in range(2))
        async with first, second:
            with pytest.raises(FatalError, match="took over"):
                await first.send(outputs(settings, range(300), size=5000), **offsets)

    await fenced()
    await fenced(offsets={TopicPartition(f"{settings.installation}.out", 1): 7}, group=settings.installation)
    gc.collect()
    assert left == []


async def test_an_abort_that_took_too_long_is_waited_for_not_begun_again(settings: Settings) -> None:
    for finished in (False, True):  # by the time of the next send
        async with TransactionalPublisher(settings, f"{settings.installation}.x{finished}") as publisher:
            producer = publisher._producer
            assert producer is not None
            await producer.begin_transaction()
            await producer.send(f"{settings.installation}.out", b"-1", b"k", partition=0)
            publisher._open = True
            producer._txn_manager.aborting_transaction()
            if finished:
                await producer._txn_manager.wait_for_transaction_end()
            await publisher.send(outputs(settings, range(3)))
    assert await arrived(settings) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("error", [None, asyncio.CancelledError(), KafkaConnectionError()])
async def test_closing_a_consumer_ends_nobody_elses_task(error: BaseException | None) -> None:
    closed: list[str] = []

    class Client:
        async def close(self) -> None:
            closed.append("client")

    class Consumer:
        _client = Client()

        async def stop(self) -> None:
            closed.append("consumer")
            if error is not None:
                raise error

    await close_consumer(Consumer())
    assert closed == (["consumer", "client"] if isinstance(error, asyncio.CancelledError) else ["consumer"])


@pytest.mark.parametrize("kind", ["transactional", "plain"])
async def test_a_record_too_large_is_refused_by_name_before_anything_is_sent(settings: Settings, kind: str) -> None:
    large = outputs(settings, range(3), size=MAX_RECORD)[2]
    async with Publisher(settings) if kind == "plain" else TransactionalPublisher(settings, f"{settings.installation}.x") as publisher:
        with pytest.raises(PermanentError, match=rf"{settings.installation}\.out"):
            await publisher.send([*outputs(settings, range(2)), large])
        await publisher.send(outputs(settings, range(5, 7), size=MAX_RECORD - 200))
    assert await arrived(settings) == [5, 6]


async def test_concurrent_plain_sends_all_arrive(settings: Settings) -> None:
    async with Publisher(settings) as publisher:
        await asyncio.gather(*(publisher.send(outputs(settings, range(n, n + 3))) for n in range(0, 300, 3)))
    assert await arrived(settings) == list(range(300))


async def test_without_kafka_both_say_temporary(tmp_path: Path) -> None:
    nowhere = Settings(kafka="127.0.0.1:1", installation="t-nowhere", partitions=4, state=tmp_path)
    with pytest.raises(TemporaryError):
        await send(nowhere, [Output("t", b"k", b"v")])
    with pytest.raises(TemporaryError):
        await TransactionalPublisher(nowhere, "x").start()
    with pytest.raises(TemporaryError):
        await read_all(nowhere, "t")


async def test_an_aborted_and_an_empty_topic_are_read_to_their_end(settings: Settings) -> None:
    assert await arrived(settings) == []
    async with TransactionalPublisher(settings, f"{settings.installation}.x") as publisher:
        assert publisher._producer is not None
        await publisher._producer.begin_transaction()
        await publisher._producer.send_and_wait(f"{settings.installation}.out", b"99", b"gone")
        await publisher._producer.abort_transaction()
        assert await arrived(settings) == []


async def test_reading_a_topic_that_does_not_exist_is_fatal(settings: Settings) -> None:
    with pytest.raises(FatalError, match="does not exist"):
        await read_all(settings, f"{settings.installation}.absent")


async def test_headers_as_they_came_from_a_record_can_be_sent_on(settings: Settings) -> None:
    await send(settings, outputs(settings, range(1)))
    (record,) = await read_all(settings, f"{settings.installation}.out")
    again = [Output(f"{settings.installation}.out", b"k1", b"1", record.headers)]
    await send(settings, again)
    async with TransactionalPublisher(settings, f"{settings.installation}.x") as publisher:
        await publisher.send(again)
    assert [dict(r.headers) for r in await read_all(settings, f"{settings.installation}.out")] == [{"n": b"0"}] * 3
