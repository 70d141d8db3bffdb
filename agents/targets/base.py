"""What a target is: the contract every file of this folder fulfils and the conformance suite tests.

A target knows its own wire and nothing of Kafka, Faust, merge or revisions. It raises; the writer's guard catches. A target is found by
its file name: agents/targets/<type>.py holds one class named `Target` that fulfils the protocol below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from agents.rules.takes import Takes
from agents.rules.writes import Json, read_json
from models.write import Body, OnDelete, WriteResult

ColumnType = Literal["text", "number", "boolean", "date", "datetime", "json"]
Columns = Mapping[str, ColumnType]
"""Top-level fields of a mapped body and their types, from the map."""


class Options(BaseModel):
    """Base of a target's own options in the flow file: unknown keys are mistakes. Secrets are SecretStr."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Meta(Protocol):
    """Where a record comes from: attributes of a write, see models/write.py."""

    @property
    def source(self) -> str: ...
    @property
    def route(self) -> str: ...
    @property
    def revision(self) -> int: ...
    @property
    def position(self) -> int | None: ...
    @property
    def committed(self) -> int | None: ...
    @property
    def received(self) -> int | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def election(self) -> int: ...
    @property
    def unique(self) -> str: ...


@dataclass(slots=True, kw_only=True)  # not frozen: see models/write.py
class Effect:
    """What the target shall hold under one key; at most one per key in a batch, compared after the target's own normalising.

    json        the whole record (`body` is the same, read), or None: nobody speaks for this key any longer, see `on_delete`
    turn        grows per key; a target that can compare applies it only when it is not below the one it holds
    was         body last written as far as we know (None: nothing, or unknown); `image` is the same, read
    id          the target's own id from an earlier result
    rename_to   the key this one becomes (body is None); in a target with `renames` the old record is renamed, data follows in its own write
    meta        for columns that people read; `election`, `unique`: who of a group of duplicates may hold a value (see models/write.py)
    """

    object: str
    key: str
    json: Json | None
    turn: int
    on_delete: OnDelete
    meta: Meta
    was: Json | None = None
    id: str | None = None
    rename_to: str | None = None

    @property
    def body(self) -> Body | None:
        """`json`, read anew each time."""
        return None if self.json is None else read_json(self.json)

    @property
    def image(self) -> Body | None:
        """`was`, read anew each time."""
        return None if self.was is None else read_json(self.was)


def cleared(old: Body, new: Body) -> Body:
    """`new`, with null for what only `old` has: in an object for each field of ours, so that what others keep there stays."""
    result = dict(new)
    for name, was in old.items():
        now = new.get(name)
        if isinstance(was, dict) and was and (isinstance(now, dict) or name not in new):
            result[name] = cleared(was, now or {})
        elif name not in new and was is not None and was != {}:
            result[name] = None
    return result


class TargetLike(Protocol):
    """The protocol. The constructor takes (name, options, installation) and does no I/O.

    batch_records, batch_bytes   the most one `write` may hold
    requests_per_second          of the whole project, None = no limit; the writer shares it out over workers
    compares                     True: applies a turn atomically (PostgreSQL)
    renames                      True: a changed key renames the record instead of deleting it
    key_field                    field of the mapped body that is the target's own identifier ("email"); None: `key:` or connection/id
    default_object               object when neither route nor map names one
    """

    options_class: type[Options]
    batch_records: int
    batch_bytes: int
    requests_per_second: float | None
    compares: bool
    renames: bool
    key_field: str | None
    default_object: str | None

    def __init__(self, name: str, options: Any, installation: str) -> None: ...

    async def start(self, objects: Mapping[str, Columns]) -> None:
        """Connect, check rights, make and extend what the maps need. Raises PausedError, TemporaryError, FatalError."""
        ...

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        """Apply; one result per effect, in order. For the whole batch raises TemporaryError, PausedError or PermanentError (then split)."""
        ...

    async def probe(self) -> None:
        """A cheap call that raises as `write` would: is the target back?"""
        ...

    async def close(self) -> None: ...

    def alone(self, effect: Effect) -> float | None:
        """None: goes into a batch. Else the effect takes a call of its own, which costs this part of one of `requests_per_second`. Pure."""
        ...

    @staticmethod
    def refusal(name: str) -> str | None:
        """Why a body cannot have a top-level field of this name, None when it can. Pure."""
        ...

    def same_key(self, object: str, key: str) -> str:
        """The key after the target's own normalising (trim, lower-case mail): used before the Kafka key is made. Pure."""
        ...


@runtime_checkable
class Describing(Protocol):
    """What a target may do beside, for gates; of one that does not, nothing is known until it refuses something."""

    async def describe(self, object: str) -> Mapping[str, Takes]:
        """By path in a body what the field takes; what is not said is not there. Raises as `write` does. Asked twice a minute."""
        ...


Fault = Literal["missing", "changed", "deleted"]
"""What is wrong with a key: it is not there, holds something else, or is marked as deleted."""


@runtime_checkable
class Comparing(Protocol):
    """What a target may do beside, for `headrace verify`. Raises as `write` does."""

    async def differing(self, object: str, expected: Mapping[str, Body]) -> Mapping[str, Fault]:
        """Which of these keys do not hold their body, converted as `write` converts it. Within the target's rate."""
        ...


@runtime_checkable
class Listing(Protocol):
    """The same, for what nobody speaks for."""

    async def standing(self, object: str, after: str, until: str | None = None) -> Sequence[str]:
        """The next keys behind `after`, below `until`, that stand and are not marked as deleted, by their code points; none at the end."""
        ...


@runtime_checkable
class Hashing(Protocol):
    """The same for many keys at once: a range of keys whose hash is as it should be needs no other look."""

    async def hashes(self, object: str, bounds: Sequence[str]) -> Sequence[tuple[int, int]]:
        """Of the keys that stand below the first bound, from each bound to the next, from the last on: how many, their hashes summed.

        Bounds come in the order of their code points.
        """
        ...

    def hash_of(self, object: str, key: str, body: Body) -> int:
        """The hash of a key that holds this body, after `hashes`. Pure. One that is wrong costs a look, no more."""
        ...
