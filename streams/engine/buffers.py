"""What was fetched and not yet handed out, and which chunk is next. Pure: no Kafka, no Faust, no clock.

Invariants: at most `depth` chunks of a stage and partition number are out, one of them a bulk one; live before bulk: while live records of
that stage and partition number wait, each third chunk is a bulk one, no less (none would starve the bulk lane under steady load), no more;
of a stage at most `bulk_chunks` bulk chunks are out at a time, its partitions in turn; records of a partition go out in order; what waits
of one partition is at most a chunk and one fetch; nothing of a topic that is held goes out, and the others go on.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from streams.engine.stage import Chunk, Hold, Record, Stage

LIVE_CHUNKS = 2
"""Live chunks that may pass a waiting bulk chunk. Four, and 200 records in a bulk one, let a snapshot wait for the transactions of live
chunks of a few records each: 1.1 k/s beside 100 transactions/s, where two and 500 make 3.6 k/s and live changes are no later."""


class _Waiting:
    """Records of one topic's partition, and their bytes."""

    def __init__(self) -> None:
        self.records: deque[Record] = deque()
        self.bytes = 0

    def add(self, records: Sequence[Record]) -> None:
        self.records.extend(records)
        self.bytes += sum(map(_size, records))

    def cut(self, most: int, most_bytes: int) -> list[Record]:
        if len(self.records) <= most and self.bytes <= most_bytes:
            whole = list(self.records)
            self.records.clear()
            self.bytes = 0
            return whole
        cut, size = [self.records.popleft()], 0
        size = _size(cut[0])
        while self.records and len(cut) < most and size + (more := _size(self.records[0])) <= most_bytes:
            size += more
            cut.append(self.records.popleft())
        self.bytes -= size
        return cut


Lane = dict[str, _Waiting]


class _Queue:
    """One stage and partition number."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage, self.number = stage, number
        self.live: Lane = {topic: _Waiting() for topic in stage.live}
        self.bulk: Lane = {topic: _Waiting() for topic in stage.bulk}
        self.out = self.bulk_out = self._passed = 0

    def wants(self, topic: str) -> bool:
        waiting, most = (self.live, self.stage.live_records) if topic in self.live else (self.bulk, self.stage.bulk_records)
        return len(waiting[topic].records) < most and waiting[topic].bytes < self.stage.max_bytes

    def next(self, bulk_too: bool) -> Chunk | None:
        stage = self.stage
        if self.out >= stage.depth:
            return None
        live, bulk = _first(self.live, stage.hold), _first(self.bulk, stage.hold)
        bulk = bulk if bulk_too and not self.bulk_out else None
        if bulk is not None and (live is None or self._passed >= LIVE_CHUNKS):
            self._passed = 0
            return Chunk(bulk, self.number, _turn(self.bulk, bulk).cut(stage.bulk_records, stage.max_bytes))
        if live is None:
            return None
        self._passed += 1
        return Chunk(live, self.number, _turn(self.live, live).cut(stage.live_records, stage.max_bytes))


def _first(lane: Lane, hold: Hold | None = None) -> str | None:
    return next((topic for topic, waiting in lane.items() if waiting.records and not (hold and hold(topic))), None)


def _turn(lane: Lane, topic: str) -> _Waiting:
    """Of this topic, which now stands at the end: topics take turns."""
    lane[topic] = waiting = lane.pop(topic)
    return waiting


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
        self._bulk_out: Counter[str] = Counter()
        self.live_out = 0
        """Live chunks that are worked on, of all stages."""

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
        self._bulk_out.clear()
        self.live_out = 0

    def wants(self, topic: str, partition: int) -> bool:
        """Whether more of this partition may be taken from the fetcher: less than a chunk of it waits here."""
        return self._queue(topic, partition).wants(topic)

    def add(self, topic: str, partition: int, records: Sequence[Record]) -> None:
        """Keep fetched records."""
        queue = self._queue(topic, partition)
        (queue.live if topic in queue.live else queue.bulk)[topic].add(records)

    def next(self) -> Iterator[Chunk]:
        """Every chunk that may go out now; each counts as out until `done`."""
        for key, queue in list(self._queues.items()):
            while (chunk := queue.next(self._room(queue.stage))) is not None:
                queue.out += 1
                if chunk.topic in queue.live:
                    self.live_out += 1
                else:
                    queue.bulk_out += 1
                    self._bulk_out[queue.stage.name] += 1
                    self._queues[key] = self._queues.pop(key)  # the others' turn
                yield chunk

    def done(self, chunk: Chunk) -> None:
        """A chunk was committed."""
        stage = self._stage_of[chunk.topic]
        if (queue := self._queues.get((stage.name, chunk.partition))) is not None:
            queue.out -= 1
            if chunk.topic in queue.live:
                self.live_out -= 1
            else:
                queue.bulk_out -= 1
                self._bulk_out[stage.name] -= 1

    def busy(self, stage: str, partition: int) -> bool:
        """Whether anything waits or is out."""
        queue = self._queues.get((stage, partition))
        return queue is not None and (queue.out > 0 or _first(queue.live) is not None or _first(queue.bulk) is not None)

    def due(self, stage: str, partition: int) -> bool:
        """Whether anything is out, or waits that is not held, nor for other partitions' turn: then something must happen."""
        queue = self._queues.get((stage, partition))
        if queue is None:
            return False
        hold = queue.stage.hold
        return queue.out > 0 or _first(queue.live, hold) is not None or (self._room(queue.stage) and _first(queue.bulk, hold) is not None)

    def _room(self, stage: Stage) -> bool:
        return self._bulk_out[stage.name] < stage.bulk_chunks

    def _queue(self, topic: str, partition: int) -> _Queue:
        stage = self._stage_of[topic]
        if (queue := self._queues.get((stage.name, partition))) is None:
            queue = self._queues[stage.name, partition] = _Queue(stage, partition)
        return queue
