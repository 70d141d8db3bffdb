"""A log that no longer holds what was not read: found at takeover, told once as a dead letter, and waited on until a person says go on.

Whoever would simply read on from what is left jumps in silence over events; whoever ends the process stops every other partition too. So
the partition is left alone, the others work, and `headrace accept-loss` (streams/losses.py) lets it go on.

How far a log was read is known twice: as the group's committed offset, which Kafka forgets with the topic or when the group rests too
long, and as a mark in the stage's changelog, which belongs to the same transactions.
"""

import time
from dataclasses import dataclass

import orjson
import structlog
from aiokafka import TopicPartition

from models.dead_letter import DeadLetter, dead_letter
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output
from streams.metrics import DEAD
from streams.topics import Topics

STAGE, ERROR = "engine", "Loss"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loss:
    """`read`: next offset we would have read, None where nothing was; the log reaches from `begin` to `end`."""

    topic: str
    partition: int
    read: int | None
    begin: int
    end: int

    @property
    def part(self) -> TopicPartition:
        """Where."""
        return TopicPartition(self.topic, self.partition)

    @property
    def id(self) -> str:
        """Of its dead letter: the same as long as it is the same loss."""
        return f"{self.topic}/{self.partition}/{-1 if self.read is None else self.read}/-"

    @property
    def reason(self) -> str:
        """What happened, to what, and what to do."""
        where = f"{self.topic} partition {self.partition}"
        if self.read is None or self.begin > self.read:
            first = self.read or 0
            what = f"records {first} to {self.begin - 1} of {where} were removed (retention, or by hand) before they were read"
        elif self.end < self.read:
            what = (
                f"{where} ends at offset {self.end}, but was read up to {self.read}: the topic was made anew or cut off, and what it held "
                "that was not read is gone"
            )
        else:
            what = (
                f"Kafka no longer knows how far {where} was read ({self.read} by our own account): the topic was made anew, or the group "
                "rested for longer than the broker's offsets.retention.minutes"
            )
        return (
            f"{what}. The partition waits, everything else goes on. `headrace accept-loss` lets it go on with what the log holds now and "
            "says how to fetch the rest"
        )


def start_at(part: TopicPartition, committed: int | None, mark: int | None, begin: int, end: int) -> int | Loss:
    """Offset to read on from, or what is lost. `committed` may lie below `mark`: a person who sets it back reads again."""
    known = [n for n in (committed, mark) if n is not None]
    if not known and begin == 0:
        return 0
    if committed is not None and begin <= committed and max(known) <= end:
        return committed
    read = committed if committed is not None and committed < begin else max(known, default=None)
    return Loss(part.topic, part.partition, read, begin, end)


def letter(loss: Loss, topics: Topics) -> Output:
    """The loss as a record of the dead-letter topic; counted and logged."""
    made = dead_letter(
        stage=STAGE,
        reason=loss.reason,
        error=ERROR,
        at=int(time.time() * 1000),
        topic=loss.topic,
        partition=loss.partition,
        offset=-1 if loss.read is None else loss.read,
        key=None,
        value=None,
        headers=[],
        redrive_to="",
    )
    DEAD.labels(STAGE, "", ERROR).inc()
    log.error("log lost records", alert=True, topic=loss.topic, partition=loss.partition, reason=loss.reason)
    return Output(topics.dead_letters, loss.id.encode(), orjson.dumps(made.model_dump(exclude_none=True)))


async def told(settings: Settings) -> dict[str, DeadLetter]:
    """Losses that were told and not yet accepted, by id. Raises TemporaryError, FatalError."""
    last = await read_last(settings, Topics(settings.installation).dead_letters)
    return {
        (key or b"").decode(errors="replace"): DeadLetter.model_validate_json(record.value or b"")
        for key, record in last.items()
        if b'"stage":"engine"' in (record.value or b"")
    }
