"""Which events a session gets: channels, rights as they were at the subscribe, enrichment at delivery, and the daily allocation.

Sharing is ignored and field-level security respected, as in Salesforce. What is withheld is withheld without a word.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from deploy.sandbox.salesforce.bus import ALL, Published
from deploy.sandbox.salesforce.limits import EVENTS
from deploy.sandbox.salesforce.org import Org

OVER = "403::Organization total events daily limit exceeded"
_NO_VIEW_ALL = "403::User not allowed to subscribe CDC without View All Data permissions"
_NO_ACCESS = "403::Subscriber does not have access to the entity in this topic"


@dataclass(slots=True)
class Channel:
    """A custom channel: its objects or platform events, and the fields that enrich updates and deletes, by object."""

    entities: set[str]
    enriched: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Subscription:
    """`cursor`: events of the stream already behind it. `entities`: those the user had the right to when he subscribed; None: any."""

    cursor: int
    entities: frozenset[str] | None = None


class Delivery:
    def __init__(self, org: Org, seed: int = 1) -> None:
        self.org = org
        self.custom: dict[str, Channel] = {}
        self._rng = random.Random(seed)

    def refusal(self, channel: str, user_id: str) -> str | None:
        """Why that user may not subscribe to that channel."""
        missing = f"400::The channel you requested to subscribe to doesn't exist {{{channel}}}"
        if channel == ALL or channel in self.custom:
            return None
        rights = self.org.access.of(user_id)
        found = next((o for o in self.org.schema.objects.values() if o.channel == channel), None)
        if found is None:
            return None if channel in self.org.bus.learnt else missing
        if found.event:
            return _NO_ACCESS if found.name in rights.closed else None
        if (found.name not in self.org.schema.selected and channel not in self.org.bus.learnt) or found.name in rights.closed:
            return missing
        return None if rights.views_all(found.name) else _NO_VIEW_ALL

    def entities(self, channel: str, user_id: str) -> frozenset[str] | None:
        """What a channel of several objects will give that user from now on; None: all of it."""
        rights = self.org.access.of(user_id)
        if (channel != ALL and channel not in self.custom) or (rights.view_all_data and not rights.closed):
            return None
        return frozenset(
            o.name for o in self.org.schema.objects.values() if rights.views_all(o.name) or (o.event and o.name not in rights.closed)
        )

    def _matches(self, channel: str, subscription: Subscription, event: Published) -> bool:
        if subscription.entities is not None and event.entity not in subscription.entities:
            return False
        custom = self.custom.get(channel)
        return channel in event.channels or (custom is not None and event.entity in custom.entities)

    def waiting(self, subscriptions: dict[str, Subscription]) -> bool:
        """Whether an event waits; moves the cursors over events that will never come."""
        bus = self.org.bus
        for channel, each in subscriptions.items():
            while events := bus.read(each.cursor, 500):
                each.cursor = max(each.cursor, bus.start)
                found = next((i for i, e in enumerate(events) if self._matches(channel, each, e)), None)
                each.cursor += len(events) if found is None else found
                if found is not None:
                    return True
        return False

    def take(self, subscriptions: dict[str, Subscription], user_id: str) -> list[bytes]:
        """The next events out of the stream, in its order, each as a CometD message; never more than the allocation has left."""
        if not subscriptions:
            return []
        bus = self.org.bus
        low = max(min(s.cursor for s in subscriptions.values()), bus.start)
        taken: list[bytes] = []
        end = low
        left = self.org.limits.left(EVENTS)
        for index, event in enumerate(bus.read(low, self.org.settings.reply_limit), low):
            messages = [
                b'{"data":' + data + b',"channel":' + orjson.dumps(channel) + b"}"
                for channel, each in subscriptions.items()
                if index >= each.cursor and self._matches(channel, each, event)
                for data in self._shown(channel, event, user_id)
            ]
            if taken and len(taken) + len(messages) > left:
                break
            taken += messages
            end = index + 1
        for each in subscriptions.values():
            each.cursor = max(each.cursor, end)
        self.org.limits.spend(EVENTS, len(taken))
        self.org.counts["delivered"] += len(taken)
        return [m for m in taken if not self._dropped()]

    def _dropped(self) -> bool:
        armed = self.org.faults.peek("drop-events", "reply")
        return bool(armed and self._rng.random() < armed.rate and self.org.faults.take("drop-events"))

    def _shown(self, channel: str, event: Published, user_id: str) -> Iterator[bytes]:
        """The event as that user gets it on that channel: enriched ones are one for each record, under the same replay id."""
        custom = self.custom.get(channel)
        names = custom.enriched.get(event.entity) if custom else None
        several = custom is not None and self.org.schema.objects[event.entity].event
        for data in self._enriched(event, names) if names else (_named(event) if several else event.data,):
            yield self.org.access.trimmed(user_id, event.entity, data)

    def _enriched(self, event: Published, names: list[str]) -> Iterator[bytes]:
        whole = orjson.loads(event.data)
        header = whole["payload"]["ChangeEventHeader"]
        sobject = self.org.schema.objects[event.entity]
        if header["changeType"] not in ("UPDATE", "DELETE") or any(i.endswith("*") for i in event.record_ids):
            yield event.data
            return
        for record_id in event.record_ids:
            row = self.org.store.find(sobject, record_id) or {}
            payload: dict[str, Any] = dict(whole["payload"])
            for name in names:
                found = sobject.fields[name]
                if (value := row.get(name)) is None:
                    continue  # empty ones are left out
                if found.compound is None:
                    payload.setdefault(name, value)
                elif (inner := payload.get(found.compound, {})) is not None:
                    payload[found.compound] = {str(found.component): value} | inner
            payload["ChangeEventHeader"] = header | {"recordIds": [record_id]}
            yield orjson.dumps(whole | {"payload": payload})


def _named(event: Published) -> bytes:
    """A platform event as a channel of several gives it: it says which it is."""
    whole = orjson.loads(event.data)
    return orjson.dumps(whole | {"event": whole["event"] | {"EventApiName": event.entity}})
