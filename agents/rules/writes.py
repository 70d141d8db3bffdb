"""A Write as bytes and back: the one place that knows how a record of `writes.<target>` looks on the wire. Pure.

The format may gain fields; none may change its meaning, because seven days of writes outlive a deployment.
"""

from typing import Any

import orjson

from models.write import Op, Write

_REQUIRED = {"op": str, "route": str, "object": str, "key": str, "source": str, "order": int, "revision": int, "on_delete": str}
_OPTIONAL = {
    "successor": str,
    "renamed_from": str,
    "reason": str,
    "run": str,
    "always": bool,
    "position": int,
    "committed": int,
    "received": int,
}
_FIELDS = _REQUIRED | _OPTIONAL
_OPS = {op.value: op for op in Op}
_ON_DELETE = frozenset({"tombstone", "delete", "mark", "ignore"})


class WriteFormatError(ValueError):
    """These bytes are not a Write: a dead letter of the writer."""


def encode_write(write: Write) -> bytes:
    """JSON with sorted keys, absent where None or False. Raises TypeError for what JSON cannot hold (numbers beyond 64 bits)."""
    return orjson.dumps(_plain(write), option=orjson.OPT_SORT_KEYS)


def decode_write(raw: bytes | None) -> Write:
    """Read back. Raises WriteFormatError naming what is wrong; never quotes the body."""
    if raw is None:
        raise WriteFormatError("the record has no value: nothing of ours writes such a record; look who else writes to this topic")
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise WriteFormatError(f"not JSON ({error.msg} at byte {error.pos}): look who else writes to this topic") from None
    return _write(found)


def _plain(write: Write) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "op": write.op,
        "route": write.route,
        "object": write.object,
        "key": write.key,
        "source": write.source,
        "order": write.order,
        "revision": write.revision,
        "on_delete": write.on_delete,
        "reason": write.reason,
    }
    if write.body is not None:
        plain["body"] = write.body
    if write.always:
        plain["always"] = True
    for name in ("successor", "renamed_from", "run", "position", "committed", "received"):
        if (value := getattr(write, name)) is not None:
            plain[name] = value
    if write.then is not None:
        plain["then"] = _plain(write.then)
    return plain


def _write(found: Any, *, nested: bool = False) -> Write:
    if not isinstance(found, dict):
        raise WriteFormatError(f"a write is a JSON object, not {type(found).__name__}")
    fields = {name: value for name, value in found.items() if value is not None and name in _FIELDS}
    for name, value in fields.items():
        if type(value) is not (kind := _FIELDS[name]):
            raise WriteFormatError(f"field {name!r} of a write must be of type {kind.__name__}, not {type(value).__name__}")
    if not fields.keys() >= _REQUIRED.keys():
        name, kind = next((name, kind) for name, kind in _REQUIRED.items() if name not in fields)
        raise WriteFormatError(f"field {name!r} of a write must be of type {kind.__name__}, not NoneType")
    if (op := _OPS.get(found["op"])) is None:
        raise WriteFormatError(f"unknown op {str(found['op'])[:20]!r}: write or release")
    fields["op"] = op
    if fields["on_delete"] not in _ON_DELETE:
        raise WriteFormatError(f"unknown on_delete {str(fields['on_delete'])[:20]!r}: one of {', '.join(sorted(_ON_DELETE))}")
    body = found.get("body")
    if (op is Op.WRITE) != isinstance(body, dict) or (body is not None and not isinstance(body, dict)):
        raise WriteFormatError("a write has a body that is an object, a release has none")
    then = found.get("then")
    if then is not None and (op is Op.WRITE or nested):
        raise WriteFormatError("only a release carries a write that follows it, and only one")
    return Write(**fields, body=body, then=None if then is None else _write(then, nested=True))
