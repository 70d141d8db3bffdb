"""aiokafka by hand: the best plain loop a good engineer would write, batch per poll, offsets committed after the batch is durable.

Modes: pass (records on as they are), step (the processing step, out to a topic), rows (the processing step, into PostgreSQL by one JSON
parameter per batch). State is kept in memory, so it starts again from nothing after a crash: faster, and not safe.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import psycopg
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.bench import byhand, spec
from deploy.bench.work import COLUMNS

BATCH = 5000
Fetched = dict[TopicPartition, list[Any]]
Made = list[tuple[bytes, Any]]
"""Keys of the in-topic, and a value as it came or a row."""


async def main(given: spec.Spec) -> None:
    """Until killed."""
    consumer = AIOKafkaConsumer(
        given.source, bootstrap_servers=given.bootstrap, group_id=given.name, enable_auto_commit=False, auto_offset_reset="earliest",
        max_partition_fetch_bytes=1 << 20, fetch_max_wait_ms=100,
    )  # fmt: skip
    await consumer.start()
    sink = await (_Rows if given.mode == "rows" else _Topic).open(given)
    states: dict[str, byhand.State] = {}
    while True:
        fetched: Fetched = await consumer.getmany(timeout_ms=200, max_records=BATCH)
        if not fetched:
            continue
        if given.mode == "pass":
            made = {tp.partition: [(record.key, record.value) for record in records] for tp, records in fetched.items()}
            await sink.take(made)
        else:
            await sink.take({tp.partition: _step(records, states) for tp, records in fetched.items()})
        await consumer.commit({tp: records[-1].offset + 1 for tp, records in fetched.items()})


def _step(records: Sequence[Any], states: dict[str, byhand.State]) -> Made:
    out: Made = []
    for record in records:
        id = record.key.decode()
        if (done := byhand.step(record.value, id, states.get(id))) is not None:
            states[id], body = done
            out.append((record.key, body))
    return out


class _Topic:
    """Batches of a partition, all in flight together."""

    def __init__(self, given: spec.Spec, producer: AIOKafkaProducer) -> None:
        self.given, self.producer = given, producer

    @classmethod
    async def open(cls, given: spec.Spec) -> "_Topic":
        producer = AIOKafkaProducer(bootstrap_servers=given.bootstrap, acks="all", enable_idempotence=True, max_batch_size=512_000)
        await producer.start()
        return cls(given, producer)

    async def take(self, made: dict[int, Made]) -> None:
        sent = []
        for partition, records in made.items():
            batch = self.producer.create_batch()
            for key, body in records:
                value = body if type(body) is bytes else orjson.dumps({"key": key.decode(), "body": body})
                while batch.append(key=key, value=value, timestamp=None) is None:
                    sent.append(await self.producer.send_batch(batch, self.given.out, partition=partition))
                    batch = self.producer.create_batch()
            if batch.record_count():
                sent.append(await self.producer.send_batch(batch, self.given.out, partition=partition))
        await asyncio.gather(*sent)


class _Rows:
    """The last row of each key in the batch, by one statement."""

    def __init__(self, statement: str, connection: psycopg.AsyncConnection) -> None:
        self.statement, self.connection = statement, connection

    @classmethod
    async def open(cls, given: spec.Spec) -> "_Rows":
        names = [f'"{column}"' for column in COLUMNS]
        table = f'"{given.schema}"."person"'
        connection = await psycopg.AsyncConnection.connect(given.dsn, autocommit=True)
        await connection.execute(f"CREATE TABLE {table} ({', '.join(f'{name} text' for name in names)}, PRIMARY KEY ({names[0]}))")
        statement = (
            f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(names)} FROM json_to_recordset(%s::json) "  # noqa: S608 - our own names
            f"AS s({', '.join(f'{name} text' for name in names)}) ON CONFLICT ({names[0]}) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        )
        return cls(statement, connection)

    async def take(self, made: dict[int, Made]) -> None:
        last = {key: body for records in made.values() for key, body in records}
        if last:
            await self.connection.execute(self.statement, [orjson.dumps(list(last.values())).decode()])


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main(spec.read()))
