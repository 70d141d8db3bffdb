"""What verifications found: the last one of each route and source in the topic `runs`, and what can be said of a route from them.

Written by whoever verifies (agents/verify_run.py), read by those who show it and by the schedule. Counts and times, never a value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from models.errors import FatalError
from models.flow import is_event
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output, Record
from streams.topics import Topics

State = Literal["running", "verified", "failed"]


@dataclass(frozen=True, slots=True)
class Verified:
    """Value of a record of the runs topic; its key is "verify|<route>|<source>".

    state      running (also one that was stopped in the middle), verified, failed (`why`: differences left, workers behind, …)
    at         epoch ms when this state began
    through    epoch s, by Salesforce's clock: the last that was claimed, whatever became of later ones; 0: never
    compared, differed, repaired   keys of the target and records of the source, in the last run; calls: of the REST API, for all its routes
    """

    route: str
    source: str
    target: str
    state: State
    at: int
    through: int = 0
    compared: int = 0
    differed: int = 0
    repaired: int = 0
    calls: int = 0
    why: str = ""

    def output(self, topics: Topics) -> Output:
        """The record that stores it."""
        value = {"kind": "verify"} | asdict(self)
        return Output(topics.runs, f"verify|{self.route}|{self.source}".encode(), orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


Found = Mapping[tuple[str, str], Verified]
"""By route and source."""


def parse_verified(key: bytes | None, value: bytes | None) -> Verified | None:
    """None for a deleted one and for runs of another kind. Raises FatalError."""
    if value is None:
        return None
    try:
        found: dict[str, Any] = orjson.loads(value)
        if found.get("kind") != "verify":
            return None
        return Verified(**{name: found[name] for name in Verified.__dataclass_fields__ if name in found})
    except (ValueError, TypeError, AttributeError) as error:
        raise FatalError(f"record {key!r} of the runs topic is damaged ({error}): delete it, then verify again") from None


async def read_verified(settings: Settings) -> Found:
    """The last verification of each route and source. Raises TemporaryError, FatalError."""
    return verified_of(await read_last(settings, Topics(settings.installation).runs))


def verified_of(last: Mapping[bytes | None, Record]) -> Found:
    """From the last record of each key of the topic `runs`. Raises FatalError."""
    found = (parse_verified(key, record.value) for key, record in last.items())
    return {(one.route, one.source): one for one in found if one is not None}


def through(found: Found, route: str, sources: Sequence[str]) -> int:
    """Until when (epoch s) all sources of a route that keep records are verified; 0: never."""
    kept = [source for source in sources if "/" in source and not is_event(source)]
    return min((found[route, s].through if (route, s) in found else 0 for s in kept), default=0)
