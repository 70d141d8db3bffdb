"""What the broker says of itself and of the changelogs, and what must be so: our own settings are only a hope."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from models.errors import FatalError
from models.settings import Settings
from streams.kafka import admin


async def cluster_id(settings: Settings) -> str:
    """The id Kafka was given when its storage was made. Raises FatalError."""
    async with _broker(settings) as broker:
        return str((await broker.describe_cluster())["cluster_id"])


async def tombstone_seconds(settings: Settings, topics: Iterable[str]) -> dict[str, float]:
    """By changelog, how long a deletion is sure to be found in it, in seconds. Raises FatalError for a topic that forgets values."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(set(topics))]
    found: dict[str, float] = {}
    async with _broker(settings) as broker:
        for answer in await broker.describe_configs(wanted):
            for code, _, _, name, entries, *_ in answer.resources:
                if code:
                    raise FatalError(
                        f"Kafka does not tell the configuration of {name} ({for_code(code).__name__}): grant DescribeConfigs on it"
                    )
                config = {entry[0]: entry[1] for entry in entries}
                if config["cleanup.policy"] != "compact":
                    raise FatalError(
                        f"topic {name} has cleanup.policy={config['cleanup.policy']}, so Kafka throws state away: "
                        f"kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config cleanup.policy=compact"
                    )
                found[name] = int(config["delete.retention.ms"]) / 1000
    return found


@asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    try:
        async with admin(settings) as client:
            yield client
    except KafkaError as error:
        raise FatalError(f"Kafka at {settings.kafka} did not answer ({type(error).__name__}): is it up, and may we ask it?") from error
