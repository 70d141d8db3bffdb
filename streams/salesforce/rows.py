"""What was read from Salesforce as records of its in-topic."""

import time
from collections.abc import Iterable, Mapping

import orjson

from models.dead_letter import dead_letter
from models.envelope import Envelope, Headers, Kind, Reason
from streams import metrics
from streams.engine.stage import Output
from streams.publish import MAX_RECORD
from streams.salesforce.messages import KEPT_BYTES
from streams.salesforce.positions import Durable
from streams.salesforce.rest import Row
from streams.topics import Topics


def row_outputs(
    topics: Topics,
    source: str,
    rows: Iterable[tuple[bytes, bytes]],
    durable: Durable,
    *,
    reason: Reason,
    run: str | None,
    bulk: bool,
    gone: int | None = None,
    plan: str | None = None,
) -> list[Output]:
    """Records of rows (key, JSON) that were read together; a dead letter in the place of one that Kafka would not take.

    `durable`: read before the rows. `gone`: epoch s at which there was none. `plan`: by which they were read.
    """
    now = int(time.time() * 1000)
    headers = Envelope(
        kind=Kind.ROW,
        reason=reason,
        received=now,
        channel=durable.channel,
        epoch=durable.epoch,
        began=durable.position,
        gone=gone,
        run=run,
        plan=plan,
    ).headers()
    topic = topics.inbound(source, bulk=bulk)
    return [
        Output(topic, key, value, headers)
        if len(value) + 2_000 <= MAX_RECORD
        else _too_large(topics, source, key, value, topic, headers, run, now)
        for key, value in rows
    ]


def _too_large(topics: Topics, source: str, key: bytes, value: bytes, topic: str, headers: Headers, run: str | None, now: int) -> Output:
    letter = dead_letter(
        stage="fetch",
        reason=f"a row of {source} is too large for Kafka ({len(value):,} bytes): map fewer large fields of it",
        error="TooLarge",
        at=now,
        topic=topic,
        partition=0,
        offset=0,
        key=key,
        value=value if len(value) <= KEPT_BYTES else None,
        headers=headers,
        redrive_to=topic,
    ).model_copy(update={"id": f"{run or now}/{key.decode()}"})
    metrics.DEAD.labels("fetch", "", "TooLarge").inc()
    return Output(topics.dead_letters, letter.id.encode(), orjson.dumps(letter.model_dump(exclude_none=True)))


def row_output(
    topics: Topics, source: str, row: Row, durable: Durable, *, reason: Reason, run: str | None, bulk: bool, gone: int | None = None
) -> Output:
    """As `row_outputs`, of one."""
    pair = row["Id"].encode(), orjson.dumps(row)
    return row_outputs(topics, source, [pair], durable, reason=reason, run=run, bulk=bulk, gone=gone)[0]


def read_again(
    topics: Topics, source: str, ids: Iterable[str], rows: Mapping[str, Row], durable: Durable, second: int, *, run: str
) -> list[Output]:
    """Records of ids that were read by id, in the live lane, for a repair: the row, or that there was none at `second` (epoch s)."""
    sobject = source.partition("/")[2]
    return [
        row_output(
            topics,
            source,
            rows.get(id, {"attributes": {"type": sobject}, "Id": id}),
            durable,
            reason=Reason.REPAIR,
            run=run,
            bulk=False,
            gone=None if id in rows else second,
        )
        for id in ids
    ]
