"""A Write as bytes and back: the one place that knows how a record of `writes.<target>` looks on the wire. Pure.

The format may gain fields; none may change its meaning, because seven days of writes outlive a deployment.
"""

from typing import Any, Literal

import msgspec
import orjson

from models.write import OnDelete, Op, Write

Json = msgspec.Raw
"""A JSON value as text: read by who must look into it, passed on by everybody else."""
NULL = Json(b"null")


def read_json(json: Json) -> Any:
    """What the text says. Raises ValueError for numbers that no float holds."""
    return orjson.loads(memoryview(json))


def write_json(value: Any) -> Json:
    """The text, with sorted keys: of equal values it is equal."""
    return Json(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


class WireWrite(msgspec.Struct, kw_only=True, gc=False):
    """A Write as a writer reads it: each field as in models/write.py, but `body` and `left` unread (NULL where there is none)."""

    op: Literal["write", "release"]
    route: str
    object: str
    key: str
    source: str
    order: int
    revision: int
    on_delete: OnDelete
    body: Json = NULL
    successor: str | None = None
    then: "WireWrite | None" = None
    renamed_from: str | None = None
    left: Json = NULL
    reason: str = "live"
    run: str | None = None
    version: int = 0
    keeps: tuple[str, ...] = ()
    always: bool = False
    election: int = 0
    unique: str = ""
    position: int | None = None
    committed: int | None = None
    received: int | None = None

    @property
    def kafka_key(self) -> bytes:
        """As `Write.kafka_key`."""
        return f"{self.object}|{self.key}".encode()

    def whole(self) -> Write:
        """With its body read. Raises ValueError for numbers that no float holds."""
        fields = msgspec.structs.asdict(self)
        fields |= {"op": Op(self.op), "body": read_json(self.body), "left": read_json(self.left)}
        fields["then"] = None if self.then is None else self.then.whole()
        return Write(**fields)


OBJECT = ord("{")
_decoder = msgspec.json.Decoder(WireWrite)


class WriteFormatError(ValueError):
    """These bytes are not a Write: a dead letter of the writer."""


def encode_write(write: Write) -> bytes:
    """JSON with sorted keys, absent where None or False. Raises TypeError for what JSON cannot hold (numbers beyond 64 bits)."""
    return orjson.dumps(_plain(write), option=orjson.OPT_SORT_KEYS)


def decode_write(raw: bytes | None) -> WireWrite:
    """Read back. Raises WriteFormatError naming what is wrong; never quotes the body."""
    if raw is None:
        raise WriteFormatError("the record has no value: nothing of ours writes such a record; look who else writes to this topic")
    try:
        if not raw.isascii():
            raw.decode()  # of what it does not read the decoder does not look at the characters
        write = _decoder.decode(raw)
    except UnicodeDecodeError as error:
        raise WriteFormatError(f"not UTF-8 (byte {error.start}): look who else writes to this topic") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise WriteFormatError(f"not a write ({str(error)[:200]}): look who else writes to this topic") from None
    _check(write)
    if (then := write.then) is not None:
        if write.op == "write" or then.then is not None:
            raise WriteFormatError("only a release carries a write that follows it, and only one")
        _check(then)
    return write


def _check(write: WireWrite) -> None:
    if write.body != NULL if write.op == "release" else memoryview(write.body)[0] != OBJECT:
        raise WriteFormatError("a write has a body that is an object, a release has none")


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
    if write.version:
        plain["version"] = write.version
    if write.keeps:
        plain["keeps"] = write.keeps
    if write.always:
        plain["always"] = True
    if write.election:
        plain["election"] = write.election
    if write.unique:
        plain["unique"] = write.unique
    for name in ("successor", "renamed_from", "run", "position", "committed", "received"):
        if (value := getattr(write, name)) is not None:
            plain[name] = value
    if write.left is not None:
        plain["left"] = write.left
    if write.then is not None:
        plain["then"] = _plain(write.then)
    return plain
