"""What Salesforce withheld, and what was done about it: one record per incident in the compacted topic `incidents`.

An incident is opened in the transaction that moves the position past it, and closed in the transaction of the last row that repairs it, so
neither can be true without the other. It names causes, ids and times, never a value of a record.
"""

import time
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal

import orjson

from models.errors import FatalError
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output
from streams.topics import Topics

Cause = Literal[
    "gap", "overflow", "wildcard", "too large", "position refused", "org changed", "allocation", "verify", "target", "log lost", "rights",
]  # fmt: skip
State = Literal["open", "waiting", "closed", "failed"]


@dataclass(frozen=True, slots=True)
class Incident:
    """Value of a record of the incidents topic; its key is `id`, the same whenever the same thing is met again.

    source    "<connection>/<sObject>"
    cause     what Salesforce withheld, and how; verify: found by comparing records; target: a target did not hold what was written there
    detail    in words, for people
    ids       records to be read again; () = every record changed since `since`
    since     epoch s, by Salesforce's clock; 0 = from the beginning
    state     open: to be repaired; waiting: not before the user sees what is withheld
    rows      rows read again; gone: ids that are no more; calls: of the REST API, what it cost
    proof     why it counts as repaired; of a failed one, why not
    opened, closed   epoch ms
    """

    id: str
    source: str
    cause: Cause
    detail: str
    ids: tuple[str, ...] = ()
    since: int = 0
    state: State = "open"
    rows: int = 0
    gone: int = 0
    calls: int = 0
    proof: str = ""
    opened: int = 0
    closed: int = 0

    def output(self, topics: Topics) -> Output:
        """The record that stores it."""
        return Output(topics.incidents, self.id.encode(), orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS))

    def reopened(self) -> "Incident":
        """To be repaired now: a run that began earlier does not answer for it."""
        return replace(self, state="open", proof="", opened=int(time.time() * 1000))

    def ended(self, state: Literal["closed", "failed"], proof: str, *, rows: int = 0, gone: int = 0, calls: int = 0) -> "Incident":
        """Repaired, or given up."""
        return replace(self, state=state, proof=proof, rows=rows, gone=gone, calls=calls, closed=int(time.time() * 1000))


KINDS = {f.name: type(f.default) for f in fields(Incident) if f.default is not MISSING} | dict.fromkeys(
    ("id", "source", "cause", "detail"), str
)


def parse_incident(key: bytes | None, value: bytes) -> Incident:
    """Raises FatalError: an incident that cannot be read would be one that nobody repairs."""
    try:
        found: dict[str, Any] = orjson.loads(value)
        known = {name: found[name] for name in Incident.__dataclass_fields__ if name in found}
        incident = Incident(**known | {"ids": tuple(known.get("ids", ()))})
        if strange := [name for name, kind in KINDS.items() if type(getattr(incident, name)) is not kind]:
            raise ValueError(f"{', '.join(strange)} not as written")
        if incident.source.count("/") != 1 or not all(isinstance(one, str) for one in incident.ids):
            raise ValueError("source or ids not as written")
        return incident
    except (ValueError, TypeError, AttributeError) as error:
        raise FatalError(f"incident {key!r} is damaged ({error}): delete its record, then run a snapshot of its source") from None


async def read_incidents(settings: Settings) -> dict[str, Incident]:
    """All incidents by id, in the order of their opening. Raises TemporaryError, FatalError."""
    last = await read_last(settings, Topics(settings.installation).incidents)
    found = (parse_incident(key, record.value or b"") for key, record in last.items())
    return {i.id: i for i in sorted(found, key=lambda i: (i.opened, i.id))}


def open_ones(incidents: Iterable[Incident], sources: Iterable[str]) -> list[Incident]:
    """Those of these sources that are to be repaired."""
    mine = set(sources)
    return [i for i in incidents if i.state == "open" and i.source in mine]
