"""Turns what a transaction did into change events, as Salesforce words them. No state but the random source it is given."""

import difflib
import hashlib
import random
import re
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.sandbox.salesforce import ids
from deploy.sandbox.salesforce.schema import Field, SObject
from deploy.sandbox.salesforce.store import Change, Row

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
Deliver = Literal["normal", "gap", "gap-wildcard", "overflow", "wildcard", "lost"]


@dataclass(slots=True)
class Commit:
    """What all events of one transaction share. `timestamp` is in whole seconds."""

    user_id: str
    origin: str
    timestamp: int
    number: int
    key: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(slots=True)
class Event:
    """An event before it gets its place in the stream: entity, record ids, payload without order."""

    entity: str
    record_ids: list[str]
    payload: dict[str, Any]


def make(
    changes: list[Change],
    commit: Commit,
    selected: set[str],
    rng: random.Random,
    deliver: Deliver = "normal",
    budget: int = 100_000,
    only: str | None = None,
) -> list[Event]:
    """The events of a commit, merged where several records took the same change.

    `deliver` says how they are told: all of them, or those of the kind `only`.
    `budget` is how many changes (a created or deleted record, each updated field) go out before the rest of an object is one overflow.
    """
    made: list[Event] = []
    merged: dict[str, Event] = {}
    overflown: dict[str, int] = {}
    sequence_shift = 0
    for change in changes:
        how = deliver if only in (None, change.kind) else "normal"
        if change.sobject.name not in selected or how == "lost":
            continue
        entity = change.sobject.name
        body, changed = ({}, []) if how.startswith("gap") else _body(change, rng)
        budget -= len(changed) if change.kind == "UPDATE" else 1
        if how == "overflow" or budget < 0:
            overflown.setdefault(entity, change.sequence)
            continue
        kind = f"GAP_{change.kind}" if how.startswith("gap") else change.kind
        record_ids = [change.id]
        if how.endswith("wildcard"):
            record_ids = [f"{change.sobject.prefix}*"]
        if how == "wildcard":
            kind, body, changed = "UPDATE", {}, []
        same = repr((entity, kind, sorted(body.items(), key=lambda i: i[0]), sorted(changed)))
        if kind not in ("CREATE", "UNDELETE") and same in merged:
            if not how.endswith("wildcard"):
                merged[same].record_ids.append(change.id)
            sequence_shift += 1  # a merged event takes one number
            continue
        merged[same] = event = Event(entity, record_ids, {})
        header = _header(entity, kind, record_ids, changed, change.sequence - sequence_shift, commit)
        event.payload = _shuffled(body | {"ChangeEventHeader": _shuffled(header, rng)}, rng)
        made.append(event)
    for entity, sequence in overflown.items():
        header = _header(entity, "GAP_OVERFLOW", [ids.NULL_ID], [], sequence - sequence_shift, commit)
        made.append(Event(entity, [ids.NULL_ID], {"ChangeEventHeader": _shuffled(header, rng)}))
    return made


def _header(entity: str, kind: str, record_ids: list[str], changed: list[str], sequence: int, commit: Commit) -> dict[str, Any]:
    return {
        "entityName": entity,
        "recordIds": record_ids,
        "changeType": kind,
        "changeOrigin": commit.origin,
        "transactionKey": commit.key,
        "sequenceNumber": sequence,
        "commitTimestamp": commit.timestamp * 1000,
        "commitNumber": commit.number,
        "commitUser": commit.user_id,
        "changedFields": changed,
    }


def _shuffled(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    names = list(content)
    rng.shuffle(names)
    return {name: content[name] for name in names}


def _body(change: Change, rng: random.Random) -> tuple[dict[str, Any], list[str]]:
    if change.kind == "DELETE":
        return {}, []
    if change.kind == "UPDATE":
        return _difference(change.sobject, change.before or {}, change.after, rng)
    whole = {f: change.after.get(f.name) for f in _carried(change.sobject, change.after)}
    return _nested({f: v for f, v in whole.items() if v is not None}), []


def _carried(sobject: SObject, row: Row) -> list[Field]:
    """The fields that events tell. The name of an account is a text, of a person account an object of its parts."""
    if row.get("IsPersonAccount") and sobject.name == "Account":
        return [f for f in sobject.fields.values() if not f.hidden and f.name not in ("Id", "Name")]
    return [f for f in sobject.fields.values() if not f.hidden and f.name != "Id"]


def _difference(sobject: SObject, before: Row, after: Row, rng: random.Random) -> tuple[dict[str, Any], list[str]]:
    changed = {f: after.get(f.name) for f in _carried(sobject, after) if after.get(f.name) != before.get(f.name)}
    changed[sobject.fields["LastModifiedDate"]] = after["LastModifiedDate"]  # even where the second is the same
    carried = {f: (text_diff(before.get(f.name), v) or v) if f.type == "textarea" else v for f, v in changed.items()}
    body = _nested(carried)
    names = []
    for compound, parts in sobject.compounds.items():
        if isinstance(body.get(compound), dict) and all(after.get(p.name) is None for p in parts):
            body[compound] = None  # everything emptied: the parent stands for its parts
            names.append(compound)
    names += [f"{f.compound}.{f.component}" if f.compound else f.name for f in changed if f.compound not in names]
    rng.shuffle(names)
    return body, names


def _nested(flat: dict[Field, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for f, value in flat.items():
        if f.compound and f.component:
            body.setdefault(f.compound, {})[f.component] = value
        else:
            body[f.name] = value
    return body


def age(event: Event, form: str) -> None:
    """Write an event as it was years ago, in place: `dates` without milliseconds (before 2020), or `no-changed-fields` (before API 47)."""
    if form == "no-changed-fields":
        event.payload["ChangeEventHeader"].pop("changedFields", None)
        return
    for name, value in event.payload.items():
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            event.payload[name] = f"{value[:19]}Z"


def text_diff(old: str | None, new: str | None) -> dict[str, str] | None:
    """What stands for a long text that changed little: a unified diff, with the SHA-256 of the whole new value. None: the value is sent."""
    if not old or not new or len(new) < 1000 or abs(len(new) - len(old)) > 0.5 * len(old):
        return None
    line = "\r\n" if "\r\n" in new else "\n"
    before, after = old.split(line), new.split(line)
    body = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    gone = sum(x.startswith("-") for x in body)
    diff = f"--- \n+++ {hashlib.sha256(new.encode()).hexdigest()}\n" + "\n".join(body)
    return None if gone > 0.25 * len(before) or len(diff) > len(new) else {"diff": diff}
