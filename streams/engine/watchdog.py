"""Ends a process in which something stands still that should move: a partition (work waits, nothing was committed for a long time, and
nobody declared a wait), the fetching of one, or a takeover that does not come to its end.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from streams.engine.fatal import end

if TYPE_CHECKING:
    from streams.engine.engine import Engine

STILL_SECONDS = 120.0
TAKEOVER_SECONDS = 1800.0  # a recovery from nothing of very much state takes minutes
LOOK_SECONDS = 5.0
TOUCH_SECONDS = 60.0


class Still:
    """For how long things have been as they are."""

    def __init__(self) -> None:
        self._seen: dict[object, tuple[object, float]] = {}

    def seconds(self, what: object, mark: object, now: float) -> float:
        """Since `mark` of this thing was first seen; None is nothing, of which no time passes."""
        last, since = self._seen.get(what, (None, now))
        if mark is None or mark != last:
            self._seen[what] = (mark, now)
            return 0.0
        return now - since


async def watch(engine: "Engine") -> None:
    """Runs as long as the worker; also keeps the stores' ages fresh."""
    touched, still = time.monotonic(), Still()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.monotonic()
        if still.seconds("takeover", engine.generation if not engine.opened.is_set() else None, now) > TAKEOVER_SECONDS:
            end("takeover stands still", generation=engine.generation)
        if engine.opened.is_set():
            _working(engine, still, now)
            _fetching(engine, still, now)
        if now - touched > TOUCH_SECONDS:
            touched = now
            for store in engine.stores():
                store.touch()


def _working(engine: "Engine", still: Still, now: float) -> None:
    for work in engine.works():
        # A work that was idle has an old progress until its first chunk arrives: what counts is how long it was seen busy with it.
        mark = (work.progress, work.wait_until) if engine.buffers.due(work.stage.name, work.number) else None
        seconds = still.seconds(work.key, mark, now)
        if seconds > STILL_SECONDS and now - work.wait_until > STILL_SECONDS:
            end("partition stands still", guilty=work.key, stage=work.stage.name, partition=work.number, seconds=round(seconds))


def _fetching(engine: "Engine", still: Still, now: float) -> None:
    """The log goes on, nothing of it waits here, and yet the position does not move: the fetcher is stuck."""
    if (consumer := engine.consumer) is None or (subscription := consumer._subscription.subscription) is None:
        return
    for tp in consumer.assignment():
        state = subscription.assignment.state_value(tp)
        position = state._position if state.has_valid_position else -1
        behind = (state.lso or 0) > position and not engine.buffers.busy(engine.buffers.stage_of(tp.topic).name, tp.partition)
        if still.seconds(tp, position if behind else None, now) > STILL_SECONDS:
            end("partition is not fetched", topic=tp.topic, partition=tp.partition, position=position, end=state.lso)
