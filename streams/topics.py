"""Every topic in one table: name, key, what cleans it, who writes, who reads. No name of a topic is made anywhere else.

All topics of an installation have the same number of partitions, fixed for ever, and are made before any group is joined: a metadata
request must never be what creates one.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, TopicAlreadyExistsError, for_code

from models.errors import FatalError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.kafka import client_options, unreachable

log = structlog.get_logger()

TABLES = ("records", "seen", "delivered")
DAY_MS = 86_400_000


class Inbound(NamedTuple):
    """What an in-topic's name says; `sobject` is "" for hooks."""

    connection: str
    sobject: str
    bulk: bool

    @property
    def source(self) -> str:
        """As in a route's `from:`."""
        return f"{self.connection}/{self.sobject}" if self.sobject else self.connection


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `retention` in ms, None = for ever."""

    name: str
    key: str
    cleanup: Literal["delete", "compact"]
    retention: int | None
    written_by: str
    read_by: str


class Topics:
    """The names of one installation."""

    def __init__(self, installation: str) -> None:
        self.installation = installation
        self.positions = f"{installation}.positions"
        self.cursors = f"{installation}.cursors"
        self.limits = f"{installation}.limits"
        self.dead_letters = f"{installation}.dead-letters"
        self.runs = f"{installation}.runs"
        self.incidents = f"{installation}.incidents"
        self.processes = f"{installation}.processes"
        self.pauses = f"{installation}.pauses"
        self.refill = f"{installation}.refill"
        self.quality = f"{installation}.quality"
        self.maps = f"{installation}.maps"
        self.rejections = f"{installation}.rejections"

    def inbound(self, source: str, *, bulk: bool = False) -> str:
        """In-topic of "<connection>/<sObject>" or of a webhook source."""
        return f"{self.installation}.in.{source.replace('/', '.')}{'.bulk' if bulk else ''}"

    def writes(self, target: str, *, bulk: bool = False) -> str:
        """Topic of a target's writes."""
        return f"{self.installation}.writes.{target}{'.bulk' if bulk else ''}"

    def duplicates(self, *, bulk: bool = False) -> str:
        """Writes of records that may be duplicates of others."""
        return f"{self.installation}.duplicates{'.bulk' if bulk else ''}"

    def fetch(self, connection: str) -> str:
        """Ids to re-read."""
        return f"{self.installation}.fetch.{connection}"

    def changelog(self, table: str) -> str:
        """Changelog of a table."""
        return f"{self.installation}.{table}-changelog"

    def parse_inbound(self, name: str) -> Inbound:
        """What an in-topic's name says. Raises FatalError for any other topic."""
        head = f"{self.installation}.in."
        if not name.startswith(head):
            raise FatalError(f"{name} is not an in-topic of {self.installation}: the worker subscribed to something it must not")
        bulk = name.endswith(".bulk")
        connection, _, sobject = name[len(head) :].removesuffix(".bulk").partition(".")
        return Inbound(connection, sobject, bulk)

    def lane(self, name: str) -> Literal["live", "bulk"]:
        """The lane of a topic."""
        return "bulk" if name.endswith(".bulk") else "live"

    def all(self, flow: Flow, settings: Settings) -> list[Topic]:
        """Every topic this flow needs."""
        keep = int(settings.retention_days * DAY_MS)
        found = [
            Topic(self.inbound(source, bulk=bulk), "record id", "delete", keep, "subscribe, receive, fetch, snapshot, replay", "process")
            for source in sources(flow)
            for bulk in (False, True)
        ]
        found += [
            Topic(self.writes(target, bulk=bulk), "object|target key", "delete", keep, "process", "writer")
            for target in flow.targets
            for bulk in (False, True)
        ]
        if compares(flow):
            found += [
                Topic(self.duplicates(bulk=bulk), "target|route|group", "delete", keep, "process", "duplicates") for bulk in (False, True)
            ]
            found.append(Topic(self.changelog("groups"), "table key", "compact", None, "its stage", "recovery"))
        for name, connection in flow.connections.items():
            if isinstance(connection, Salesforce):
                found.append(Topic(self.fetch(name), "record id", "delete", keep, "process", "fetch"))
        found += [Topic(self.changelog(table), "table key", "compact", None, "its stage", "recovery") for table in TABLES]
        found += [
            Topic(self.positions, "connection + channel", "compact", None, "subscribe", "subscribe, fetch, snapshot, status"),
            Topic(self.cursors, "connection/sObject", "compact", None, "subscribe", "subscribe"),
            Topic(self.limits, "connection + process", "compact", None, "who calls Salesforce", "who calls Salesforce, status"),
            Topic(self.runs, "run id, route", "compact", None, "snapshot, replay, verify, process", "snapshot, replay, verify, status"),
            Topic(self.incidents, "incident id", "compact", None, "subscribe, verify", "subscribe, incidents"),
            Topic(self.pauses, "what/name", "compact", None, "pause, resume", "every process, status"),
            Topic(self.refill, "route/partition", "compact", None, "refill, resume, process", "process"),
            Topic(self.quality, "stage/partition/batch", "compact", None, "process", "quality"),
            Topic(self.rejections, "route|field|rule|class", "delete", DAY_MS, "writer", "process, quality"),
            Topic(self.maps, "route", "compact", None, "worker", "worker, subscribe, snapshot, verify, status"),
            Topic(self.processes, "process id", "compact", None, "every process", "status"),
            Topic(self.dead_letters, "dead letter id", "delete", None, "every stage", "dead-letters"),
        ]
        return found


