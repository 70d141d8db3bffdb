"""The merge: what is known of a source record, value by value, whatever order its events and rows arrive in. Pure, idempotent.

Versions are kept as a base and exceptions to it: most values of a record come from one row or CREATE. A path may have a version and no
value: it changed to something we were not told, so nothing older may fill it, and the record is read again.
"""

from collections.abc import Collection
from typing import Any, Literal

import orjson
from msgspec import Struct, convert, field
from msgspec.json import Decoder, Encoder
from msgspec.structs import replace

from agents.rules.compound import FULL_NAME, apply_diff, full_name
from agents.rules.identity import Keys
from agents.rules.message import Message
from agents.rules.plan import Plan
from agents.rules.versions import EVENT, Version, wins
from models.errors import FatalError

FORMAT = 2
_SHORT = {
    "values": "v", "base": "b", "exceptions": "x", "deleted": "d", "deleted_version": "D", "live": "l", "bulk": "L", "high": "h",
    "keys": "k", "position": "p", "committed": "c", "received": "r", "plan": "m", "blind": "B", "maps": "M",
}  # fmt: skip
"""Names of a state's fields in the table; absent where they are the default."""
FIXED = frozenset({"Id", "IsDeleted"})
"""Always known, never merged: what is emitted is not deleted."""
Lane = Literal["live", "bulk"]


class RecordState(Struct, tag_field="f", tag=FORMAT, omit_defaults=True, rename=_SHORT.get):
    """Value of the table `records`.

    values      what is known, by SOQL path; "Id" is always there
    base        version of every value that has no exception
    exceptions  versions of the others, and of paths whose value is not known
    live, bulk  last offset seen of each in-topic, -1 before the first
    high        (epoch, position) of the last event seen
    keys        by route the target key last emitted and those left since
    position, committed, received   of the last message that told something new; for people
    plan, maps  print of the plan it was merged by last, and the highest version of one
    blind       (epoch, position) up to which events may have told of paths that were not followed then
    """

    values: dict[str, Any] = field(default_factory=dict)
    base: Version | None = None
    exceptions: dict[str, Version] = field(default_factory=dict)
    deleted: bool = False
    deleted_version: Version | None = None
    live: int = -1
    bulk: int = -1
    high: tuple[int, int] = (0, -1)
    keys: dict[str, Keys] = field(default_factory=dict)
    position: int | None = None
    committed: int | None = None
    received: int | None = None
    plan: str = ""
    maps: int = 0
    blind: tuple[int, int] = (0, -1)

    @property
    def revision(self) -> int:
        """Only grows: both lanes' offsets, counted from 1."""
        return self.live + self.bulk + 2

    def version(self, path: str) -> Version | None:
        """Version of a value, or of its absence; None when nothing was ever said of it."""
        return self.exceptions.get(path) or (self.base if path in self.values else None)

    def knows(self, paths: frozenset[str]) -> bool:
        """Whether all are known."""
        return paths <= self.values.keys()

    def fork(self) -> "RecordState":
        """A copy to merge into: what fails half-way leaves nothing behind. (Values themselves are never changed in place.)"""
        return replace(self, values=self.values.copy(), exceptions=self.exceptions.copy(), keys=self.keys.copy())

    def encode(self) -> bytes:
        """As JSON."""
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, raw: bytes | None, record_id: str) -> "RecordState":
        """Read back; None is a record never seen. Raises FatalError: a state that cannot be read must not be guessed."""
        if raw is None:
            return cls({"Id": record_id, "IsDeleted": False})
        try:
            return _DECODER.decode(raw) if raw.startswith(_BEGIN) else _first_format(orjson.loads(raw))
        except (ValueError, KeyError, TypeError) as error:
            raise FatalError(f"a value of table records cannot be read ({type(error).__name__}): rebuild it from its changelog") from None


_ENCODER, _DECODER = Encoder(), Decoder(RecordState)
_BEGIN = b'{"f":%d,' % FORMAT


def _first_format(found: dict[str, Any]) -> RecordState:
    """A state as it was written before format 2: values outlive a deployment."""
    if found["f"] != 1:
        raise FatalError(f"table records holds format {found['f']}, this version reads up to {FORMAT}: start the version that wrote it")
    (live, bulk), (position, committed, received) = found["o"], found["m"]
    state = {name: found[name] for name in "vbxdDhk"} | {"l": live, "L": bulk, "p": position, "c": committed, "r": received}
    return convert(state, RecordState)


class Merged(Struct):
    """What a message did to a record.

    changed    paths whose value is another one now, or became known or unknown; "" stands for `deleted`
    moved      something has a newer version now, though perhaps the same value
    advanced   an event at a higher position than any before
    redelivery seen before: at or below the last offset of its in-topic
    late       an UPDATE newer than the standing DELETE: the record must be read again
    """

    changed: set[str]
    moved: bool = False
    advanced: bool = False
    redelivery: bool = False
    late: bool = False


