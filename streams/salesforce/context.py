"""What all parts of a subscriber share of its connection: channels, polling, repairs. No behaviour."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.salesforce.auth import Login
from streams.salesforce.positions import Start
from streams.salesforce.rest import Rest
from streams.salesforce.retry import Backoff
from streams.salesforce.rights import LOOK_SECONDS

Living = Callable[[str], Awaitable[set[str]]]


class Readiness(Protocol):
    """What is needed of streams/health.py."""

    def ready(self, name: str, ok: bool, why: str = "") -> None:
        """Say whether a part is ready."""


@dataclass(frozen=True, slots=True)
class Context:
    """Of one connection in this process.

    fields   columns that rows of a source need, by source; wanted: those that maps name, also where the org does not show them any more
    living   by source the ids that we hold to be alive
    backoff  between attempts; its pause is the time between two probes of what is refused
    """

    settings: Settings
    flow: Flow
    connection: str
    config: Salesforce
    fields: Mapping[str, Sequence[str]]
    login: Login
    rest: Rest
    start_from: Start | None
    snapshot: bool
    backoff: Backoff
    health: Readiness | None
    living: Living | None = None
    rights_seconds: float = LOOK_SECONDS
    wanted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held: Callable[[], str] = str
    """Why people want nothing read from the connection now, "" when it may be."""
    paused: set[str] = field(default_factory=set)
    """Channels that Salesforce refuses now: a revoked login, a lost right."""
