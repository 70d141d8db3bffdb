"""Records that a paused route has not told of: their keys stand in the table `records`, beside the records and in their transactions.

What a key stands for is only that the route must emit the record as it is by then. A key too many costs one write; none is ever missing.
Its value are the marks by which a gate counts the record (agents/gates.py), for those who refuse what a gate held.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping

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


def marks_of(value: bytes | None) -> set[str]:
    """Of a value of the table."""
    return set((value or b"1").decode().split("\n")[1:])


def park(
    partition: Partition, topics: Topics, source: str, records: Mapping[tuple[str, str], Collection[str]]
) -> tuple[Changes, list[Output]]:
    """What keeps that these (route, record id) are not told yet, with their marks, and tells how many each route has."""
    keys = {prefix(route) + f"{source}|{id}".encode(): (route, set(marks)) for (route, id), marks in records.items()}
    found = dict(zip(keys, partition.store(RECORDS).get_many(list(keys)), strict=True))
    changes, told = counted(partition, topics, Counter(route for key, (route, _) in keys.items() if found[key] is None))
    values = {key: "\n".join(["1", *sorted(marks | marks_of(found[key]))]).encode() for key, (_, marks) in keys.items()}
    return [*((key, value) for key, value in values.items() if value != found[key]), *changes], told


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
