"""The sandbox org as one object: schema, records, stream, tokens, settings, faults. What the HTTP modules share."""

import random
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, fields
from typing import Any

from deploy.sandbox.faults import Faults
from deploy.sandbox.salesforce import events, ids, values
from deploy.sandbox.salesforce.access import Access
from deploy.sandbox.salesforce.bus import Bus
from deploy.sandbox.salesforce.kinds import KINDS, LOSSES
from deploy.sandbox.salesforce.limits import PUBLISHED, Limits
from deploy.sandbox.salesforce.schema import Schema, SObject
from deploy.sandbox.salesforce.store import Change, Row, Store, Transaction

USERNAME = "integration@example.org"
CLIENT_ID = "sandbox-consumer-key"
CLIENT_SECRET = "sandbox-consumer-secret"  # noqa: S105 - made up, printed at start
PASSWORD = "sandbox-password"  # noqa: S105 - likewise

_TOLD: tuple[events.Deliver, ...] = ("gap-wildcard", "wildcard", "overflow")


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
    daily_bulk_jobs: int = 10_000
    limits_lag: float = 0.0  # how far /limits is behind
    bulk_seconds: float = 0.2  # from a job's creation to its completion
    bulk_page: int = 50_000  # rows of a Bulk result at a time
    token_seconds: float = 0.0  # life of an access token after its last use; 0: for ever
    rotate_refresh_tokens: int = 0
    logins_per_hour: int = 0  # of one app, then rate_limit_exceeded; 0: any number
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
        self.faults = Faults(KINDS | LOSSES)
        self.limits = Limits(self)
        self.access = Access(self)
        self.store = Store(self.schema, seed)
        self.bus = Bus(self.rng)
        self.id = ids.make("00D", self.rng.randrange(62**4, 62**5))
        self.counts: Counter[str] = Counter()  # requests, logins, delivered events
        self.user_id = ""  # whose name unauthenticated control calls use; set by the scenario
        self._commit_number = 0
        self._pages = random.Random(seed)
        self._chance = random.Random(seed)
        self.queries: deque[tuple[str, int]] = deque(maxlen=1000)  # the last ones of REST, and how many rows each found
        self.lost: list[tuple[int, str, list[str]]] = []  # what drop-events lost in the bus: replay id, entity, record ids
        self.schemas = {name: _schema_id(self.rng) for name in self.schema.objects}

    def extend(self, custom: dict[str, Any]) -> None:
        """Add custom objects, fields and platform events while it runs, take fields away. Errors: ValueError, and nothing is changed."""
        Schema(custom)  # refuses what is wrong before anything is touched
        for name, added in custom.items():
            self.schema.extend(name, added)
        for name, sobject in self.schema.objects.items():
            self.store.add(sobject)
            if name in custom or name not in self.schemas:  # events say by which fields they were made
                self.schemas[name] = _schema_id(self.rng)
        self.access.forget_views()

    def now(self) -> float:
        """The org's wall clock, in seconds: commits, stamps, tokens and the Date header follow it; sessions follow `clock`."""
        skew = self.faults.peek("clock-skew")
        return float(self.clock()) + (0 if skew is None else skew.seconds if skew.variant == "ahead" else -skew.seconds)

    def page(self, size: int) -> int:
        """How many rows go on one page where `size` would fit."""
        return self._pages.randrange(max(1, size // 10), size + 1) if self.faults.take("page-size") else size

    def begin(self, user_id: str | None = None) -> Transaction:
        """A transaction as of now. In a few cases its records carry the second before, as seen in real orgs."""
        now = self.now()
        return Transaction(self.store, user_id or self.user_id, now - (1 if self.rng.random() < self.settings.skew else 0))

    def commit(self, transaction: Transaction, origin: str = "", deliver: events.Deliver = "normal") -> list[int]:
        """Keep the changes and publish their events. The replay ids given out."""
        changes = transaction.commit()
        only = None
        if deliver == "normal":
            deliver, only = self._told(changes)
        now = self.now()
        self._commit_number = max(self._commit_number + self.rng.randrange(2, 1000, 2), int(now * 1e9) | 1)
        commit = events.Commit(transaction.user_id, origin, int(now), self._commit_number)
        made = events.make(changes, commit, self.schema.selected, self.rng, deliver, self.settings.overflow_after, only)
        published = [replay for e in made if (replay := self._publish(e)) is not None]
        self.bus.expire((now - self.settings.retention_hours * 3600) * 1000)
        if published:
            self.bus.wake()
        return published

    def _publish(self, event: events.Event) -> int | None:
        armed = self.faults.peek("drop-events", "bus")
        if armed and self._chance.random() < armed.rate and self.faults.take("drop-events"):
            self.lost.append((self.bus.lose(), event.entity, event.record_ids))
            return None
        if old := self.faults.take("old-form"):
            events.age(event, old.variant)
        data = {"schema": self.schemas[event.entity], "payload": event.payload}
        return self.bus.publish(event.entity, event.record_ids, data, at=self.now())

    def _told(self, changes: list[Change]) -> tuple[events.Deliver, str | None]:
        """How a fault makes a commit be told, and of which kind of change only."""
        kinds = {c.kind for c in changes if c.sobject.name in self.schema.selected}
        if not kinds:
            return "normal", None
        if (armed := self.faults.peek("gap")) and (armed.variant == "all" or armed.variant.upper() in kinds):
            self.faults.take("gap")
            return "gap", None if armed.variant == "all" else armed.variant.upper()
        for name in _TOLD:
            if self.faults.take(name):
                return name, None
        return "normal", None

    def publish_event(self, sobject: SObject, written: Row, user_id: str) -> dict[str, Any]:
        """Publish a platform event; the result as REST tells it. Errors: SalesforceError."""
        given = self.begin(user_id).checked(sobject, written)
        now = self.now()
        moment = values.iso(now)[:-5] + f".{int(now * 1000) % 1000:03d}Z"
        carried = {f.name: given.get(f.name, f.default) for f in sobject.fields.values() if not f.hidden}
        payload = carried | {"CreatedDate": moment, "CreatedById": user_id}
        event_id = str(uuid.uuid4())
        self.limits.spend(PUBLISHED)
        armed = self.faults.peek("drop-events", "bus")
        if armed and self._chance.random() < armed.rate and self.faults.take("drop-events"):
            self.lost.append((self.bus.lose(), sobject.name, []))
        else:
            data = {"schema": self.schemas[sobject.name], "payload": payload, "event": {"EventUuid": event_id}}
            self.bus.publish(sobject.name, [], data, frozenset({sobject.channel}), at=now)
            self.bus.wake()
        told = {"statusCode": "OPERATION_ENQUEUED", "message": event_id, "fields": []}
        return {"id": "e01xx0000000001AAA", "success": True, "errors": [told]}

    def trigger(self, transaction: Transaction) -> None:
        """The fault `trigger`: a second change in the same transaction, of the same record or of its account (else a new task)."""
        first = next((c for c in transaction.touched() if c.kind in ("CREATE", "UPDATE")), None)
        if first is None or "Description" not in first.sobject.fields or not (armed := self.faults.take("trigger")):
            return
        text = f"Set by a trigger, {armed.fired}"
        account = first.after.get("AccountId")
        if armed.variant == "same":
            transaction.update(first.sobject, first.id, {"Description": text})
        elif account and not (self.store.anywhere(account) or {"IsDeleted": True})["IsDeleted"]:
            transaction.update(self.schema.objects["Account"], account, {"Description": text})
        else:
            transaction.create(self.schema.objects["Task"], {"Subject": text})

    def migrate(self, variant: str) -> None:
        """Positions begin again, below those given out; `org`: under another org id as well."""
        if variant == "org":
            self.id = ids.make("00D", self.rng.randrange(62**4, 62**5))
            self.bus.restart(self.rng.randrange(1_000, 1_000_000))
        else:
            self.bus.restart(max(1, self.bus.last_replay_id - 1_000))


def _schema_id(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") for _ in range(22))
