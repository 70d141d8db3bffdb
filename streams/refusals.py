"""Swarms that a gate held and a person refused: the decision, and what became of it, in the topic `runs`.

The decision is written by `headrace refuse`, what each partition dropped by its owner (agents/refill.py). Nothing is ever deleted of it.
"""

from collections.abc import Iterable

import msgspec

from streams.engine.stage import Output, Record
from streams.topics import Topics
from streams.typed import of_type


class Refused(msgspec.Struct, tag_field="kind", tag="refused"):
    """Value of a record; of a partition, or with -1 the decision itself.

    gate     mark of what is dropped (streams/pauses.py); why: in the words of the gate, and of who decided
    dropped  records of which the route was not told; at: epoch ms of the decision
    """

    run: str
    route: str
    gate: str
    why: str
    at: int
    partition: int = -1
    dropped: int = 0

    def output(self, topics: Topics) -> Output:
        """The record that stores it."""
        return Output(topics.runs, f"{self.run}/{self.partition}".encode(), msgspec.json.encode(self))


def refusals_of(records: Iterable[Record]) -> list[Refused]:
    """Each decision with what all partitions dropped of it, the latest first; from the records of the topic `runs`."""
    found: dict[str, Refused] = {}
    for one in of_type(records, Refused):
        if (held := found.setdefault(one.run, one)) is not one:
            held.dropped += one.dropped
    return sorted(found.values(), key=lambda one: -one.at)
