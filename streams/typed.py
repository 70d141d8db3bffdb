"""Records of a topic as values of one type. The topic may hold others too, and what cannot be read is left out: these are for people."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

import msgspec

from streams.consume import last_of
from streams.engine.stage import Record

T = TypeVar("T")


def of_type(records: Iterable[Record], type: type[T]) -> Iterator[T]:
    """The last of each key, where it is such a value."""
    for record in last_of(records).values():
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(record.value or b"", type=type)
