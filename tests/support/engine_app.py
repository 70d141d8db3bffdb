"""A small worker for tests of the engine, run as a process of its own: `python -m tests.support.engine_app SETTINGS_JSON`.

Stage `count` reads in, in.bulk; per record it counts its key in the table `records` and sends {"seq", "n", "share"} to out (n: the count
after it). What goes in by the value's "do": "hang" waits for ever, "poison" raises, "slow" takes 50 ms a chunk, "kill" is a SIGKILL to
itself, "large" an output and "large-state" a state above Kafka's limit, "wait" a declared wait of twice the watchdog's patience, "call" a
call to a target of 20 calls a second, "stop" a SIGSTOP to itself when its transaction is complete but for the commit.

Beside settings the JSON may hold: `more`, further sources; `patience`, the watchdog's, in seconds; `bold`, which does as usual instead of
"hang" and "stop"; `points`, fault points (fault_points.py).
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faust
from aiokafka import AIOKafkaProducer

from agents.calls import Calls
from agents.guard import Guard
from agents.targets.base import Effect
from models.settings import Settings
from models.write import Outcome, WriteResult
from streams.app import create_app
from streams.engine import watchdog
from streams.engine.stage import Changes, Chunk, Output, Partition, Result, Stage
from streams.log import set_up_logging
from streams.publish import MAX_RECORD, TransactionalPublisher
from tests.support.effects import effect
from tests.support.fault_points import arm
from tests.support.toy_target import Target, ToyOptions

EFFECT = effect("things", "k", {"a": 1}, on_delete="delete")


class Toy(Target):
    """As many calls a second as a real one allows; says when each was made."""

    requests_per_second: float | None = 20.0

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        """Answers with the time."""
        at = str(time.time())
        return [WriteResult(Outcome.WRITTEN, id=at) for _ in effects]


def stage(
    settings: Settings, more: Sequence[str] = (), patience: float = watchdog.STILL_SECONDS, bold: bool = False, **limits: Any
) -> Stage:
    """The stage; topics are those of `names`."""
    _, _, out = names(settings)
    ways = [names(settings, source) for source in ("x", *more)]
    calls = Calls("toy", Toy("toy", ToyOptions(), "t"), dict, Guard("count", "toy"), 5.0)

    async def act(do: str | None, partition: Partition) -> None:
        if do == "hang" and not bold:
            await asyncio.Event().wait()
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "poison":
            raise ValueError("a rule let an error out")
        if do == "slow":
            await asyncio.sleep(0.05)
        if do == "wait":
            partition.waiting("a test", time.monotonic() + 3 * patience)
            await asyncio.sleep(2 * patience)

    async def call(partition: Partition) -> str | None:
        (result,) = await calls.write([EFFECT], partition)
        return result.id

    async def count(chunk: Chunk, partition: Partition) -> Result:
        """Counts keys."""
        said = [json.loads(r.value or b"") for r in chunk.records]
        does: list[str | None] = [s.get("do") for s in said]
        for do in dict.fromkeys(does):
            await act(do, partition)
        keys = list(dict.fromkeys(r.key or b"" for r in chunk.records))
        known = dict(zip(keys, (int(v or b"0") for v in partition.store("records").get_many(keys)), strict=True))
        outputs = []
        for record, value, do in zip(chunk.records, said, does, strict=True):
            known[record.key or b""] += 1
            body = {"seq": value["seq"], "n": known[record.key or b""], "lane": "bulk" if chunk.topic.endswith(".bulk") else "live"}
            body |= {"share": partition.share(), "pid": os.getpid(), "pad": "x" * (MAX_RECORD if do == "large" else 0)}
            body["at"] = await call(partition) if do == "call" else None
            outputs.append(Output(out, record.key, json.dumps(body).encode(), partition=record.partition))
        if "stop" in does and not bold:
            stop_before_commit()
        state: Changes = [(key, str(n).encode().zfill(MAX_RECORD if "large-state" in does else 0)) for key, n in known.items()]
        return Result(outputs, {"records": state})

    return Stage("count", [live for live, _, _ in ways], [bulk for _, bulk, _ in ways], count, tables=("records",), **limits)


def stop_before_commit() -> None:
    """The next transaction of this process is complete at the broker when the process stands still."""
    commit = TransactionalPublisher._commit

    async def committing(self: TransactionalPublisher, producer: AIOKafkaProducer) -> None:
        print("stopped before the commit", flush=True)
        point.stop()
        os.kill(os.getpid(), signal.SIGSTOP)
        await commit(self, producer)

    point = patch.object(TransactionalPublisher, "_commit", committing)
    point.start()


def names(settings: Settings, source: str = "x") -> tuple[str, str, str]:
    """Topics: live, bulk, out."""
    head = settings.installation
    return f"{head}.in.{source}", f"{head}.in.{source}.bulk", f"{head}.out"


def make(settings: Settings, **more: Any) -> faust.App:
    """The app."""
    return create_app(settings, [stage(settings, live_records=200, bulk_records=50, **more)])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    arm(given.pop("points", []))
    chosen = Settings(**{**given, "state": Path(given["state"])})
    set_up_logging(chosen.log_format)
    own = {name: given[name] for name in ("more", "patience", "bold") if name in given}
    if "patience" in own:
        watchdog.STILL_SECONDS, watchdog.LOOK_SECONDS = own["patience"], own["patience"] / 4
    app = make(chosen, **own)
    sys.argv[1:] = ["worker", "--without-web", "-l", "info"]
    app.main()
