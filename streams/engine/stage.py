"""The words between the engine and the agents: a chunk comes in, a result goes out, both belong to one Kafka transaction.

A stage is one agent. Its handler is called once per chunk; chunks of one partition number, over all topics and lanes of the stage, are
handled one after another, those of different partition numbers side by side. The engine writes a result's outputs, its state changes
(to the store at once, to the changelog) and the chunk's offset in one transaction; any error a handler lets out ends the process.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct
from msgspec import field as struct_field


class Abandoned(Exception):  # noqa: N818 - an outcome, not a fault
    """The partition was taken away: its new owner does this chunk. The engine drops the chunk without commit and without ending."""


class Record(Protocol):
    """One Kafka record as fetched (aiokafka's ConsumerRecord)."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one partition of one topic, never empty; offsets may have holes."""

    topic: str
    partition: int
    records: Sequence[Record]


class Output(Struct):
    """One record to send. `partition` None: by murmur2 of the key, as every other client of Kafka would."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = struct_field(default_factory=list)
    partition: int | None = None


Changes = list[tuple[bytes, bytes | None]]
"""Key and new value, None deletes; the last of a key counts."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a chunk causes: outputs, and state by table name."""

    outputs: Sequence[Output] = ()
    state: Mapping[str, Changes] = field(default_factory=dict)


class Store(Protocol):
    """One partition of one table. Reads see what earlier chunks wrote, committed or not."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys."""
        ...

    def page(self, prefix: bytes, after: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """The next keys behind `after` that begin with `prefix`, in order, with their values; fewer than `most` only at the end."""
        ...


class Partition(Protocol):
    """What a handler knows of the partition number it works for."""

    number: int

    def store(self, table: str) -> Store:
        """This partition of a table the stage declared."""
        ...

    def committed(self, topic: str) -> int:
        """Offset below which everything of this topic and partition is committed: no redelivery can come from there."""
        ...

    def mine(self) -> bool:
        """False once the partition was taken away: stop, call nobody, return or raise; nothing will be committed."""
        ...

    def share(self) -> float:
        """This process's share of all partitions, above 0 up to 1: rate limits are split by it."""
        ...

    def waiting(self, reason: str, until: float) -> None:
        """Declare a wait (target paused, rate limit, retry) until this time.monotonic(): the watchdog lets it pass."""
        ...


class Hold(Protocol):
    """Topics of which nothing is handed out now, because people paused what they belong to."""

    async def ready(self) -> None:
        """Know what is paused now; at each takeover, before anything is handed out. Raises TemporaryError."""
        ...

    def __call__(self, topic: str) -> bool:
        """Whether the topic is held, as known a moment ago."""
        ...


Handler = Callable[[Chunk, Partition], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One agent. `live` and `bulk` are topic names; bulk chunks are small and come after live ones (buffers.py).

    word         what it is called in dead letters; its name where nothing is said
    tables       names of the tables whose partitions the handler reads and changes
    live_records, bulk_records, max_bytes   the most one chunk holds
    depth        chunks of a partition handed out and not yet committed
    bulk_chunks  bulk chunks of all partitions of this process handed out at a time: with three, live changes took three times as long
    hold         topics that wait; nothing of theirs is handed out, and nobody counts that as standing still
    """

    name: str
    live: Sequence[str]
    bulk: Sequence[str]
    handler: Handler
    tables: Sequence[str] = ()
    live_records: int = 1000
    bulk_records: int = 500
    max_bytes: int = 4_000_000
    depth: int = 2
    bulk_chunks: int = 1
    word: str = ""
    hold: Hold | None = None
