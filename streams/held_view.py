"""What people paused, with what waits for it: for `headrace status`. Reads nothing itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.flow import Flow
from streams.pauses import Paused
from streams.topics import Topics, sources


@dataclass(frozen=True, slots=True)
class Held:
    """What people paused. `since`: epoch ms; `waiting`: records and writes that wait for it (None: not known), for a route records that
    it has not told of.
    """

    what: str
    name: str
    since: int
    because: str
    waiting: int | None


def held_of(topics: Topics, flow: Flow, pauses: Paused, parked: Mapping[str, int], lags: Mapping[str, int]) -> list[Held]:
    """What is paused; and routes that were, as long as they have not told of everything."""
    found = []
    for pause in pauses.values():
        if pause.what == "route":
            waiting: int | None = parked.get(pause.name, 0)
        else:
            read = [s for s in sources(flow) if s.partition("/")[0] == pause.name]
            of = [topics.inbound(s, bulk=bulk) for s in read for bulk in (False, True)] + [topics.fetch(pause.name)]
            if pause.what == "target":
                of = [topics.writes(pause.name, bulk=bulk) for bulk in (False, True)]
            waiting = sum(lags.get(topic, 0) for topic in of) if lags else None
        found.append(Held(pause.what, pause.name, pause.since, pause.because, waiting))
    found += [Held("route", name, 0, "it goes on", count) for name, count in parked.items() if f"route/{name}" not in pauses]
    return sorted(found, key=lambda one: (one.what, one.name))
