"""The dead letter of a record as a record of the dead-letter topic: the one way in which an event that cannot pass is kept.

Counts and logs it. Never larger than Kafka takes: what does not fit stands where the record came from, and the letter says so.
"""

import time

import orjson
import structlog

from models.dead_letter import dead_letter
from models.errors import HeadraceError, TemporaryError
from models.scrub import scrub
from streams import metrics
from streams.engine.stage import Output, Record
from streams.topics import Topics

log = structlog.get_logger()

LARGEST_LETTER = 950_000
"""Bytes; Kafka takes 1 MB a record, and base64 makes a third more of the original."""


def dead_letter_output(
    stage: str,
    record: Record,
    error: Exception,
    *,
    topics: Topics,
    redrive_to: str,
    route: str | None = None,
    retryable: bool = False,
    attempts: int = 1,
    revision: int | None = None,
    source: str | None = None,
) -> Output:
    """The dead letter of a record as a record of the dead-letter topic; counted and logged."""
    kind = type(error).__name__
    ours = isinstance(error, HeadraceError)
    reason = scrub(str(error)) if ours else f"{kind}: {scrub(str(error))} (the rule for this record failed; mend the map or the record)"
    field = getattr(error, "field", None)
    letter = dead_letter(
        stage=stage,
        route=route,
        reason=reason,
        error=kind,
        at=int(time.time() * 1000),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=record.value,
        headers=list(record.headers),
        redrive_to=redrive_to,
        field=scrub(str(field), 120) if field is not None else None,
        retryable=retryable or isinstance(error, TemporaryError),
        attempts=attempts,
        revision=revision,
        source=source,
    )
    metrics.DEAD.labels(stage, route or "", kind).inc()
    log.warning("dead letter", stage=stage, route=route, cause=letter.cause, reason=reason, topic=record.topic, offset=record.offset)
    value = orjson.dumps(letter.model_dump(exclude_none=True))
    if len(value) > LARGEST_LETTER:
        size = len(record.value or b"")
        where = f" (the original, {size:,} bytes, is too large to be kept here: it stands where it came from, while Kafka keeps it)"
        slim = letter.model_copy(update={"value": None, "headers": [], "reason": reason + where})
        if len(slim.key or "") > LARGEST_LETTER // 2:
            slim = slim.model_copy(update={"key": None})
        value = orjson.dumps(slim.model_dump(exclude_none=True))
    return Output(topics.dead_letters, letter.id.encode(), value)
