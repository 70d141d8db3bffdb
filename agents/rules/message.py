"""What one record of an in-topic says about one record of the source, in the words of the merge. Pure.

Everything that can be wrong with a message is found here, before any state is touched: the merge itself raises nothing.
"""

from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from agents.rules.compound import apply_diff as apply_diff
from agents.rules.compound import full_name, parts, tidy
from agents.rules.plan import ROW_ONLY, Plan
from agents.rules.versions import EVENT, ROW, Version
from models.change_event import Change, ChangeEvent
from models.envelope import Envelope, Reason
from models.errors import PermanentError
from models.platform_event import PlatformEvent

_MISSING = object()
UPDATE, DELETE = Change.UPDATE, Change.DELETE  # an enum looks its members up in Python


class Message(Struct):
    """One record's news.

    version    None: it speaks for nothing (the empty row of a redrive)
    values     paths and values it speaks for
    fills      values that only fill what is unknown (enriched fields)
    unknown    paths that changed to something the message does not tell
    diffs      large texts as differences
    deleted    what it says of that; None: nothing
    update     a change event of type UPDATE: after a delete it means that the record is back
    whole      replaces the record (hooks); or speaks for most of it (rows, CREATE, UNDELETE)
    lacks      needed paths that a row should have had
    position, committed   for people: Salesforce's position, epoch ms
    """

    version: Version | None
    values: dict[str, Any] = field(default_factory=dict)
    fills: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] | list[str] = ()
    diffs: dict[str, str] = field(default_factory=dict)
    deleted: bool | None = None
    update: bool = False
    whole: bool = False
    lacks: tuple[str, ...] = ()
    position: int | None = None
    committed: int | None = None


def from_event(event: ChangeEvent, record_id: str, plan: Plan, epoch: int) -> Message:
    """A change event's news of one record. Raises PermanentError when it must be read again, or is not about this record."""
    if reason := event.needs_reread:
        raise PermanentError(reason)
    if event.sobject != plan.sobject:
        raise PermanentError(f"a change event of {event.sobject} in the topic of {plan.sobject}: it was put there by somebody else")
    if record_id not in event.ids:
        raise PermanentError(f"the change event names {len(event.ids)} ids, none of them is the record's key: redrive it from its source")
    message = Message((EVENT, epoch, event.position, event.second), position=event.position, committed=event.committed)
    if event.change is DELETE:
        message.deleted = True
        message.fills = _spoken(event, plan, None, message)
        message.diffs.clear()
    elif event.change is UPDATE:
        message.update = True
        _update(event, plan, message)
    else:
        message.deleted = False
        message.whole = True
        values = _spoken(event, plan, None, message)
        for name in plan.flat:
            if name not in values and name not in message.diffs and name not in ROW_ONLY and name not in plan.gone:
                values[name] = None
        if plan.named and not isinstance(event.body.get("Name"), str):
            values["Name"] = full_name(values)
        message.values = values
    if not ROW_ONLY.isdisjoint(plan.flat) and event.change is not DELETE:
        message.unknown = [*message.unknown, *(name for name in ROW_ONLY & plan.flat if name not in message.values)]
    return message


def from_row(row: Any, envelope: Envelope, plan: Plan) -> Message:
    """A REST record's news. Raises PermanentError when it is none, or nothing says how old it is."""
    if not isinstance(row, dict):
        raise PermanentError(f"a row must be a JSON object, found {type(row).__name__}: redrive it from its source")
    if envelope.gone is not None:
        if envelope.began is None:
            raise PermanentError("a row that is gone lacks the header began: redrive it")
        version = (ROW, envelope.epoch, envelope.began, envelope.gone)
        return Message(version, deleted=True, whole=True, committed=envelope.gone * 1000)
    stamp = row.get("SystemModstamp")
    if stamp is None and envelope.began is None and row.keys() <= {"Id", "attributes"}:
        return Message(None)
    if envelope.began is None:
        raise PermanentError("a row lacks the header began, so nothing tells it from older ones: redrive it")
    second = _second(stamp)
    values: dict[str, Any] = {}
    for name in plan.flat:
        if (value := row.get(name, _MISSING)) is not _MISSING:
            values[name] = tidy(value)
    for path, steps in plan.dotted:
        if (value := walk(row, steps)) is not _MISSING:
            values[path] = tidy(value)
    deleted = row.get("IsDeleted")
    lacks = tuple(sorted(plan.needed - values.keys())) if len(values) < len(plan.needed) or not values.keys() >= plan.needed else ()
    return Message(
        (ROW, envelope.epoch, envelope.began, second),
        values,
        deleted=deleted if isinstance(deleted, bool) else None,
        whole=2 * len(values) > len(plan.needed) or not plan.needed,
        lacks=lacks,
        committed=second * 1000,
    )


