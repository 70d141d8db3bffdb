"""Records that a paused route has not told of: their keys stand in the table `records`, beside the records and in their transactions.

What a key stands for is only that the route must emit the record as it is by then. A key too many costs one write; none is ever missing.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable

import orjson

from agents.tables import RECORDS
from streams.engine.stage import Changes, Output, Partition
from streams.topics import Topics

MARK, COUNT = "\x01parked|", "\x01count|"
"""No source begins so."""


def prefix(route: str) -> bytes:
    """Of the keys of a route."""
    return f"{MARK}{route}|".encode()


def parked_of(route: str, key: bytes) -> tuple[str, str]:
    """Source and record id that a key stands for."""
    source, _, id = key[len(prefix(route)) :].decode().partition("|")
    return source, id


def park(partition: Partition, topics: Topics, source: str, records: Iterable[tuple[str, str]]) -> tuple[Changes, list[Output]]:
    """What keeps that these (route, record id) are not told yet, and tells how many each route has."""
    keys = {prefix(route) + f"{source}|{id}".encode(): route for route, id in records}
    found = partition.store(RECORDS).get_many(list(keys))
    fresh = [key for key, raw in zip(keys, found, strict=True) if raw is None]
    changes, told = counted(partition, topics, Counter(keys[key] for key in fresh))
    return [*((key, b"1") for key in fresh), *changes], told


def told(partition: Partition, topics: Topics, route: str, keys: Collection[bytes]) -> tuple[Changes, list[Output]]:
    """The other way round: the route has told of these."""
    changes, outputs = counted(partition, topics, {route: -len(keys)})
    return [*((key, None) for key in keys), *changes], outputs


def counted(partition: Partition, topics: Topics, more: dict[str, int]) -> tuple[Changes, list[Output]]:
    """How many records each route has in this partition by now: in the table, and in the topic `runs` for `status`."""
    changes: Changes = []
    outputs: list[Output] = []
    keys = {route: f"{COUNT}{route}".encode() for route, change in more.items() if change}
    for (route, key), raw in zip(keys.items(), partition.store(RECORDS).get_many(list(keys.values())), strict=True):
        count = max(0, int(raw or b"0") + more[route])
        changes.append((key, b"%d" % count))
        value = {"kind": "parked", "route": route, "partition": partition.number, "count": count, "at": int(time.time() * 1000)}
        outputs.append(Output(topics.runs, f"parked/{route}/{partition.number}".encode(), orjson.dumps(value)))
    return changes, outputs
