"""Our worker in the situations of the loss cases, a stage each: `python -m tests.support.stock_ours PLAN`. Same events, same faults.

raises   the handler lets an error out, twice (L1-L4)
holds    it is long at an event, while HELD is there (L5-L7); holes: the same, and the input has holes (L8)
dedupes  SIGKILL when Kafka has the state and not the outputs: a failpoint, put in from here (L9, L11, L12, L15)
refused  Kafka refuses an output (L10)
large    an output is larger than what may be sent (L13)
poison   an event is no JSON (L14)
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from models.errors import PermanentError
from models.settings import Settings
from streams import publish
from streams.app import create_app
from streams.engine.stage import Chunk, Output, Partition, Record, Result, Stage
from streams.letters import dead_letter_output
from streams.log import set_up_logging
from streams.publish import Batches, Ends
from streams.topics import Topics
from tests.support.stock_plan import GUILTY, HEAD, LARGE, PAD, Plan

RAISES, HOLDS, HOLES, REFUSED, DEDUPES, TOO_LARGE, POISONED = "raises", "holds", "holes", "refused", "dedupes", "large", "poison"
STAGES = (RAISES, HOLDS, HOLES, REFUSED, DEDUPES, TOO_LARGE, POISONED)
HELD = "held"
Fault = Callable[[list[int]], Any]


def settings_of(plan: Plan) -> Settings:
    """Of the worker."""
    return Settings(
        kafka=plan.kafka, installation=plan.name, partitions=1, state=Path(plan.folder) / "ours", session_timeout=6.0, drain_seconds=1.0
    )


def table(name: str) -> str:
    """Of a stage."""
    return f"{name}-seen"


def stage(plan: Plan, name: str) -> Stage:
    """Every event causes one output; the table remembers what came, and what is remembered causes none."""
    faults: dict[str, Fault] = {RAISES: _raise(plan), HOLDS: _hold(plan), HOLES: _hold(plan)}
    pads = {REFUSED: PAD, TOO_LARGE: LARGE}

    def output(record: Record) -> Output:
        try:
            seq = int(orjson.loads(record.value or b"")["seq"])
        except orjson.JSONDecodeError as error:
            return dead_letter_output(name, record, PermanentError(f"no JSON: {error}"), topics=Topics(plan.name), redrive_to=record.topic)
        pad = b" " * pads.get(name, 0) if seq == GUILTY else b""
        return Output(plan.out(name), record.key, orjson.dumps({"seq": seq}) + pad, partition=0)

    async def handle(chunk: Chunk, partition: Partition) -> Result:
        """One output per event."""
        if (fault := faults.get(name)) is not None:
            await fault([json.loads(r.value or b"")["seq"] for r in chunk.records])
        keys = [r.value or b"" for r in chunk.records]
        known = partition.store(table(name)).get_many(keys)
        return Result(
            [output(r) for r, seen in zip(chunk.records, known, strict=True) if seen is None], {table(name): [(k, b"1") for k in keys]}
        )

    return Stage(name, (plan.source(name),), (), handle, tables=(table(name),), live_records=5)


def _raise(plan: Plan) -> Fault:
    async def strike(seqs: list[int]) -> None:
        if GUILTY in seqs and plan.first(RAISES, 2):
            raise RuntimeError("a fault of the moment")

    return strike


def _hold(plan: Plan) -> Fault:
    async def strike(seqs: list[int]) -> None:
        if HEAD in seqs and (Path(plan.folder) / HELD).exists():
            plan.first(HELD)
            await asyncio.Event().wait()

    return strike


def die_between_state_and_output(plan: Plan) -> None:
    """The failpoint."""
    whole = publish.send_batches

    async def sending(producer: Any, batches: Batches) -> Ends:
        mine = any(topic == plan.out(DEDUPES) for topic, _ in batches)
        if mine and any(orjson.loads(o.value or b"")["seq"] == GUILTY for o in batches[plan.out(DEDUPES), 0]) and plan.first(DEDUPES):
            await whole(producer, {where: what for where, what in batches.items() if where[0].endswith("-changelog")})
            os.kill(os.getpid(), signal.SIGKILL)
        return await whole(producer, batches)

    publish.send_batches = sending


def main() -> None:
    """Run the worker."""
    plan = Plan.read()
    set_up_logging("json")
    die_between_state_and_output(plan)
    stages: list[Stage] = [stage(plan, name) for name in plan.cases]
    app = create_app(settings_of(plan), stages)
    sys.argv[1:] = ["worker", "--without-web", "-l", "info"]
    app.main()


if __name__ == "__main__":
    main()