def from_hook(body: Any, envelope: Envelope, plan: Plan, offset: int) -> Message:
    """A webhook's news: the whole record. What was replayed or redriven keeps the version of its first offset (header position)."""
    if not isinstance(body, dict):
        raise PermanentError(f"the body of a webhook must be a JSON object to be mapped, found {type(body).__name__}")
    again = envelope.reason in (Reason.REPLAY, Reason.REDRIVE)
    position = envelope.position if envelope.position is not None else (-1 if again else offset)
    values = {path: value for path, steps in plan.dotted if (value := walk(body, steps)) is not _MISSING}
    version = (EVENT, 0, position, envelope.received // 1000)
    return Message(version, values, whole=True, committed=envelope.received)


def from_platform(event: PlatformEvent, plan: Plan) -> Message:
    """A platform event's fields. It speaks for nothing but itself."""
    values = {path: tidy(value) for path, steps in plan.dotted if (value := walk(event.values, steps)) is not _MISSING}
    return Message(None, values, whole=True, position=event.position, committed=event.committed)


def walk(found: Any, steps: tuple[str, ...]) -> Any:
    """Value at a path; a null parent gives null, an absent one `_MISSING`."""
    for step in steps:
        if found is None:
            return None
        if not isinstance(found, dict):
            return _MISSING
        found = found.get(step, _MISSING)
        if found is _MISSING:
            return _MISSING
    return found


def _update(event: ChangeEvent, plan: Plan, message: Message) -> None:
    """absent = unchanged, null = emptied; what stands in the body but not in changedFields was added by enrichment."""
    if event.changed_fields is None:
        message.values = _spoken(event, plan, None, message)
        return
    changed = set(event.changed_fields)
    message.values = _spoken(event, plan, changed, message)
    unknown = []
    tracked, concerns, values, diffs = plan.flat, plan.concerns, message.values, message.diffs
    for name in changed:
        if (plain := concerns[name]) is None:
            continue
        if plain:
            if name not in values and name not in diffs:
                unknown.append(name)
            continue
        parent, dot, part = name.partition(".")
        compound = parts(plan.sobject, parent)
        if dot:
            flat = dict(compound).get(part, part)
            if flat in tracked and flat not in values and flat not in diffs:
                unknown.append(flat)
        elif compound and any(flat in tracked for _, flat in compound) and not isinstance(event.body.get(parent), str):
            for _, flat in compound:
                if flat in tracked and flat not in values:
                    values[flat] = None
        elif name in tracked and name not in values and name not in diffs and not (compound and plan.named):
            unknown.append(name)
    message.unknown = [*message.unknown, *unknown]


def _spoken(event: ChangeEvent, plan: Plan, changed: set[str] | None, message: Message) -> dict[str, Any]:
    """Flat values of the body; those not in `changed` go to `fills`."""
    values: dict[str, Any] = {}
    fills = message.fills
    tracked, concerns = plan.flat, plan.concerns
    for name, value in event.body.items():
        if concerns[name] is None:
            continue
        if type(value) is dict:
            if len(value) == 1 and isinstance(value.get("diff"), str):
                if name in tracked and (changed is None or name in changed):
                    message.diffs[name] = value["diff"]
                continue
            whole = changed is None or name in changed
            known = parts(plan.sobject, name) or (parts("Contact", name) if name == "Name" else ())
            for part, flat in known:
                if part in value and flat in tracked:
                    (values if whole or f"{name}.{part}" in (changed or ()) else fills)[flat] = value[part]
            if name in tracked and name == "Name" and not plan.named:
                if whole:
                    values[name] = full_name(value)
                elif any(f"Name.{part}" in (changed or ()) for part in value):
                    message.unknown = [*message.unknown, name]  # a person Account's: only a part of it is told
            elif name in tracked and "Latitude" in value and "Longitude" in value:
                (values if whole else fills)[name] = {"latitude": value["Latitude"], "longitude": value["Longitude"]}
            elif name in tracked and not known:
                (values if whole else fills)[name] = value
        elif name in tracked:
            (values if changed is None or name in changed else fills)[name] = tidy(value)
        elif value is None and (changed is None or name in changed):
            for _, flat in parts(plan.sobject, name):
                if flat in tracked:
                    values[flat] = None
    return values


def _second(stamp: Any) -> int:
    try:
        found = datetime.fromisoformat(stamp)
    except (TypeError, ValueError):
        kind = "nothing" if stamp is None else "something else"
        raise PermanentError(f"a row needs SystemModstamp as ISO 8601, found {kind}: select it", field="SystemModstamp") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
