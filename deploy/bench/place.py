"""Kafka and PostgreSQL as the bench sees them: topics and schemas of its own, what goes in, how far readers are, what came out."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import psycopg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from psycopg import sql

from deploy.bench.work import COLUMNS, Row
from streams.kafka import partition_of

PARTITIONS = 4
TAIL = 50
Headers = list[tuple[str, bytes]]
Record = tuple[bytes, bytes, Headers]
"""Key, value, headers."""


class Place:
    """Clients of one run; an async context manager. Topics and schemas it made are gone afterwards."""

    def __init__(self, bootstrap: str, dsn: str) -> None:
        self.bootstrap, self.dsn = bootstrap, dsn
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        self._looks = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed")
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=900_000, acks="all")
        self._prefixes: list[str] = []
        self._schemas: list[str] = []
        self._where: dict[bytes, int] = {}
        self._keys: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        await asyncio.gather(self._admin.start(), self._looks.start(), self._producer.start())
        self.database = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for prefix in list(self._prefixes):
            await self.drop(prefix)
        await self.database.close()
        await asyncio.gather(self._admin.close(), self._looks.stop(), self._producer.stop())

    async def version(self) -> str:
        """Of PostgreSQL."""
        found = await (await self.database.execute("SHOW server_version")).fetchone()
        return str(found[0]) if found else ""

    async def make(self, prefix: str, topics: Sequence[str], compacted: Sequence[str] = (), schema: bool = False) -> None:
        """Topics with the prefix, and a schema of that name."""
        self._prefixes.append(prefix)
        made = [NewTopic(name, PARTITIONS, 1) for name in topics]
        made += [NewTopic(name, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"}) for name in compacted]
        if made:
            await self._admin.create_topics(made)
        while not {*topics, *compacted} <= set(await self._admin.list_topics()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the broker tells nobody when its metadata has caught up
        if schema:
            self._schemas.append(prefix)
            await self.database.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(prefix)))

    async def drop(self, prefix: str) -> None:
        """Everything with this prefix."""
        self._prefixes.remove(prefix)
        if names := [name for name in await self._admin.list_topics() if name.startswith(prefix)]:
            await self._admin.delete_topics(names)
        if prefix in self._schemas:
            self._schemas.remove(prefix)
            await self.database.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(prefix)))

    def partition(self, key: bytes) -> int:
        """As every client of Kafka chooses it."""
        if (found := self._where.get(key)) is None:
            found = self._where[key] = partition_of(key, PARTITIONS)
        return found

    async def load(self, topic: str, records: Iterable[Record]) -> None:
        """Write records, in order per partition; returns when Kafka has them."""
        await self.load_at(topic, ((self.partition(key), key, value, headers) for key, value, headers in records))

    async def load_at(self, topic: str, records: Iterable[tuple[int, bytes, bytes, Headers]]) -> None:
        """The same, with the partition of each."""
        await self._producer.partitions_for(topic)
        batches: dict[int, Any] = {}
        sent = []
        for partition, key, value, headers in records:
            batch = batches.get(partition) or self._producer.create_batch()
            while batch.append(key=key, value=value, headers=headers, timestamp=None) is None:
                sent.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
            batches[partition] = batch
        for partition, batch in batches.items():
            sent.append(await self._producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*sent)

    async def ends(self, topic: str) -> dict[int, int]:
        """End of the log by partition, for a reader of what is committed."""
        parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return {tp.partition: offset for tp, offset in (await self._looks.end_offsets(parts)).items()}

    async def tail(self, topic: str) -> list[tuple[bytes, bytes]]:
        """Keys and values of the last `TAIL` records of each partition (of a topic without transactions)."""
        ends = await self.ends(topic)
        left = {TopicPartition(topic, number) for number, end in ends.items() if end}
        self._looks.assign(list(left))
        for tp in left:
            self._looks.seek(tp, max(0, ends[tp.partition] - TAIL))
        found: list[tuple[bytes, bytes]] = []
        while left:
            for records in (await self._looks.getmany(*left, timeout_ms=100)).values():
                found += [(record.key, record.value) for record in records]
            left = {tp for tp in left if await self._looks.position(tp) < ends[tp.partition]}
        return found

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Next offset of a group by partition."""
        parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        try:
            found = await self._admin.list_consumer_group_offsets(group, partitions=parts)
        except GroupCoordinatorNotAvailableError:  # a new broker makes the topic of its groups when the first group comes
            return {}
        return {tp.partition: max(0, found[tp].offset) for tp in parts if tp in found}

    async def read(self, topic: str) -> list[Any]:
        """All committed records."""
        reader = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, enable_auto_commit=False, isolation_level="read_committed",
                                  auto_offset_reset="earliest")  # fmt: skip
        ends = await self.ends(topic)
        parts = [TopicPartition(topic, number) for number, end in ends.items() if end]
        found: list[Any] = []
        await reader.start()
        try:
            reader.assign(parts)
            left = set(parts)
            while left:
                for records in (await reader.getmany(*left, timeout_ms=50)).values():
                    found += records
                left = {tp for tp in left if await reader.position(tp) < ends[tp.partition]}
        finally:
            await reader.stop()
        return found

    async def rows(self, schema: str) -> dict[str, Row]:
        """The table `person`, by id."""
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        found = await self.database.execute(sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(schema, "person")))
        return {values[0]: dict(zip(COLUMNS, values, strict=True)) for values in await found.fetchall()}

    async def marked(self, schema: str, ids: Sequence[str], text: str) -> int:
        """How many of these rows have this text as their title; 0 while there is no table.

        By its primary key: a look at the whole table every 20 ms would take a third of the server from who is measured.
        """
        table = sql.Identifier(schema, "person")
        try:
            if (key := self._keys.get(schema)) is None:
                key = self._keys[schema] = await self._key(table)
            found = await self.database.execute(
                sql.SQL('SELECT count(*) FROM {} WHERE "title" = %s AND {} = ANY(%s)').format(table, sql.Identifier(key)),
                [text, [*ids, *(f"acme/{id}" for id in ids)]],
            )
        except psycopg.errors.UndefinedTable:
            return 0
        answer = await found.fetchone()
        return int(answer[0]) if answer else 0

    async def _key(self, table: sql.Identifier) -> str:
        found = await self.database.execute(
            "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey) "
            "WHERE indisprimary AND indrelid = %s::regclass",
            [table.as_string(self.database)],
        )
        (name,) = await found.fetchone() or ("externalId",)
        return str(name)


def differences(truth: Mapping[str, Row], found: Mapping[str, Row]) -> dict[str, int]:
    """Rows compared, missing, wrong (stale: an older value stands) and not expected."""
    return {
        "compared": len(truth),
        "missing": len(truth.keys() - found.keys()),
        "stale": sum(found[id] != row for id, row in truth.items() if id in found),
        "unexpected": len(found.keys() - truth.keys()),
    }
