"""A small worker for tests of the engine, run as a process of its own: `python -m tests.support.engine_app SETTINGS_JSON`.

Stage `count` reads in, in.bulk; per record it counts its key in the table `records` and sends {"seq", "n"} to out (n: the count after it).
What goes in by the value's "do": "hang" waits for ever, "poison" raises, "slow" takes 50 ms a chunk.
"""

import asyncio
import json
import sys
from pathlib import Path

import faust

from models.settings import Settings
from streams.app import create_app
from streams.engine.stage import Chunk, Output, Partition, Result, Stage
from streams.log import set_up_logging


def stage(settings: Settings, **limits: int) -> Stage:
    """The stage; topics are those of `names`."""
    live, bulk, out = names(settings)

    async def count(chunk: Chunk, partition: Partition) -> Result:
        """Counts keys."""
        said = [json.loads(r.value or b"") for r in chunk.records]
        does = {s.get("do") for s in said}
        if "hang" in does:
            await asyncio.Event().wait()
        if "poison" in does:
            raise ValueError("a rule let an error out")
        if "slow" in does:
            await asyncio.sleep(0.05)
        keys = list(dict.fromkeys(r.key or b"" for r in chunk.records))
        known = dict(zip(keys, (int(v or b"0") for v in partition.store("records").get_many(keys)), strict=True))
        outputs = []
        for record, value in zip(chunk.records, said, strict=True):
            known[record.key or b""] += 1
            body = {"seq": value["seq"], "n": known[record.key or b""], "lane": "bulk" if chunk.topic == bulk else "live"}
            outputs.append(Output(out, record.key, json.dumps(body).encode(), partition=record.partition))
        return Result(outputs, {"records": [(key, str(n).encode()) for key, n in known.items()]})

    return Stage("count", (live,), (bulk,), count, tables=("records",), **limits)


def names(settings: Settings) -> tuple[str, str, str]:
    """Topics: live, bulk, out."""
    head = settings.installation
    return f"{head}.in.x", f"{head}.in.x.bulk", f"{head}.out"


def make(settings: Settings) -> faust.App:
    """The app."""
    return create_app(settings, [stage(settings, live_records=200, bulk_records=50)])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    chosen = Settings(**{**given, "state": Path(given["state"])})
    set_up_logging(chosen.log_format)
    app = make(chosen)
    sys.argv[1:] = ["worker", "--without-web", "-l", "info"]
    app.main()
