"""What a contender is told: one JSON argument. No imports of the house: stock Faust must see nothing of ours."""

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Spec:
    """Addresses and names of one contest.

    name     installation, consumer group, Faust's app id; also the first part of every topic's name
    source   topic read; `out` topic written; `partitions` of each
    dsn      of PostgreSQL; `schema`: where its table `person` is
    state    folder for local state
    """

    bootstrap: str
    name: str
    source: str
    out: str
    partitions: int
    state: str
    dsn: str = ""
    schema: str = ""
    mode: str = ""

    def text(self) -> str:
        """As the argument."""
        return json.dumps(asdict(self))


def read() -> Spec:
    """This process's."""
    return Spec(**json.loads(sys.argv[1]))