def compares(flow: Flow) -> bool:
    """Whether a route looks for duplicates among its records."""
    return any("duplicates" in route.quality for route in flow.routes.values())


def sources(flow: Flow) -> tuple[str, ...]:
    """Every source of the flow's routes, in order of first mention."""
    return tuple(dict.fromkeys(s for route in flow.routes.values() for s in route.sources))


async def ensure(settings: Settings, topics: Iterable[Topic]) -> None:
    """Make the topics that are missing; refuse those with another number of partitions (FatalError)."""
    wanted = {topic.name: topic for topic in topics}
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        there = set(await admin.list_topics())
        fresh = [
            NewTopic(t.name, settings.partitions, settings.replication, topic_configs=_configs(t))
            for t in wanted.values()
            if t.name not in there
        ]
        if fresh:
            answer = await admin.create_topics(fresh)
            for name, code, *rest in answer.topic_errors:
                if code and for_code(code) is not TopicAlreadyExistsError:
                    raise FatalError(
                        f"Kafka refused to make topic {name}: {for_code(code).__name__} {rest}; make it by hand or change the settings"
                    )
        # A broker answers "made" a moment before its metadata shows the topic.
        while missing := wanted.keys() - set(await admin.list_topics()):
            log.debug("waiting for topics to be visible", missing=len(missing))
            await asyncio.sleep(0.05)
        for found in await admin.describe_topics([name for name in wanted if name in there]):
            if (count := len(found["partitions"])) != settings.partitions:
                raise FatalError(
                    f"topic {found['topic']} has {count} partitions, not {settings.partitions}: the number is fixed for ever; "
                    f"set HEADRACE_PARTITIONS={count} or use another HEADRACE_INSTALLATION"
                )
    except KafkaConnectionError as error:
        raise await unreachable(settings, error) from None
    finally:
        await admin.close()


# Kafka refuses a record whose own time is an hour ahead of its clock: a process with a wrong clock could write nothing, and one whose clock
# is days behind would have its records deleted at once. So the time of a record is the broker's.
BROKER_TIME = {"message.timestamp.type": "LogAppendTime"}


def _configs(topic: Topic) -> dict[str, str]:
    if topic.cleanup == "compact":
        return {**BROKER_TIME, "cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
    return {**BROKER_TIME, "cleanup.policy": "delete", "retention.ms": str(topic.retention if topic.retention is not None else -1)}