def merge(state: RecordState, message: Message, plan: Plan, lane: Lane, offset: int) -> Merged:
    """Merge one message, read at `offset` of `lane`, into `state` (in place)."""
    done = Merged(set())
    if state.plan != plan.print:
        _replan(state, plan)
    state.maps = max(state.maps, plan.version)
    if lane == "live":
        done.redelivery, state.live = offset <= state.live, max(offset, state.live)
    else:
        done.redelivery, state.bulk = offset <= state.bulk, max(offset, state.bulk)
    if (version := message.version) is None:
        return done
    if plan.hook:
        _replace(state, message, version, done)
    else:
        if version[0] == EVENT and version[1:3] > state.high:
            state.high, done.advanced = (version[1], version[2]), True
        _merge_deleted(state, message, version, done)
        _merge_values(state, message, version, plan, done)
    if done.moved or done.advanced or state.received is None:
        state.committed = message.committed
        if message.position is not None:
            state.position = message.position
    return done


def _replan(state: RecordState, plan: Plan) -> None:
    """Another plan than last time (a map was changed): what it does not follow is forgotten, because a change of it would not be noticed.

    Of what it follows and the last one did not, something may have been told and passed over, up to here: only what was said or read later
    than that may speak for it.
    """
    state.values = {path: value for path, value in state.values.items() if path in plan.followed}
    state.exceptions = {path: version for path, version in state.exceptions.items() if path in plan.followed}
    state.plan, state.blind = plan.print, state.high


def _replace(state: RecordState, message: Message, version: Version, done: Merged) -> None:
    if state.base is not None and not wins(version, state.base):
        return
    before = state.values
    values = {"Id": before["Id"], **message.values}
    done.changed = {
        path for path in before.keys() | values.keys() if path != "IsDeleted" and before.get(path, done) != values.get(path, done)
    }
    if state.base is None:
        done.changed.add("")
    done.moved = version != state.base
    state.values, state.base = values, version


def _merge_deleted(state: RecordState, message: Message, version: Version, done: Merged) -> None:
    if message.deleted is None and not (message.update and state.deleted):
        return
    if state.deleted_version is not None and not wins(version, state.deleted_version):
        return
    if message.deleted is None:
        done.late = True
        return
    if state.deleted != message.deleted:
        done.changed.add("")
    done.moved |= state.deleted_version != version
    state.deleted, state.deleted_version = message.deleted, version


def _merge_values(state: RecordState, message: Message, version: Version, plan: Plan, done: Merged) -> None:
    values, exceptions, base = state.values, state.exceptions, state.base
    sees = version[1:3] >= state.blind
    spoken = message.values
    if message.diffs:
        spoken = dict(spoken)
        for path, diff in message.diffs.items():
            text = apply_diff(held, diff) if isinstance(held := values.get(path), str) else None
            if text is not None:
                spoken[path] = text
            elif _newer(state, path, version) and state.version(path) != version:
                _forget(state, path, version, done)
    for path, value in spoken.items():
        old = exceptions.get(path)
        if old is None and path in values:
            old = base
        if sees if old is None else version == old or wins(version, old):
            if path not in values or values[path] != value:
                done.changed.add(path)
                if path in plan.through:
                    _follow(state, plan.through[path], value, version, message, done)
            done.moved |= version != old
            values[path] = value
            exceptions[path] = version
    for path in message.unknown:
        if _newer(state, path, version) and state.version(path) != version:
            _forget(state, path, version, done)
    for path, value in message.fills.items():
        if path not in values and state.version(path) != version and _newer(state, path, version):
            values[path], exceptions[path] = value, version
            done.changed.add(path)
            done.moved = True
    if plan.named and version[0] == EVENT and "Name" not in spoken and not done.changed.isdisjoint(FULL_NAME):
        _derive_name(state, version, done)
    if message.whole:
        _rebase(state, version)


def _newer(state: RecordState, path: str, version: Version) -> bool:
    old = state.version(path)
    return version[1:3] >= state.blind if old is None else wins(version, old)


def _forget(state: RecordState, path: str, version: Version, done: Merged) -> None:
    """It changed, to what is not known: nothing older may speak for it."""
    if path in state.values or path not in state.exceptions:  # known until now, or nothing was ever said of it
        done.changed.add(path)
    state.values.pop(path, None)
    state.exceptions[path] = version
    done.moved = True


def _follow(state: RecordState, paths: Collection[str], key: Any, version: Version, message: Message, done: Merged) -> None:
    """The relationship leads to another record (or to none) now: what was read through it is not true any longer."""
    for path in paths:
        if path in message.values or not _newer(state, path, version):
            continue
        if key is None:
            if state.values.get(path, done) is not None:
                done.changed.add(path)
            state.values[path], state.exceptions[path] = None, version
        else:
            _forget(state, path, version, done)


def _derive_name(state: RecordState, version: Version, done: Merged) -> None:
    """`Name` after a part of it changed, where the parts that only some orgs have are known or were seen to be empty."""
    values = state.values
    if not _newer(state, "Name", version):
        return
    if all(part in values for part in FULL_NAME):
        name = full_name(values)
        if values.get("Name", done) != name:
            done.changed.add("Name")
        values["Name"], state.exceptions["Name"] = name, version
    else:
        _forget(state, "Name", version, done)


def _rebase(state: RecordState, version: Version) -> None:
    """Most values have this version now: make it the base."""
    if (old := state.base) == version:
        return
    values, exceptions = state.values, state.exceptions
    if old is not None:
        for path in values:
            if path not in FIXED:
                exceptions.setdefault(path, old)
    state.base = version
    state.exceptions = {path: held for path, held in exceptions.items() if held != version or path not in values}
