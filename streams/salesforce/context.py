"""What all channels of one connection share in a subscriber. No behaviour."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.salesforce.auth import Login
from streams.salesforce.polled import Readiness
from streams.salesforce.positions import Start
from streams.salesforce.repair import Living
from streams.salesforce.rest import Rest
from streams.salesforce.retry import Backoff
from streams.salesforce.rights import LOOK_SECONDS


@dataclass(frozen=True, slots=True)
class Context:
    """What all channels of one connection share."""

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
    held: Callable[[], str] = str
    """Why people want nothing read from the connection now, "" when it may be."""
    paused: set[str] = field(default_factory=set)
    """Channels that Salesforce refuses now: a revoked login, a lost right."""
