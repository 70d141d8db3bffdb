"""The processing step as a good engineer writes it by hand, for the contenders that are not Headrace: parse, merge by field, map.

Each field keeps the position that set it, so late events are right. It knows no rows,
deletes, epochs or gaps: less than Headrace does.
"""

from typing import Any

import orjson

from deploy.bench.work import COLUMNS

State = dict[str, Any]
"""{"values": by field, "positions": by field}: JSON, so that a table can hold it."""
_WANTED = frozenset(COLUMNS.values()) - {"Id"}


def step(raw: bytes, id: str, state: State | None) -> tuple[State, dict[str, Any]] | None:
    """One event: the new state and the target's row; None when it says nothing new (late or a duplicate)."""
    data = orjson.loads(raw)["data"]
    payload, position = data["payload"], data["event"]["replayId"]
    if state is None:
        state = {"values": {"Id": id}, "positions": {}}
    values, positions = state["values"], state["positions"]
    changed = False
    if (name := payload.pop("Name", None)) is not None:
        payload.update(name)
    for field in _WANTED:
        if field in payload and positions.get(field, -1) < position:
            positions[field] = position
            if values.get(field, state) != payload[field]:
                values[field] = payload[field]
                changed = True
    return (state, shape(values)) if changed else None


def shape(values: dict[str, Any]) -> dict[str, Any]:
    """The target's row."""
    body = {}
    for column, field in COLUMNS.items():
        value = values.get(field)
        if type(value) is str:
            value = value.strip() or None
            if column == "email" and value is not None:
                value = value.lower()
        body[column] = value
    return body
