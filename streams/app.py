"""Makes the Faust app of a worker: our transport, assignor and table manager, one agent per stage. Nothing happens at import."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import faust
import structlog
import uvloop
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from models.errors import FatalError
from models.settings import Settings
from streams.engine import pinned
from streams.engine.assignor import Assignor
from streams.engine.engine import Engine
from streams.engine.facts import cluster_id
from streams.engine.fatal import end, witnesses
from streams.engine.folder import StateFolder
from streams.engine.stage import Stage
from streams.engine.store import Backend, Disk
from streams.engine.tables import TableManager
from streams.kafka import client_options, unreachable
from streams.publish import MAX_RECORD
from streams.topics import Topics

OVERHEAD = 1_000  # bytes of a batch around its only record, generously

log = structlog.get_logger()


class App(faust.App):  # type: ignore[misc]
    """Faust's App with an engine in it."""

    engine: Engine
    folder: StateFolder

    async def on_first_start(self) -> None:
        """Refuse to start where the engine could not keep its promises."""
        try:
            self.folder.lock()
            self.engine.suspects.open(self.folder.path / "suspects")
            witnesses[:] = [self.engine.suspects.confess]
            await check_topics(self.engine)
            self.folder.claim(self.engine.settings.installation, self.engine.partitions, await cluster_id(self.engine.settings))
        except FatalError as error:
            end("worker refused to start", reason=str(error))
        await super().on_first_start()


async def check_topics(engine: Engine) -> None:
    """Every topic of every stage and table is there, with the right number of partitions, and takes records as large as ours may be; else
    FatalError names them.
    """
    wanted = sorted(engine.buffers.topics | set(engine.changelogs.values()) | {Topics(engine.settings.installation).dead_letters})
    admin = AIOKafkaAdminClient(**client_options(engine.settings))
    try:
        await admin.start()
        there = set(await admin.list_topics())
        if missing := [topic for topic in wanted if topic not in there]:
            raise FatalError(f"topics are missing: {', '.join(missing)}; make them (streams.topics.ensure) before the worker starts")
        for found in await admin.describe_topics(wanted):
            if (count := len(found["partitions"])) != engine.partitions:
                raise FatalError(f"topic {found['topic']} has {count} partitions, not {engine.partitions}: set HEADRACE_PARTITIONS={count}")
        for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in wanted]):
            for _, _, _, topic, entries, *_ in answer.resources:  # none where we may not ask
                if (most := dict(entry[:2] for entry in entries).get("max.message.bytes")) and int(most) < MAX_RECORD + OVERHEAD:
                    raise FatalError(
                        f"topic {topic} takes records of {int(most):,} bytes only: set its max.message.bytes to 1048588 or more"
                    )
    except KafkaError as error:
        raise FatalError(str(await unreachable(engine.settings, error))) from error
    finally:
        await admin.close()


def create_app(settings: Settings, stages: Sequence[Stage], backend: Callable[[str, int], Backend] | None = None) -> faust.App:
    """The app of a worker that runs these stages. Raises FatalError when other versions of Faust or aiokafka are installed.

    `backend` makes the place of a table's partition; on disk below `settings.state` where nothing is given.
    """
    pinned.check()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    folder = StateFolder(settings.state)
    app = App(
        settings.installation,
        env={},  # else Faust takes its settings from the environment before ours: BROKER_URL=kafka://… would put its own transport back
        broker=[f"headrace://{address}" for address in settings.kafka.split(",")],
        PartitionAssignor=Assignor,
        TableManager=TableManager,
        datadir=settings.state / "faust",
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=True,
        broker_commit_interval=3600.0,  # commits are the engine's; Faust's timer has nothing to do
        web_enabled=False,
        worker_redirect_stdouts=False,
        reply_create_topic=False,
        autodiscover=False,
    )
    app.folder = folder
    app.engine = Engine(settings, stages, backend or (lambda table, number: Disk(folder.store(table, number))))
    for table in app.engine.tables:
        app.Table(
            table,
            key_type=bytes,
            value_type=bytes,
            partitions=settings.partitions,
            changelog_topic=app.topic(app.engine.changelogs[table], key_type=bytes, value_type=bytes),
            help="state kept by the engine",
        )
    for stage in stages:
        channel = app.topic(*stage.live, *stage.bulk, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
        app.agent(channel, name=stage.name, concurrency=1)(_agent(app.engine, stage))
    return app


def _agent(engine: Engine, stage: Stage) -> Any:
    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            engine.accept(event.value, event.message.generation_id)

    agent.__name__ = stage.name
    agent.__doc__ = stage.handler.__doc__ or f"Stage {stage.name}."
    return agent
