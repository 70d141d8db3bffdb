"""The stream of published events: replay ids with holes, retention, and who is waiting. Kept in memory, serialised once."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from deploy.sandbox.salesforce.schema import channel_name

ALL = "/data/ChangeEvents"


@dataclass(slots=True)
class Published:
    """One event in the stream: `data` is the JSON of a CometD message's `data`, `committed` the wall clock in ms."""

    replay_id: int
    committed: float
    entity: str
    record_ids: list[str]
    channels: frozenset[str]
    data: bytes


class Bus:
    """Ordered events. A cursor is the number of events that came before, counted from the beginning of the stream."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._events: list[Published] = []
        self._dropped = 0
        self._wakers: set[Callable[[], None]] = set()
        self.last_replay_id = rng.randrange(20_000_000, 30_000_000)
        self.published: Counter[str] = Counter()
        self.learnt: set[str] = set()  # channels that exist because an event was emitted to them

    @property
    def end(self) -> int:
        return self._dropped + len(self._events)

    @property
    def start(self) -> int:
        return self._dropped

    def oldest(self) -> int | None:
        """The lowest replay id that can still be asked for."""
        return self._events[0].replay_id if self._events else None

    def publish(
        self,
        entity: str,
        record_ids: list[str],
        data: dict[str, Any],
        channels: frozenset[str] | None = None,
        replay_id: int | None = None,
        at: float | None = None,
    ) -> int:
        """Append; without `replay_id` the event gets the next one, some way above the last. `at`: the org's clock where it is not ours."""
        if replay_id is None:
            replay_id = self._next()
        self.last_replay_id = max(self.last_replay_id, replay_id)
        data["event"] = {**data.get("event", {}), "replayId": replay_id}
        where = channels if channels is not None else frozenset({ALL, f"/data/{channel_name(entity)}"})
        self._events.append(Published(replay_id, (time.time() if at is None else at) * 1000, entity, record_ids, where, orjson.dumps(data)))
        self.published[entity] += 1
        self.learnt |= where
        return replay_id

    def _next(self) -> int:
        return self.last_replay_id + self._rng.choice((1, 1, 1, 2, 4, 9))

    def lose(self) -> int:
        """Give out a replay id for an event that nobody will ever get."""
        self.last_replay_id = self._next()
        return self.last_replay_id

    def restart(self, last_replay_id: int) -> None:
        """Forget every event and go on counting behind another id."""
        self._dropped += len(self._events)
        self._events.clear()
        self.last_replay_id = last_replay_id

    def wake(self) -> None:
        for waker in tuple(self._wakers):
            waker()

    def watch(self, waker: Callable[[], None]) -> Callable[[], None]:
        """Call `waker` after each commit; the answer ends that."""
        self._wakers.add(waker)
        return lambda: self._wakers.discard(waker)

    def read(self, cursor: int, limit: int) -> list[Published]:
        start = max(cursor - self._dropped, 0)
        return self._events[start : start + limit]

    def position_of(self, replay_id: int) -> int | None:
        """The cursor just after that id; None where the id is outside retention or was never issued."""
        oldest = self.oldest()
        if oldest is None or replay_id < oldest or replay_id > self.last_replay_id:
            return None
        for index in range(len(self._events) - 1, -1, -1):
            if self._events[index].replay_id <= replay_id:
                return self._dropped + index + 1
        return None

    def drop_until(self, replay_id: int) -> int:
        """End the retention of everything up to that id. The number of events dropped."""
        keep = next((i for i, e in enumerate(self._events) if e.replay_id > replay_id), len(self._events))
        del self._events[:keep]
        self._dropped += keep
        return keep

    def expire(self, before_ms: float) -> None:
        keep = next((i for i, e in enumerate(self._events) if e.committed >= before_ms), len(self._events))
        del self._events[:keep]
        self._dropped += keep

    def after(self, replay_id: int) -> list[Published]:
        return [e for e in self._events if e.replay_id > replay_id]
