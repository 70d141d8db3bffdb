"""Under which key a source record stands in a target, and the releases of keys it left. Pure.

A key is left when the record's key changes, when the record is deleted, or when it leaves the route's filter. Its release is sent again
with everything the record emits until the chunk in which it was left is committed: then it is surely through. A chunk's outputs may be
lost while its state is kept (a crash with the disk intact); where the redelivery can then emit nothing, because the record became
incomplete or fails, the release is owed.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from models.write import Write

Lane = Literal["live", "bulk"]
OWED = 1 << 62
"""Offset of a key left whose release may never have been sent."""


class Keys(Struct, array_like=True):
    """Of one record and one route: the key last emitted, and those left since: lane and offset at which each was left, oldest first."""

    last: str | None = None
    left: dict[str, tuple[Lane, int]] = field(default_factory=dict)


def move(keys: Keys, key: str | None, lane: Lane, offset: int, committed: Mapping[Lane, int]) -> list[str]:
    """The record is emitted under `key` (None: nowhere): keep `keys` in place, and say which keys to release, the last left at the end.

    committed   by lane the offset below which everything is committed
    """
    keys.left = {old: (lane, offset) if at == OWED else (where, at) for old, (where, at) in keys.left.items() if at >= committed[where]}
    if keys.last is not None and keys.last != key:
        keys.left.pop(keys.last, None)
        keys.left[keys.last] = (lane, offset)
    keys.last = key
    if key is not None:
        keys.left.pop(key, None)
    return list(keys.left)


def owe(keys: Keys) -> Keys:
    """After a redelivery that emitted nothing: what was left is released with the next emission, whatever is committed by then."""
    return Keys(keys.last, {key: (lane, OWED) for key, (lane, _) in keys.left.items()})


def writes(write: Write | None, releases: list[Write], *, renames: bool) -> list[Write]:
    """The records to emit: `write` under the record's key (None: it has none), and its releases, each naming its successor.

    In a target that renames, the write travels with the release of the key left last: the writer that owns that key renames first and
    sends it on.
    """
    if write is None or not releases:
        return releases if write is None else [write]
    out = [replace(release, successor=write.key) for release in releases]
    if renames:
        out[-1] = replace(out[-1], then=replace(write, renamed_from=out[-1].key))
        return out
    return [*out, write]
