"""What the tables `records`, `seen` and `delivered` hold: their keys, and the value of `seen`; those of the others are in agents/rules.

Formats outlive a deployment: every value says its format, and a value that cannot be read is fatal, never guessed.

| table     | key                                    | value                                             |
| records   | connection, sObject, id                | agents/rules/merge.py RecordState                 |
| seen      | source, slot of the delivery's hash    | Seen: deliveries by age                           |
| delivered | target, object, target key             | agents/rules/delivery.py Delivered                |
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

import orjson

from models.errors import FatalError

RECORDS, SEEN, DELIVERED = "records", "seen", "delivered"
SLOTS = 4096
"""Per source: bounds the number of values, so that nothing must be searched to let deliveries age out."""
BUCKET_MS = 6 * 3_600_000
BUCKETS = 16
"""Deliveries are remembered for four days of Kafka's time: longer than any sender repeats one."""
FORMAT = 1


def records_key(source: str, record_id: str) -> bytes:
    """`source` is "<connection>/<sObject>", or a webhook source."""
    return f"{source}|{record_id}".encode()


def delivered_key(target: str, object: str, key: str) -> bytes:
    """As `Write.kafka_key`, with the target in front."""
    return f"{target}|{object}|{key}".encode()


def seen_key(source: str, delivery: str) -> bytes:
    """The slot of a delivery."""
    return f"{source}|{zlib.crc32(delivery.encode()) % SLOTS}".encode()


@dataclass(slots=True)
class Seen:
    """One slot: by bucket of Kafka time the deliveries and the offset of each one's first sight."""

    buckets: dict[int, dict[str, int]] = field(default_factory=dict)

    def first(self, delivery: str, offset: int, timestamp: int) -> int:
        """Offset at which the delivery was first seen: `offset` itself when it is new (then it is remembered). Lets old buckets go."""
        for bucket in self.buckets.values():
            if (seen := bucket.get(delivery)) is not None:
                return seen
        now = timestamp // BUCKET_MS
        self.buckets = {bucket: held for bucket, held in self.buckets.items() if bucket > now - BUCKETS}
        self.buckets.setdefault(now, {})[delivery] = offset
        return offset

    def encode(self) -> bytes:
        """As JSON."""
        return orjson.dumps({"f": FORMAT, "b": [[bucket, held] for bucket, held in self.buckets.items()]})

    @classmethod
    def decode(cls, raw: bytes | None) -> "Seen":
        """Read back. Raises FatalError."""
        if raw is None:
            return cls()
        try:
            found: dict[str, Any] = orjson.loads(raw)
            if found["f"] != FORMAT:
                raise FatalError(f"table seen holds format {found['f']}, this version reads {FORMAT}: start the version that wrote it")
            return cls(dict(found["b"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FatalError(f"a value of table seen cannot be read ({type(error).__name__}): rebuild it from its changelog") from None
