"""A partition, its stores and Kafka's records without Kafka: what drives a Stage's handler in a test, one transaction at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streams.engine.stage import Changes, Chunk, Result, Stage


@dataclass(slots=True)
class MemoryRecord:
    """One Kafka record."""

    topic: str
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int = 0
    timestamp: int = 1_700_000_000_000


class MemoryStore:
    """One partition of one table, as committed."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys."""
        return [self.values.get(key) for key in keys]

    def page(self, prefix: bytes, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """The next keys behind `after`."""
        return sorted(item for item in self.values.items() if item[0].startswith(prefix) and item[0] > after)[:most]


@dataclass
class MemoryPartition:
    """A partition number; `owned` False: it was taken away. `waits` are the reasons declared."""

    number: int = 0
    owned: bool = True
    part: float = 1.0
    stores: dict[str, MemoryStore] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    waits: list[str] = field(default_factory=list)

    def store(self, table: str) -> MemoryStore:
        """This partition of a table."""
        return self.stores.setdefault(table, MemoryStore())

    def committed(self, topic: str) -> int:
        """Offset below which everything is committed."""
        return self.offsets.get(topic, 0)

    def mine(self) -> bool:
        """Whether it is still ours."""
        return self.owned

    def share(self) -> float:
        """Share of all partitions."""
        return self.part

    def waiting(self, reason: str, until: float) -> None:
        """Remember the wait."""
        self.waits.append(reason)

    def keep(self, table: str, changes: Changes) -> None:
        """Apply what a chunk changed."""
        values = self.store(table).values
        for key, value in changes:
            if value is None:
                values.pop(key, None)
            else:
                values[key] = value

    def commit(self, chunk: Chunk, result: Result) -> None:
        """What the engine's transaction does to state and offsets."""
        for table, changes in result.state.items():
            self.keep(table, changes)
        self.offsets[chunk.topic] = chunk.records[-1].offset + 1


@dataclass
class Log:
    """The topics of a test: appended records with growing offsets."""

    next: dict[str, int] = field(default_factory=dict)

    def chunk(self, topic: str, *records: tuple[bytes | None, bytes | None]) -> Chunk:
        """Append (key, value) pairs and give them as one chunk."""
        start = self.next.get(topic, 0)
        self.next[topic] = start + len(records)
        return Chunk(topic, 0, [MemoryRecord(topic, start + n, key, value) for n, (key, value) in enumerate(records)])


async def run(stage: Stage, chunk: Chunk, partition: MemoryPartition, *, crash: bool = False) -> Result:
    """Handle and commit one chunk. With `crash` the process ends between the handler's effects and the commit."""
    result = await stage.handler(chunk, partition)
    if not crash:
        partition.commit(chunk, result)
    return result


def outputs(result: Result, topic: str) -> list[tuple[bytes | None, bytes | None]]:
    """(key, value) of what a result sends to a topic."""
    return [(out.key, out.value) for out in result.outputs if out.topic == topic]


def table(partition: MemoryPartition, name: str) -> Mapping[bytes, bytes]:
    """What a table holds."""
    return partition.store(name).values
