"""Publishing and reading back on a real Kafka: all or nothing, fenced, batched, to the end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError

from models.errors import FatalError, PermanentError, TemporaryError
from models.settings import Settings
from streams.consume import close_consumer, read_all
from streams.engine.stage import Output
from streams.kafka import client_options, partition_of
from streams.publish import MAX_RECORD, Publisher, TransactionalPublisher
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
    publisher = TransactionalPublisher(settings, f"{settings.installation}.x")
    await publisher.start()
    await publisher.send(outputs(settings, range(2000), size=1000))
    await publisher.send(outputs(settings, range(2000, 2010)))
    await publisher.stop()
    records = await read_all(settings, f"{settings.installation}.out")
    assert sorted(int(r.value or b"") for r in records) == list(range(2010))
    assert all(r.partition == partition_of(r.key or b"", 4) for r in records)
    assert all(dict(r.headers) == {"n": str(int(r.value or b"")).encode()} for r in records)


async def test_offsets_are_committed_with_the_outputs(settings: Settings) -> None:
    publisher = TransactionalPublisher(settings, f"{settings.installation}.x")
    await publisher.start()
    await publisher.send(
        outputs(settings, range(1)), offsets={TopicPartition(f"{settings.installation}.out", 1): 7}, group=settings.installation
    )
    await publisher.stop()
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    committed = await admin.list_consumer_group_offsets(settings.installation)
    await admin.close()
    assert {tp.partition: meta.offset for tp, meta in committed.items()} == {1: 7}


async def test_a_successor_fences_the_first_and_sees_nothing_of_its_open_transaction(settings: Settings) -> None:
    first = TransactionalPublisher(settings, f"{settings.installation}.x")
    await first.start()
    await first.send(outputs(settings, range(3)))
    assert first._producer is not None
    await first._producer.begin_transaction()
    await first._producer.send_and_wait(f"{settings.installation}.out", b"99", b"open")
    second = TransactionalPublisher(settings, f"{settings.installation}.x")
    await second.start()
    assert await arrived(settings) == [0, 1, 2]
    with pytest.raises(Exception, match=r"(?i)fenced|epoch"):
        await first._producer.commit_transaction()
    await second.send(outputs(settings, range(3, 5)))
    assert await arrived(settings) == [0, 1, 2, 3, 4]
    await first.stop()
    await second.stop()


async def test_a_fenced_publisher_raises_fatal_and_writes_nothing(settings: Settings) -> None:
    first, second = (TransactionalPublisher(settings, f"{settings.installation}.x") for _ in range(2))
    await first.start()
    await second.start()
    for _ in range(2):
        with pytest.raises(FatalError, match="took over"):
            await first.send(outputs(settings, range(3)))
    assert await arrived(settings) == []
    await first.stop()
    await second.stop()


async def test_an_abort_that_took_too_long_is_waited_for_not_begun_again(settings: Settings) -> None:
    for finished in (False, True):  # by the time of the next send
        publisher = TransactionalPublisher(settings, f"{settings.installation}.x{finished}")
        await publisher.start()
        producer = publisher._producer
        assert producer is not None
        await producer.begin_transaction()
        await producer.send(f"{settings.installation}.out", b"-1", b"k", partition=0)
        publisher._open = True
        producer._txn_manager.aborting_transaction()
        if finished:
            await producer._txn_manager.wait_for_transaction_end()
        await publisher.send(outputs(settings, range(3)))
        await publisher.stop()
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
    publisher: TransactionalPublisher | Publisher
    if kind == "plain":
        publisher = Publisher(settings)
    else:
        publisher = TransactionalPublisher(settings, f"{settings.installation}.x")
        await publisher.start()
    large = outputs(settings, range(3), size=MAX_RECORD)[2]
    with pytest.raises(PermanentError, match=rf"{settings.installation}\.out"):
        await publisher.send([*outputs(settings, range(2)), large])
    await publisher.send(outputs(settings, range(5, 7), size=MAX_RECORD - 200))
    await publisher.stop()
    assert await arrived(settings) == [5, 6]


async def test_concurrent_plain_sends_all_arrive(settings: Settings) -> None:
    publisher = Publisher(settings)
    await asyncio.gather(*(publisher.send(outputs(settings, range(n, n + 3))) for n in range(0, 300, 3)))
    await publisher.stop()
    assert await arrived(settings) == list(range(300))


async def test_without_kafka_both_say_temporary(tmp_path: Path) -> None:
    nowhere = Settings(kafka="127.0.0.1:1", installation="t-nowhere", partitions=4, state=tmp_path)
    with pytest.raises(TemporaryError):
        await Publisher(nowhere).send([Output("t", b"k", b"v")])
    with pytest.raises(TemporaryError):
        await TransactionalPublisher(nowhere, "x").start()
    with pytest.raises(TemporaryError):
        await read_all(nowhere, "t")


async def test_an_aborted_and_an_empty_topic_are_read_to_their_end(settings: Settings) -> None:
    assert await arrived(settings) == []
    publisher = TransactionalPublisher(settings, f"{settings.installation}.x")
    await publisher.start()
    assert publisher._producer is not None
    await publisher._producer.begin_transaction()
    await publisher._producer.send_and_wait(f"{settings.installation}.out", b"99", b"gone")
    await publisher._producer.abort_transaction()
    assert await arrived(settings) == []
    await publisher.stop()


async def test_reading_a_topic_that_does_not_exist_is_fatal(settings: Settings) -> None:
    with pytest.raises(FatalError, match="does not exist"):
        await read_all(settings, f"{settings.installation}.absent")


async def test_headers_as_they_came_from_a_record_can_be_sent_on(settings: Settings) -> None:
    publisher = Publisher(settings)
    await publisher.send(outputs(settings, range(1)))
    (record,) = await read_all(settings, f"{settings.installation}.out")
    transactional = TransactionalPublisher(settings, f"{settings.installation}.x")
    await transactional.start()
    for sender in (publisher, transactional):
        await sender.send([Output(f"{settings.installation}.out", b"k1", b"1", record.headers)])  # type: ignore[arg-type]
    assert [dict(r.headers) for r in await read_all(settings, f"{settings.installation}.out")] == [{"n": b"0"}] * 3
    await publisher.stop()
    await transactional.stop()
