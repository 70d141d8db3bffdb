"""What was fetched and not yet handed out, and which chunk is next. Pure: no Kafka, no Faust, no clock.

Invariants: at most `depth` chunks of a stage and partition number are out; live before bulk: a bulk chunk goes out only while no live
record of that stage and partition number waits, and never takes the last place of the depth; records of a partition go out in order.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from streams.engine.stage import Chunk, Record, Stage

Lane = dict[str, deque[Record]]


class _Queue:
    """One stage and partition number."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.number = stage, number
        self.live: Lane = {topic: deque() for topic in stage.live}
        self.bulk: Lane = {topic: deque() for topic in stage.bulk}
        self.out = 0

    def next(self) -> Chunk | None:
        if self.out >= self.stage.depth:
            return None
        if chunk := self._cut(self.live, self.stage.live_records):
            return chunk
        if self.out < max(1, self.stage.depth - 1):
            return self._cut(self.bulk, self.stage.bulk_records)
        return None

    def _cut(self, lane: Lane, most: int) -> Chunk | None:
        topic = next((topic for topic, records in lane.items() if records), None)
        if topic is None:
            return None
        waiting = lane.pop(topic)
        lane[topic] = waiting  # at the end: topics take turns
        records, size = [waiting.popleft()], 0
        size = _size(records[0])
        while waiting and len(records) < most and (size := size + _size(waiting[0])) <= self.stage.max_bytes:
            records.append(waiting.popleft())
        return Chunk(topic, self.number, records)


def _size(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"") + 64


class Buffers:
    """All of a process's queues; made empty at every takeover."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stage_of: dict[str, Stage] = {}
        for stage in stages:
            for topic in (*stage.live, *stage.bulk):
                if topic in self._stage_of:
                    raise ValueError(f"{topic} is read by two stages, {self._stage_of[topic].name} and {stage.name}")
                self._stage_of[topic] = stage
        self._queues: dict[tuple[str, int], _Queue] = {}

    @property
    def topics(self) -> frozenset[str]:
        """Every topic of every stage."""
        return frozenset(self._stage_of)

    def stage_of(self, topic: str) -> Stage:
        """The stage that reads this topic."""
        return self._stage_of[topic]

    def clear(self) -> None:
        """Forget everything: a new generation starts from committed offsets."""
        self._queues.clear()

    def wants(self, topic: str, partition: int) -> bool:
        """Whether more of this partition may be taken from the fetcher: nothing of it is waiting here."""
        queue, lane = self._lane(topic, partition)
        return not lane[topic] and queue.out < queue.stage.depth

    def add(self, topic: str, partition: int, records: Sequence[Record]) -> None:
        """Keep fetched records."""
        self._lane(topic, partition)[1][topic].extend(records)

    def next(self) -> Iterator[Chunk]:
        """Every chunk that may go out now; each counts as out until `done`."""
        for queue in self._queues.values():
            while (chunk := queue.next()) is not None:
                queue.out += 1
                yield chunk

    def done(self, stage: str, partition: int) -> None:
        """A chunk was committed."""
        if (queue := self._queues.get((stage, partition))) is not None:
            queue.out -= 1

    def busy(self, stage: str, partition: int) -> bool:
        """Whether anything waits or is out."""
        queue = self._queues.get((stage, partition))
        return queue is not None and (queue.out > 0 or any(queue.live.values()) or any(queue.bulk.values()))

    def _lane(self, topic: str, partition: int) -> tuple[_Queue, Lane]:
        stage = self._stage_of[topic]
        if (queue := self._queues.get((stage.name, partition))) is None:
            queue = self._queues[stage.name, partition] = _Queue(stage, partition)
        return queue, queue.live if topic in queue.live else queue.bulk
