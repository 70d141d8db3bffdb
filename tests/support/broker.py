"""Topics of a test on the real Kafka: made under a name of their own, deleted at the end."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from models.settings import Settings
from streams.kafka import client_options
from streams.topics import Topic, ensure


def settings_for(kafka: str, state: Path, *, partitions: int = 4, **more: Any) -> Settings:
    """Settings of an installation nobody else has, on this Kafka (host:port)."""
    return Settings(kafka=kafka, installation=f"t-{uuid.uuid4().hex[:8]}", partitions=partitions, state=state, **more)


@asynccontextmanager
async def topics(settings: Settings, names: Sequence[str], compacted: Sequence[str] = ()) -> AsyncIterator[None]:
    """Make these topics; on leaving, delete every topic of the installation."""
    day = 86_400_000
    await ensure(
        settings, [Topic(n, "", "delete", day, "", "") for n in names] + [Topic(n, "", "compact", None, "", "") for n in compacted]
    )
    try:
        yield
    finally:
        admin = AIOKafkaAdminClient(**client_options(settings))
        await admin.start()
        try:
            await admin.delete_topics([t for t in await admin.list_topics() if t.startswith(f"{settings.installation}.")])
        finally:
            await admin.close()
