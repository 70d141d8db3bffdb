"""How records get into Kafka: in transactions, or plainly. It never makes a topic and never drops a record: a send returns when Kafka has
everything, or raises.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import OffsetAndMetadata

from models.errors import FatalError, PermanentError
from models.settings import Settings
from streams.engine.stage import Output
from streams.kafka import client_options, our_error, partition_of

MAX_RECORD = 1_000_000  # bytes of one record with headers; Kafka's default limit is 1,048,588 for a batch
BATCH_BYTES = 512_000
TRANSACTION_MS = 10_000
FILL_SECONDS = 8.0  # below the transaction's own timeout
COMMIT_SECONDS = 30.0
PLAIN_SECONDS = 5.0

Batches = dict[tuple[str, int], list[Output]]
Ends = dict[TopicPartition, int]
"""Offset after the last record sent, by topic and partition."""


def batched(outputs: Sequence[Output], partitions: int) -> Batches:
    """Outputs by topic and partition, in order. Raises PermanentError for a record that Kafka would refuse."""
    found: Batches = {}
    for output in outputs:
        key, partition = output.key, output.partition
        size = len(key or b"") + len(output.value or b"") + 64
        if output.headers:
            size += sum(len(n) + len(v) + 8 for n, v in output.headers)
        if size > MAX_RECORD:
            raise PermanentError(f"a record of {size:,} bytes for {output.topic} is above Kafka's limit of {MAX_RECORD:,}: make it smaller")
        if partition is None:
            if key is None:
                raise PermanentError(f"a record for {output.topic} has neither key nor partition")
            partition = partition_of(key, partitions)
        if (there := found.get(place := (output.topic, partition))) is None:
            there = found[place] = []
        there.append(output)
    return found


async def send_batches(producer: AIOKafkaProducer, batches: Batches) -> Ends:
    """Send without a task or a future per record; returns when Kafka has all, raises the first error of a delivery."""
    futures: list[asyncio.Future[Any]] = []
    sizes: list[int] = []
    try:
        for (topic, partition), outputs in batches.items():
            batch = producer.create_batch()
            for output in outputs:
                while batch.append(timestamp=None, key=output.key, value=output.value, headers=[*output.headers]) is None:
                    sizes.append(batch.record_count())
                    futures.append(await producer.send_batch(batch, topic, partition=partition))
                    batch = producer.create_batch()
            batch.close()
            sizes.append(batch.record_count())
            futures.append(await producer.send_batch(batch, topic, partition=partition))
        sent = zip(await asyncio.gather(*futures), sizes, strict=True)
        return {TopicPartition(meta.topic, meta.partition): meta.offset + size for meta, size in sent if meta.offset >= 0}
    except BaseException:
        for future in futures:  # the others' errors are the same story: say it once
            future.add_done_callback(lambda f: f.cancelled() or f.exception())
        raise


async def close_producer(producer: AIOKafkaProducer, seconds: float) -> None:
    """Stop, but not for ever: what Kafka did not take by then is given up."""
    try:
        async with asyncio.timeout(seconds):
            await producer.stop()
    except (TimeoutError, KafkaError):
        if (task := producer._sender.sender_task) is not None:
            task.cancel()
        with suppress(KafkaError):
            await producer.client.close()
    finally:
        _heard(producer)


def _heard(producer: AIOKafkaProducer) -> None:
    """How a producer ended, aiokafka tells each batch that waited and the transaction; nobody asks them: that would be a line of the log
    each.
    """
    told = [batch._drain_waiter for batches in producer._message_accumulator._batches.values() for batch in batches]
    if producer._txn_manager is not None:
        told.append(producer._txn_manager.wait_for_transaction_end())
    for future in told:
        if future is not None and future.done() and not future.cancelled():
            future.exception()


async def _abort(producer: AIOKafkaProducer) -> None:
    """Abort the open transaction; where that was begun before and we only lost patience, wait for its end, if it has not come by now."""
    manager = producer._txn_manager
    if manager.state is TransactionState.READY:
        return
    if manager.state is TransactionState.ABORTING_TRANSACTION:
        await asyncio.shield(manager.wait_for_transaction_end())
    else:
        await producer.abort_transaction()


class TransactionalPublisher:
    """One transaction per `send`. Whoever starts with the same id later fences this one: its next send raises FatalError.

    Invariants: an unfinished transaction is aborted before the next begins; when the outcome of a commit cannot be known within
    COMMIT_SECONDS the publisher is unusable (FatalError), because repeating could write twice. Sends of one publisher run in order of call.
    """

    def __init__(self, settings: Settings, transactional_id: str) -> None:
        self.id = transactional_id
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()
        self._open = False  # a transaction was begun and neither committed nor aborted
        self._broken = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect and fence the predecessor; its open transaction is aborted when this returns. Raises TemporaryError, FatalError."""
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            transactional_id=self.id,
            transaction_timeout_ms=TRANSACTION_MS,
            request_timeout_ms=TRANSACTION_MS,
            max_batch_size=BATCH_BYTES,
            acks="all",
            retry_backoff_ms=20,
        )
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await producer.start()
        except BaseException as error:
            await close_producer(producer, 0.1)
            if isinstance(error, KafkaError | TimeoutError):
                raise our_error(error, f"starting the producer {self.id}") from error
            raise
        self._producer = producer

    async def send(
        self, outputs: Sequence[Output], *, offsets: Mapping[TopicPartition, int] | None = None, group: str | None = None
    ) -> Ends:
        """Outputs and consumer offsets (next to read) of `group`, all or nothing; returns after the commit where the outputs end.

        Raises PermanentError (a record too large; nothing sent), and what `send_batched` raises.
        """
        return await self.send_batched(batched(outputs, self._settings.partitions), offsets=offsets, group=group)

    async def send_batched(
        self, batches: Batches, *, offsets: Mapping[TopicPartition, int] | None = None, group: str | None = None
    ) -> Ends:
        """As `send`, of what `batched` found to fit.

        Raises TemporaryError (Kafka away; nothing will be visible, send the whole again), FatalError (fenced, or the outcome is unknown:
        end the process).
        """
        async with self._lock:
            if self._broken:
                raise FatalError(self._broken)
            if (producer := self._producer) is None:
                raise FatalError(f"the producer {self.id} was not started")
            if not batches and not offsets:
                return {}
            ends = await self._fill(producer, batches, offsets or {}, group or "")
            await self._commit(producer)
            return ends

    async def stop(self) -> None:
        """Close; an open transaction is aborted if Kafka answers soon, else by its timeout."""
        if (producer := self._producer) is None:
            return
        self._producer = None
        if self._open and not self._broken:
            with suppress(KafkaError, TimeoutError, AssertionError):
                async with asyncio.timeout(2.0):
                    await _abort(producer)
        await close_producer(producer, 3.0)

    async def _fill(self, producer: AIOKafkaProducer, batches: Batches, offsets: Mapping[TopicPartition, int], group: str) -> Ends:
        what = f"the transaction of {self.id}"
        try:
            async with asyncio.timeout(FILL_SECONDS):
                if self._open:
                    if (fatal := self._fatal(producer)) is not None:  # fenced since: there is nothing to abort any more
                        self._broken = str(fatal)
                        raise fatal
                    await _abort(producer)
                    self._open = False
                await producer.begin_transaction()
                self._open = True
                # All partitions at once and one step after the other: while the coordinator adds something to a transaction, the broker
                # refuses its batches for a moment ("not enough replicas"), which costs a retry.
                for topic in {topic for topic, _ in batches}:
                    await producer.partitions_for(topic)
                for topic, partition in batches:
                    producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(topic, partition))
                ends = await send_batches(producer, batches)
                if offsets:
                    consumed = {tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
                    await producer.send_offsets_to_transaction(consumed, group)
                return ends
        except (KafkaError, TimeoutError, AssertionError) as error:
            wrapped = self._fatal(producer) or our_error(error, what)
            if isinstance(wrapped, FatalError):
                self._broken = str(wrapped)
            raise wrapped from error

    async def _commit(self, producer: AIOKafkaProducer) -> None:
        self._broken = (
            f"it is not known whether the last transaction of {self.id} was committed: end the process and read the position anew"
        )
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await producer.commit_transaction()
        except (KafkaError, TimeoutError, AssertionError) as error:
            raise self._fatal(producer) or FatalError(self._broken) from error
        self._open, self._broken = False, ""

    def _fatal(self, producer: AIOKafkaProducer) -> FatalError | None:
        """What ended aiokafka's sender, if it ended: nothing can be sent by this producer any more."""
        if (error := producer._message_accumulator._exception) is None:
            return None
        _heard(producer)
        wrapped = our_error(error, f"the transaction of {self.id}")
        return wrapped if isinstance(wrapped, FatalError) else FatalError(str(wrapped))


class Publisher:
    """Idempotent, acks=all; for the receiver and for commands. Concurrent sends share batches. Starts at the first send."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def send(self, outputs: Sequence[Output]) -> None:
        """Returns when Kafka has all. Raises PermanentError (too large, nothing sent), TemporaryError after about 5 s without Kafka.

        After a TemporaryError some or all of it may still have arrived: send the whole again, or let the source do so.
        """
        batches = batched(outputs, self._settings.partitions)
        producer: AIOKafkaProducer | None = None
        futures: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(PLAIN_SECONDS):
                producer = await self._started()
                for (topic, partition), records in batches.items():
                    for o in records:
                        futures.append(await producer.send(topic, o.value, o.key, partition=partition, headers=[*o.headers]))  # noqa: PERF401
                await asyncio.gather(*futures)
        except (KafkaError, TimeoutError) as error:
            for future in futures:
                future.add_done_callback(lambda f: f.cancelled() or f.exception())
            if producer is not None and producer is self._producer:
                self._producer = None  # an idempotent producer retries for ever: a new one forgets what we gave up
                await close_producer(producer, 0.1)
            raise our_error(error, "sending to Kafka") from error

    async def stop(self) -> None:
        """Close."""
        if (producer := self._producer) is not None:
            self._producer = None
            await close_producer(producer, 3.0)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **client_options(self._settings),
                    enable_idempotence=True,
                    request_timeout_ms=int(PLAIN_SECONDS * 1000),
                    max_batch_size=BATCH_BYTES,
                    max_request_size=MAX_RECORD + 10_000,
                )
                try:
                    await producer.start()
                except BaseException:
                    await close_producer(producer, 0.1)
                    raise
                self._producer = producer
            return self._producer


async def send(settings: Settings, outputs: Sequence[Output]) -> None:
    """Send these and be done. Raises what `Publisher.send` raises."""
    async with Publisher(settings) as publisher:
        await publisher.send(outputs)
