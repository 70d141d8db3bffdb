"""Moments at which a worker of the fault suite dies or stands still, put into its own process from outside; the product knows none of them.

A point is {"at": name, "stage": stage, "after": n, "do": "kill" | "stop"}: at the n-th time that this stage comes by, SIGKILL or SIGSTOP to
oneself. One at "rule" has "for" instead: shaping a record whose id begins so raises. Names, in the order of a chunk's way:

call                  the target's client is about to send its request
before-output         the handler has its result, nothing of it is sent
outputs-not-state     Kafka has the outputs, the changelog records (of a subscriber: its position) are not sent
state-not-offsets     Kafka has outputs and changelog records, the offsets are not in the transaction
before-commit         all of it is in the transaction, which is not committed
committed-not-stored  the transaction is committed, the local store does not have it
rows-kept             of the stage "snapshot": a transaction with rows is committed
job-made              of the stage "snapshot": Salesforce has made a Bulk job, its id is stored nowhere
kept-not-answered     of the stage "receive": Kafka has the webhook, its sender does not know
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from aiokafka import AIOKafkaProducer

from agents.outbound import Answer, Outbound
from agents.rules.ways import Way
from streams import publish
from streams.engine.stage import Output
from streams.publish import Batches, Ends, Publisher, TransactionalPublisher
from streams.salesforce.bulk import Bulk, Job

STATE = ("-changelog", ".positions")
IN_ORDER = ("before-output", "outputs-not-state", "state-not-offsets", "before-commit", "committed-not-stored")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Points:
    """Counts who comes by, and strikes."""

    def __init__(self, given: Sequence[Mapping[str, Any]]) -> None:
        self._armed = {(point["at"], point["stage"]): point for point in given}
        self._seen: Counter[tuple[str, str]] = Counter()

    def due(self, at: str, stage: str) -> bool:
        """Count; whether this is the time."""
        if (point := self._armed.get((at, stage))) is None:
            return False
        self._seen[at, stage] += 1
        return self._seen[at, stage] == int(point["after"])

    def strike(self, at: str, stage: str) -> None:
        """Now."""
        print(f"fault point {at} of {stage}", flush=True)
        os.kill(os.getpid(), SIGNALS[self._armed[at, stage]["do"]])

    def passing(self, at: str, stage: str) -> None:
        """Count, and strike when it is time."""
        if self.due(at, stage):
            self.strike(at, stage)


def stage_of(transactional_id: str) -> str:
    """Installation, stage and partition number are joined by dots."""
    return transactional_id.split(".")[1]


def arm(given: Sequence[Mapping[str, Any]]) -> None:
    """Put the points into this process."""
    if not given:
        return
    points = Points([point for point in given if point["at"] != "rule"])
    raise_for(tuple(point["for"] for point in given if point["at"] == "rule"))
    filled: dict[str, bool] = {}
    fill, commit, send_batches, request, send, make = (
        TransactionalPublisher._fill,
        TransactionalPublisher._commit,
        publish.send_batches,
        Outbound.request,
        Publisher.send,
        Bulk.make,
    )

    async def filling(self: TransactionalPublisher, *arguments: Any) -> Ends:
        points.passing("before-output", stage_of(self.id))
        filled[self.id] = stage_of(self.id) == "snapshot" and any(topic.endswith(".bulk") for topic, _ in arguments[1])
        return await fill(self, *arguments)

    async def sending(producer: AIOKafkaProducer, batches: Batches) -> Ends:
        stage = stage_of(producer._txn_manager.transactional_id) if producer._txn_manager is not None else ""
        if stage and points.due("outputs-not-state", stage):
            await send_batches(producer, {where: what for where, what in batches.items() if not where[0].endswith(STATE)})
            points.strike("outputs-not-state", stage)
        ends = await send_batches(producer, batches)
        points.passing("state-not-offsets", stage)
        return ends

    async def committing(self: TransactionalPublisher, producer: AIOKafkaProducer) -> None:
        points.passing("before-commit", stage_of(self.id))
        await commit(self, producer)
        points.passing("committed-not-stored", stage_of(self.id))
        if filled[self.id]:
            points.passing("rows-kept", stage_of(self.id))

    async def requesting(self: Outbound, method: str, path: str, body: bytes | None = None) -> Answer:
        points.passing("call", f"write-{path.strip('/')}")
        return await request(self, method, path, body)

    async def making(self: Bulk, soql: str, *, deleted: bool = False) -> Job:
        job = await make(self, soql, deleted=deleted)
        points.passing("job-made", "snapshot")
        return job

    async def keeping(self: Publisher, outputs: Sequence[Output]) -> None:
        await send(self, outputs)
        points.passing("kept-not-answered", "receive")

    for owner, name, with_point in (
        (Bulk, "make", making),
        (Publisher, "send", keeping),
        (TransactionalPublisher, "_fill", filling),
        (TransactionalPublisher, "_commit", committing),
        (publish, "send_batches", sending),
        (Outbound, "request", requesting),
    ):
        patch.object(owner, name, with_point).start()


def raise_for(beginnings: tuple[str, ...]) -> None:
    """A rule that has a fault for some records."""
    shape = Way.shape

    def shaping(self: Way, values: Mapping[str, Any], record_id: str, *, asks: bool = True) -> Any:
        if beginnings and record_id.startswith(beginnings):
            raise ZeroDivisionError("a rule that raises")
        return shape(self, values, record_id, asks=asks)

    patch.object(Way, "shape", shaping).start()


def clock(file: Path | None) -> None:
    """Step this process's wall clock: at SIGUSR1 it is off by as many seconds as the file says."""
    if file is None:
        return
    real, off = time.time, [0.0]

    def read(_signal: int, _frame: FrameType | None) -> None:
        off[0] = float(file.read_text())

    time.time = lambda: real() + off[0]
    signal.signal(signal.SIGUSR1, read)
