"""A changelog on the real Kafka with a history written as a stage, a stranger or a crash would write it, and what recovery makes of it.

Run as a process of its own it recovers one store and is killed in the middle: `python -m tests.support.changelogs KAFKA NAME FOLDER LOADS`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from models.settings import Settings
from streams.engine import recovery
from streams.engine.recovery import recover
from streams.engine.stage import Changes
from streams.engine.store import Disk, TableStore
from streams.kafka import client_options
from tests.support.broker import settings_for, topics


class Changelog:
    """Partition 0 of one compacted topic."""

    def __init__(self, settings: Settings, admin: AIOKafkaAdminClient) -> None:
        self.settings, self.admin = settings, admin
        self.topic = f"{settings.installation}.records-changelog"
        self.part = TopicPartition(self.topic, 0)

    async def make(self, **config: str) -> None:
        """The topic, compacted where nothing else is said. Returns when it can be read."""
        configs = {"cleanup.policy": "compact"} | {name.replace("_", "."): value for name, value in config.items()}
        await self.admin.create_topics([NewTopic(self.topic, 1, 1, topic_configs=configs)])
        await self._seen(True)

    async def remake(self) -> None:
        """Delete the topic and make it again, empty."""
        await self.admin.delete_topics([self.topic])
        await self._seen(False)
        await self.make()

    async def _seen(self, there: bool) -> None:
        while (self.topic in await self.admin.list_topics()) is not there:  # noqa: ASYNC110 - Kafka tells nobody
            await asyncio.sleep(0.02)

    async def configure(self, **config: str) -> None:
        """Change its configuration."""
        configs = {name.replace("_", "."): value for name, value in config.items()}
        await self.admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.topic, configs=configs)])
        said: dict[str, str] = {}
        while not configs.items() <= said.items():  # the answer comes before the broker lives by it
            (answer,) = await self.admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, self.topic)])
            said = {entry[0]: entry[1] for entry in answer.resources[0][4]}

    async def cut(self, before: int) -> None:
        """Delete the records below an offset."""
        await self.admin.delete_records({self.part: RecordsToDelete(before_offset=before)})

    async def write(self, *transactions: tuple[str, Changes]) -> None:
        """Each ("commit" | "abort", changes), as a stage's producer does."""
        async with self._producer(transactional_id=f"{self.settings.installation}.t") as producer:
            for how, changes in transactions:
                await producer.begin_transaction()
                await asyncio.gather(*[await producer.send(self.topic, value, key, partition=0) for key, value in changes])
                await (producer.commit_transaction if how == "commit" else producer.abort_transaction)()

    async def stranger(self, *records: tuple[bytes | None, bytes | None]) -> None:
        """Records of somebody who is not a stage of ours."""
        async with self._producer(max_request_size=4_000_000) as producer:
            for key, value in records:
                await producer.send_and_wait(self.topic, value, key, partition=0)

    async def recovered(self, store: TableStore) -> dict[bytes, bytes]:
        """What the store holds after recovery."""
        await recover(self.settings, {self.part: ("records", store)})
        return dict(store.items())

    @asynccontextmanager
    async def _producer(self, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(**client_options(self.settings), **options)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def killed_in_recovery(self, folder: Path, loads: int) -> int:
        """Recover this folder in another process, which kills itself after so many chunks; its exit code."""
        command = [
            sys.executable,
            "-m",
            "tests.support.changelogs",
            self.settings.kafka,
            self.settings.installation,
            str(folder),
            str(loads),
        ]
        process = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[2])
        async with asyncio.timeout(60):
            return await process.wait()


@asynccontextmanager
async def changelog(kafka: str, folder: Path, **config: str) -> AsyncIterator[Changelog]:
    """Made with this configuration (underscores for dots), deleted afterwards."""
    settings = settings_for(kafka, folder, partitions=1)
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        async with topics(settings, []):
            found = Changelog(settings, admin)
            await found.make(**config)
            yield found
    finally:
        await admin.close()


def folded(*transactions: tuple[str, Changes]) -> dict[bytes, bytes]:
    """What must be there after this history."""
    found: dict[bytes, bytes] = {}
    for how, changes in transactions:
        for key, value in changes if how == "commit" else ():
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
    return found


def numbered(keys: Sequence[int], value: int) -> Changes:
    """One change per key."""
    return [(b"k%d" % key, b"%d" % value) for key in keys]


async def _recover_and_die(kafka: str, installation: str, folder: str, loads: int) -> None:
    settings = Settings(kafka=kafka, installation=installation, partitions=1)
    load, left = TableStore.load, [loads]

    def loading(self: TableStore, changes: Any, position: int, at: float) -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        load(self, changes, position, at)

    patch.object(TableStore, "load", loading).start()
    recovery.CHUNK = 100
    await recover(settings, {TopicPartition(f"{installation}.records-changelog", 0): ("records", TableStore(Disk(Path(folder))))})


if __name__ == "__main__":
    kafka_, installation_, folder_, loads_ = sys.argv[1:]
    asyncio.run(_recover_and_die(kafka_, installation_, folder_, int(loads_)))
