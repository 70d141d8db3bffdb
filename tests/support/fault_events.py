"""Raw change events with sequence ids, on many keys and both lanes, and what must become of them; the oracle knows nothing of the merge."""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from models.envelope import Envelope, Kind, Reason
from models.flow import Flow
from streams.engine.stage import Output
from streams.topics import Topics

LIVE_KEYS, BULK_KEYS = 60, 40
PREFIX = {"Contact": "003Qx", "Account": "001Qx"}
FIELDS = {"Contact": ("LastName", "Title"), "Account": ("Name", "AccountNumber")}
"""Per sObject the name, and the field that carries the sequence id."""
MAPS = {"people.yaml": "Title: seq\nLastName: name\n", "firms.yaml": "AccountNumber: seq\nName: name\n"}
AUTH = {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}


def flow_for(folder: str, targets: Mapping[str, Mapping[str, Any]], sobjects: Iterable[str] = ("Contact",)) -> Flow:
    """Every sObject to every target: Contacts by the built-in map `person` to the first, all else by map files of `folder`."""
    routes: dict[str, Any] = {}
    for number, target in enumerate(targets):
        for sobject in sobjects:
            small = "people.yaml" if sobject == "Contact" else "firms.yaml"
            chosen = "person" if sobject == "Contact" and number == 0 else small
            routes[f"{sobject}-{target}"] = {"from": [f"acme/{sobject}"], "to": target, "map": chosen, "object": sobject.lower()}
    acme = {"type": "salesforce", "url": "http://127.0.0.1:9", "auth": AUTH}
    return Flow.model_validate({"connections": {"acme": acme}, "targets": dict(targets), "routes": routes, "folder": folder})


@dataclass(slots=True)
class Sent:
    """What was sent and what follows from it.

    last      by target key the sequence id that must stand there at the end
    order     by target key its sequence ids, in order
    once      sequence ids of which exactly one output must come
    dead      events that must become dead letters
    """

    last: dict[str, int] = field(default_factory=dict)
    order: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    once: set[int] = field(default_factory=set)
    dead: int = 0


class Events:
    """Makes them; the next sequence id is also the next position of the channel."""

    def __init__(self, installation: str, chance: random.Random) -> None:
        self._topics, self._chance = Topics(installation), chance
        self._known: set[str] = set()
        self.sent, self.next, self.began = Sent(), 0, int(time.time())

    def some(self, count: int, *, sobject: str = "Contact", bulk: float = 0.3, keys: int | None = None) -> list[Output]:
        """Events of records chosen at random; this part of them through the bulk lane, of records of their own."""
        return [self.one(self._record(sobject, self._chance.random() < bulk, keys), sobject) for _ in range(count)]

    def one(self, record: str, sobject: str = "Contact") -> Output:
        """The next event of a record: a CREATE first, then UPDATEs of the field that carries the sequence id."""
        seq, self.next = self.next, self.next + 1
        key = f"acme/{record}"
        self.sent.once.add(seq)
        self.sent.last[key] = seq
        self.sent.order[key].append(seq)
        return self.event(record, sobject, seq, create=record not in self._known, bulk=record[5] == "B")

    def event(self, record: str, sobject: str, seq: int, *, create: bool, bulk: bool, body: Mapping[str, Any] | None = None) -> Output:
        """Any event: its position is the sequence id."""
        self._known.add(record)
        name, carrier = FIELDS[sobject]
        values = (
            {carrier: str(seq)}
            | ({name: f"name of {record}"} | ({"Email": f"{record.lower()}@example.org"} if sobject == "Contact" else {}) if create else {})
            | dict(body or {})
        )
        header = {
            "entityName": sobject,
            "recordIds": [record],
            "changeType": "CREATE" if create else "UPDATE",
            "commitTimestamp": (self.began + seq // 100) * 1000,
            "changedFields": [] if create else list(values),
        }
        message = {
            "data": {"schema": "x", "payload": {"ChangeEventHeader": header, **values}, "event": {"replayId": seq}},
            "channel": "/data/ChangeEvents",
        }
        return self.raw(record, orjson.dumps(message), sobject, position=seq, bulk=bulk)

    def raw(self, record: str, value: bytes | None, sobject: str = "Contact", *, position: int | None, bulk: bool = False) -> Output:
        """Any bytes, with correct headers."""
        reason = Reason.REPLAY if bulk else Reason.LIVE
        envelope = Envelope(
            kind=Kind.CHANGE,
            reason=reason,
            received=int(time.time() * 1000),
            channel="/data/ChangeEvents",
            epoch=1,
            position=position,
            run="run-of-the-suite" if bulk else None,
        )
        return Output(self._topics.inbound(f"acme/{sobject}", bulk=bulk), record.encode(), value, envelope.headers())

    def _record(self, sobject: str, bulk: bool, keys: int | None) -> str:
        number = self._chance.randrange(keys or (BULK_KEYS if bulk else LIVE_KEYS))
        return f"{PREFIX[sobject]}{'B' if bulk else 'L'}{number:09d}AAA"


def differences(found: Counter[int], wanted: set[int]) -> str:
    """For the message of an assertion."""
    missing, strange = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    twice = sorted(seq for seq, times in found.items() if times > 1)
    return f"{len(missing)} missing {missing[:8]}, {len(twice)} more than once {twice[:8]}, {len(strange)} strange {strange[:8]}"
