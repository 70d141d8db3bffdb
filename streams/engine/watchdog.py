"""Ends a process in which a partition stands still: work waits, nothing was committed for a long time, and nobody declared a wait."""

import asyncio
import time
from typing import TYPE_CHECKING

from streams.engine.fatal import end

if TYPE_CHECKING:
    from streams.engine.engine import Engine

STILL_SECONDS = 120.0
LOOK_SECONDS = 5.0
TOUCH_SECONDS = 60.0


async def watch(engine: "Engine") -> None:
    """Runs as long as the worker; also keeps the stores' ages fresh."""
    touched = time.monotonic()
    moved: dict[object, tuple[int, float]] = {}
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if not engine.opened.is_set():
            moved.clear()
            continue
        for work in engine.works():
            if engine.buffers.busy(work.stage.name, work.number) and now - max(work.progress, work.wait_until) > STILL_SECONDS:
                end("partition stands still", stage=work.stage.name, partition=work.number, seconds=round(now - work.progress))
        _fetching(engine, moved, now)
        if now - touched > TOUCH_SECONDS:
            touched = now
            for store in engine.stores():
                store.touch()


def _fetching(engine: "Engine", moved: dict[object, tuple[int, float]], now: float) -> None:
    """The log goes on, nothing of it waits here, and yet the position does not move: the fetcher is stuck."""
    if (consumer := engine.consumer) is None or (subscription := consumer._subscription.subscription) is None:
        return
    for tp in consumer.assignment():
        state = subscription.assignment.state_value(tp)
        position = state._position if state.has_valid_position else -1
        behind = (state.lso or 0) > position and not engine.buffers.busy(engine.buffers.stage_of(tp.topic).name, tp.partition)
        last, since = moved.get(tp, (-1, now))
        if not behind or position != last:
            moved[tp] = (position, now)
        elif now - since > STILL_SECONDS:
            end("partition is not fetched", topic=tp.topic, partition=tp.partition, position=position, end=state.lso)
