"""The work everybody does: made-up change events as CometD delivers them, late and repeated ones among them, and what must come of them.

Pure, and independent of models, streams and agents: the oracle takes events in order of their position, which nobody measured does.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

LATE, REPEATED = 0.05, 0.01
"""Share of updates that change places with an earlier one of the same record, and of those that come twice."""
MARK = "marker"
COLUMNS = {
    "externalId": "Id",
    "email": "Email",
    "firstName": "FirstName",
    "lastName": "LastName",
    "title": "Title",
    "phone": "Phone",
    "accountExternalId": "AccountId",
}
"""Of a target's row the source's field."""
_TITLES = ("Analyst", "Buyer ", "Chief of Staff", None, "Director", " Engineer")
_FIRST_MS = 1_790_000_000_000
_SCHEMA = "IeRuaY6cbI_HsV8Rv1Mc5g"

Row = dict[str, Any]


class Event(NamedTuple):
    """One record of the in-topic; the position is Salesforce's, the value the message."""

    id: str
    position: int
    value: bytes


@dataclass
class Work:
    """A stream of events of the records `ids`: `create` comes first, then any number of `updates` and `marks`.

    Events are made in the order of their positions, so the truth is simply the last made of each field.
    keep_rows   for `flat_rows`
    """

    ids: Sequence[str]
    seed: int = 1
    keep_rows: bool = False
    _position: int = 0
    _known: dict[str, Row] = field(default_factory=dict)
    _rows: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def create(self) -> list[Event]:
        """One CREATE of each record."""
        return [self._create(number, id) for number, id in enumerate(self.ids)]

    def updates(self, count: int) -> list[Event]:
        """`count` events, in the order in which they are delivered: some after later ones of the same record, some twice."""
        repeated = round(count * REPEATED)
        events = [self._update(self._rng.choice(self.ids)) for _ in range(count - repeated)]
        places: dict[str, list[int]] = {}
        for place, event in enumerate(events):
            places.setdefault(event.id, []).append(place)
        twice = [mine for mine in places.values() if len(mine) > 1]
        for _ in range(round(count * LATE) if twice else 0):
            one, other = self._rng.sample(self._rng.choice(twice), 2)
            events[one], events[other] = events[other], events[one]
        for place in sorted(self._rng.sample(range(len(events)), min(repeated, len(events))), reverse=True):
            events.insert(place, events[place])
        return events

    def marks(self, ids: Iterable[str], text: str) -> list[Event]:
        """Updates that show by a row's title that everything before them is through."""
        return [self._event(id, "UPDATE", {"Title": f"{MARK} {text}"}, ["Title"]) for id in ids]

    def truth(self) -> dict[str, Row]:
        """By id the row a target must hold: all events so far, in order of their position."""
        return {id: row(values) for id, values in self._known.items()}

    def flat_rows(self, events: Iterable[Event]) -> list[tuple[Event, Row]]:
        """For peers that cannot merge: each event with the whole row as it was after it, in the order of the events. Forgets them."""
        rows, self._rows = self._rows, {}
        return [(event, rows[event.position]) for event in events]

    def _create(self, number: int, id: str) -> Event:
        body = {
            "Name": {"Salutation": "Ms.", "FirstName": f"First{number % 97}", "LastName": f" Last{number} "},
            "Email": f"Person{number}@Example.ORG",
            "Title": "Analyst",
            "Phone": f"+1 555 {number:07d}",
            "AccountId": f"001Bench{number % 500:07d}AAA",
            "LeadSource": "Web",
            "OwnerId": "005Bench0000001AAA",
        }
        return self._event(id, "CREATE", body, [])

    def _update(self, id: str) -> Event:
        pick, number = self._rng.random(), self._rng.randrange(10**6)
        if pick < 0.4:
            body: Row = {"Phone": f" +1 555 {number:07d}", "Title": self._rng.choice(_TITLES)}
        elif pick < 0.7:
            body = {"Email": f"Person{number}@Example.ORG"}
        elif pick < 0.85:
            body = {"Name": {"Salutation": "Ms.", "FirstName": f"First{number}", "LastName": f"Last{number % 1000} "}}
        else:
            body = {"AccountId": f"001Bench{number % 500:07d}AAA", "MailingAddress": {"City": f"City{number % 50}"}}
        return self._event(id, "UPDATE", body, list(body))

    def _event(self, id: str, change: str, body: Row, changed: list[str]) -> Event:
        self._position = position = self._position + 1
        at = _FIRST_MS + position * 10
        stamp = "2026-11-25T08:00:00.000Z"
        header = {
            "entityName": "Contact", "recordIds": [id], "changeType": change, "changeOrigin": "com/salesforce/api/rest/67.0;client=bench",
            "transactionKey": f"0000{position:08d}-bench", "sequenceNumber": 1, "commitTimestamp": at, "commitNumber": 10**13 + position,
            "commitUser": "005Bench0000001AAA", "nulledFields": [], "diffFields": [], "changedFields": [*changed, "LastModifiedDate"],
        }  # fmt: skip
        payload = {"ChangeEventHeader": header, **body, "LastModifiedDate": stamp, "SystemModstamp": stamp}
        message = {
            "data": {"schema": _SCHEMA, "payload": payload, "event": {"replayId": position, "EventApiName": "ContactChangeEvent"}},
            "channel": "/data/ChangeEvents",
        }
        known = self._known.setdefault(id, {"Id": id})
        known.update(flat(body))
        if self.keep_rows:
            self._rows[position] = row(known)
        return Event(id, position, orjson.dumps(message))


def flat(body: Mapping[str, Any]) -> Row:
    """Fields of an event's body as a row has them: the parts of the name side by side."""
    return {**{name: value for name, value in body.items() if name != "Name"}, **(body.get("Name") or {})}


def row(values: Mapping[str, Any]) -> Row:
    """A target's row: text trimmed, empty text null, addresses lower-case."""
    found = {}
    for column, name in COLUMNS.items():
        value = values.get(name)
        text = value.strip() or None if isinstance(value, str) else value
        found[column] = text.lower() if text is not None and column == "email" else text
    return found


def record_id(number: int) -> str:
    """An 18-character id of a made-up Contact."""
    return f"003Bench{number:07d}AAA"
