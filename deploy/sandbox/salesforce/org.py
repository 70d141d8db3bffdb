"""The sandbox org as one object: schema, records, stream, tokens, settings, faults. What the HTTP modules share."""

import random
import time
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from deploy.sandbox.faults import Faults, Kind
from deploy.sandbox.salesforce import events, ids
from deploy.sandbox.salesforce.bus import Bus
from deploy.sandbox.salesforce.schema import Schema
from deploy.sandbox.salesforce.store import Store, Transaction

USERNAME = "integration@example.org"
CLIENT_ID = "sandbox-consumer-key"
CLIENT_SECRET = "sandbox-consumer-secret"  # noqa: S105 - made up, printed at start
KINDS = {
    "drop-connections": Kind("cut the socket of a poll", ("held", "reply", "request")),
    "unknown-client": Kind("forget the session of the next connect", ("handshake", "none")),
    "server-restart": Kind("drop every session and refuse connections for some seconds", instant=True),
    "refuse-resubscribe": Kind("refuse the next subscribe, whatever it asks for"),
    "invalid-replay": Kind("refuse the next subscribe from a stored position"),
    "silent": Kind("stay connected and deliver nothing: everybody, or the sessions of now for ever", ("all", "session"), times=None),
    "duplicate": Kind("deliver each event of a reply twice"),
    "reorder": Kind("turn the events of a reply round"),
    "expire-token": Kind("end every access token", instant=True),
    "revoke": Kind("end every access token and give no new ones until cleared", times=None),
    "html-503": Kind("answer with an HTML page and 503", ("all", "cometd", "rest", "token")),
    "html-200": Kind("answer with an HTML page and 200", ("cometd", "rest", "token", "all")),
    "empty-body": Kind("answer 200 with nothing", ("cometd", "rest", "token", "all")),
    "slow": Kind("answer late by some seconds", ("all", "cometd", "rest", "token"), seconds=2.0),
    "limit-403": Kind("say on connect that the daily events are used up"),
    "handshake-denied": Kind("deny the next handshake as if too many were connected"),
    "rest-limit": Kind("say on REST that the daily requests are used up"),
    "lock-row": Kind("refuse a write as if the row were locked"),
}


@dataclass(slots=True)
class Settings:
    """What can be changed while it runs. Seconds unless the name says otherwise."""

    hold: float = 110.0
    session_timeout: float = 40.0
    retention_hours: float = 72.0
    linger: float = 0.02  # events of so short a time ride on one reply
    reply_limit: int = 500  # events on one reply
    page_size: int = 2000
    daily_events: int = 0  # delivered events after which connect is refused; 0: never
    daily_requests: int = 100_000
    overflow_after: int = 100_000
    skew: float = 0.05  # share of commits whose records carry the second before the commit's

    def change(self, given: dict[str, Any]) -> None:
        """Take over values by name; ValueError for unknown names and for what is no number in range."""
        known = {f.name: type(getattr(self, f.name)) for f in fields(self)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"no setting named {name!r}; there are: {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10**9:
                raise ValueError(f"setting {name}: expected a number from 0 to 1e9, got {value!r}")
        for name, value in given.items():
            setattr(self, name, known[name](value))


class Org:
    """One org. `clock` gives seconds; tests may hand in their own."""

    def __init__(self, schema: Schema | None = None, seed: int = 1, clock: Any = time.time) -> None:
        self.schema = schema or Schema()
        self.clock = clock
        self.rng = random.Random(seed)
        self.settings = Settings()
        self.faults = Faults(KINDS)
        self.store = Store(self.schema, seed)
        self.bus = Bus(self.rng)
        self.id = ids.make("00D", self.rng.randrange(62**4, 62**5))
        self.counts: Counter[str] = Counter()  # requests, logins, delivered events
        self.user_id = ""  # whose name unauthenticated control calls use; set by the scenario
        self._commit_number = 0
        self.schemas = {name: _schema_id(self.rng) for name in self.schema.objects}

    def begin(self, user_id: str | None = None) -> Transaction:
        """A transaction as of now. In a few cases its records carry the second before, as seen in real orgs."""
        now = self.clock()
        return Transaction(self.store, user_id or self.user_id, now - (1 if self.rng.random() < self.settings.skew else 0))

    def commit(self, transaction: Transaction, origin: str = "", deliver: events.Deliver = "normal") -> list[int]:
        """Keep the changes and publish their events. The replay ids given out."""
        changes = transaction.commit()
        now = self.clock()
        self._commit_number = max(self._commit_number + self.rng.randrange(2, 1000, 2), int(now * 1e9) | 1)
        commit = events.Commit(transaction.user_id, origin, int(now), self._commit_number)
        made = events.make(changes, commit, self.schema.selected, self.rng, deliver, self.settings.overflow_after)
        published = [self.bus.publish(e.entity, e.record_ids, {"schema": self.schemas[e.entity], "payload": e.payload}) for e in made]
        self.bus.expire((now - self.settings.retention_hours * 3600) * 1000)
        if published:
            self.bus.wake()
        return published


def _schema_id(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") for _ in range(22))
