"""Who works on which partition number: partition p of every topic goes to one member, and stays there where it can.

Speaks only to itself (no mixing with other assignors in the group). A topic is never skipped: topics exist before anyone joins, and
one that does not, or has another number of partitions, ends the process that leads the assignment. A topic that a member does not
(yet, or any longer) subscribe to is left out of that member's share: nobody may process it without the tables beside it.
"""

# ruff: noqa: ARG002 - the arguments are Faust's

import json
from collections.abc import Iterable, Mapping, Set
from typing import Any

import structlog
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from faust.types import TP
from faust.types.assignor import PartitionAssignorT
from yarl import URL

from streams.engine.fatal import end

VERSION = 1
log = structlog.get_logger()


def share_out(claims: Mapping[str, tuple[int, Iterable[int]]], partitions: int) -> dict[str, list[int]]:
    """Partition numbers by member. `claims`: generation and numbers a member had; the later generation wins a number claimed twice.

    Sizes differ by at most one; a number moves only if its holder has more than its share.
    """
    members = sorted(claims)
    low, extra = divmod(partitions, len(members))
    shares: dict[str, list[int]] = {member: [] for member in members}
    free = set(range(partitions))
    for member in sorted(members, key=lambda m: (-claims[m][0], m)):
        mine = sorted(set(claims[member][1]) & free)
        room = low + (1 if extra and len(mine) > low else 0)
        if len(mine) > low:
            extra = max(0, extra - 1)
        shares[member] = mine[:room]
        free -= set(shares[member])
    for number in sorted(free):
        shares[min(members, key=lambda m: (len(shares[m]), m))].append(number)
    return {member: sorted(numbers) for member, numbers in shares.items()}


class Assignor(PartitionAssignorT):
    """Set as Faust's `PartitionAssignor`; aiokafka calls name, metadata, assign and on_assignment."""

    name = "headrace"
    version = VERSION

    def __init__(self, app: Any, replicas: int = 0) -> None:
        self.app, self.replicas = app, replicas
        self._actives: set[TP] = set()

    def metadata(self, topics: Set[str]) -> ConsumerProtocolMemberMetadata:
        """What this member says when it joins: topics, generation and numbers it has."""
        generation, numbers = self.app.engine.held()
        said = json.dumps({"generation": generation, "partitions": sorted(numbers)}).encode()
        return ConsumerProtocolMemberMetadata(VERSION, sorted(topics), said)

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Called in the process that leads the group."""
        topics = {topic for member in members.values() for topic in member.subscription}
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        wanted = self.app.engine.partitions
        if wrong := {topic: count for topic, count in counts.items() if count != wanted}:
            end("topics are missing or of another size", topics=wrong, partitions=wanted, do="make them, then start the worker again")
        claims = {member: _claim(said.user_data) for member, said in members.items()}
        shares = share_out(claims, wanted)
        for topic in sorted(topics):
            if without := [m for m, said in members.items() if topic not in said.subscription and shares[m]]:
                log.warning("topic waits for members that do not read it", topic=topic, partitions=[p for m in without for p in shares[m]])
        return {
            member: ConsumerProtocolMemberAssignment(VERSION, [(topic, shares[member]) for topic in sorted(said.subscription)], b"")
            for member, said in members.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Remember what we have."""
        self._actives = {TP(topic, number) for topic, numbers in assignment.assignment for number in numbers}

    # the rest of what Faust's interface asks for

    def group_for_topic(self, topic: str) -> int:
        return 0

    def assigned_standbys(self) -> set[TP]:
        return set()

    def assigned_actives(self) -> set[TP]:
        return self._actives

    def is_active(self, tp: TP) -> bool:
        return tp in self._actives

    def is_standby(self, tp: TP) -> bool:
        return False

    def key_store(self, topic: str, key: bytes) -> URL:
        return URL("")

    def table_metadata(self, topic: str) -> dict[str, dict[str, list[int]]]:
        return {}

    def tables_metadata(self) -> dict[str, dict[str, list[int]]]:
        return {}


def _claim(user_data: bytes) -> tuple[int, list[int]]:
    try:
        said = json.loads(user_data)
        return int(said["generation"]), [int(p) for p in said["partitions"]]
    except (ValueError, KeyError, TypeError):
        return -1, []
