"""faust-streaming as it comes, with its own table and `topic.send`; nothing of our engine is imported here.

Modes: pass (each event sent on), step (the processing step per event), take (the same, tuned: take_events and the answers to a
batch's sends awaited together). Settings are Faust's own but for the number of partitions and the web server, which would need a port.
"""

import asyncio
import sys
import weakref
from typing import Any

import faust
from faust import streams

from deploy.bench import byhand, spec

BATCH, WITHIN = 1000, 0.05


def make(given: spec.Spec) -> faust.App:
    """The app of a mode."""
    app = faust.App(
        given.name,
        broker=f"kafka://{given.bootstrap}",
        store="memory://",
        topic_partitions=given.partitions,
        web_enabled=False,
        datadir=given.state,
    )
    source = app.topic(given.source, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    raw = given.mode == "pass"
    out = app.topic(given.out, key_type=bytes, value_type=bytes if raw else None, key_serializer="raw",
                    value_serializer="raw" if raw else "json")  # fmt: skip
    if raw:
        app.agent(source)(_pass(out))
        return app
    table = app.Table("records", partitions=given.partitions)
    app.agent(source)(_take(table, out) if given.mode == "take" else _each(table, out))
    return app


def _pass(out: Any) -> Any:
    async def passing(stream: Any) -> None:
        async for event in stream.events():
            await out.send(key=event.key, value=event.value)

    return passing


def _each(table: Any, out: Any) -> Any:
    async def each(stream: Any) -> None:
        async for event in stream.events():
            id = event.key.decode()
            if (done := byhand.step(event.value, id, table.get(id))) is not None:
                table[id], body = done
                await out.send(key=event.key, value={"key": id, "body": body})

    return each


def _take(table: Any, out: Any) -> Any:
    async def take(stream: Any) -> None:
        async for events in stream.take_events(BATCH, within=WITHIN):
            sent = []
            for event in events:
                id = event.key.decode()
                streams._current_event.set(weakref.ref(event))  # else the table refuses: take_events reads in another task
                if (done := byhand.step(event.value, id, table.get(id))) is not None:
                    table[id], body = done
                    sent.append(await out.send(key=event.key, value={"key": id, "body": body}))  # one by one: gathered, they overtake
            await asyncio.gather(*sent)

    return take


if __name__ == "__main__":
    app = make(spec.read())
    sys.argv[1:] = ["worker", "--without-web", "--loglevel", "warn"]
    app.main()
