"""What a writer decides before it calls a target: which write is stale, whose body wins under a key, which turn it is. Pure.

The writer keeps one `Delivered` per target key and asks `apply` for every record of `writes.<target>`, in order; it may apply several
and call once, with the last decision that has a call. `wrote` tells what the target was made to hold.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from models.errors import FatalError
from models.write import Body, OnDelete, Op, Write

FORMAT = 1
GONE = "-"
"""Fingerprint of a key for which nobody speaks."""

Lane = Literal["live", "bulk"]


@dataclass(slots=True)
class Held:
    """The last write of one source record through one route. `body` None: released, the revision still guards."""

    source: str
    route: str
    order: int
    revision: int
    body: Body | None
    position: int | None = None
    committed: int | None = None
    received: int | None = None
    reason: str = "live"


@dataclass(slots=True)
class Delivered:
    """State of one target key.

    held           by "<route>|<source>"
    live, bulk     last offset recorded of each lane's topic, -1 before the first
    written        turn last written; `fingerprint` of what was written then, None when not known
    id             the target's own id
    image          what the target may hold of ours: the body last written, or only the paths (see `may_hold`); None: nothing is known
    """

    held: dict[str, Held] = field(default_factory=dict)
    live: int = -1
    bulk: int = -1
    written: int = -1
    fingerprint: str | None = None
    id: str | None = None
    image: Body | None = None

    @property
    def turn(self) -> int:
        """Only grows: both lanes' offsets, counted from 1."""
        return self.live + self.bulk + 2

    def winner(self) -> Held | None:
        """Who speaks for the key: order in the route's `from:`, then the lowest source, then the latest revision."""
        if len(self.held) == 1:
            (only,) = self.held.values()
            return only if only.body is not None else None
        speaking = [held for held in self.held.values() if held.body is not None]
        return min(speaking, key=lambda h: (h.order, h.source, -h.revision, h.route), default=None)

    def same(self) -> bool:
        """The target was last made to hold exactly what it should hold now."""
        won = self.winner()
        return self.fingerprint is not None and self.fingerprint == fingerprint(won.body if won else None)

    @property
    def stands(self) -> bool:
        """The target confirmed a body under this key that nothing has removed since."""
        return self.fingerprint not in (None, GONE)

    def wrote(self, turn: int, body: Body | None, *, id: str | None = None, kept: bool = False) -> None:
        """The target confirmed `body` (None: removed) at `turn`. `kept`: what was removed still holds its fields, it is only marked."""
        self.written, self.fingerprint = turn, fingerprint(body)
        self.image = self.image if kept else body
        self.id = id if id is not None or body is None else self.id

    def may_hold(self, body: Body | None) -> None:
        """`body` may have reached the target: how a call ended is not known, or a chunk that a crash left unfinished made it."""
        if body is not None:
            self.image = _paths(self.image, body)

    def unknown(self) -> None:
        """The call failed for good: the next write is made whatever it holds."""
        self.fingerprint = None

    def encode(self) -> bytes:
        """As a value of the table `delivered`."""
        won = self.winner()
        shared = won is not None and self.image is not None and (self.image is won.body or self.image == won.body)
        return orjson.dumps(
            {
                "f": FORMAT,
                "h": [
                    [h.source, h.route, h.order, h.revision, h.body, h.position, h.committed, h.received, h.reason]
                    for h in self.held.values()
                ],
                "o": [self.live, self.bulk],
                "w": self.written,
                "p": self.fingerprint,
                "id": self.id,
                "i": True if shared else self.image,
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def decode(cls, raw: bytes | None) -> "Delivered":
        """Read back; None is a key never seen. Raises FatalError: a state that cannot be read must not be guessed."""
        if raw is None:
            return cls()
        try:
            found: dict[str, Any] = orjson.loads(raw)
            if found["f"] != FORMAT:
                raise FatalError(f"table delivered holds format {found['f']}, this version reads {FORMAT}: start the version that wrote it")
            held = {f"{row[1]}|{row[0]}": Held(*row) for row in found["h"]}
            live, bulk = found["o"]
            state = cls(held, live, bulk, found["w"], found["p"], found["id"])
            won = state.winner()
            state.image = won.body if found["i"] is True and won else found["i"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise FatalError(f"a value of table delivered cannot be read ({type(error).__name__}): rebuild it from its changelog") from None
        return state


@dataclass(slots=True)  # not frozen: see models/write.py
class Decision:
    """What one record of `writes.<target>` asks for.

    call        False: nothing is to be done at the target (a delete that the route ignores). A stale write calls too, with what stands: it
                may have reached the target in a chunk that a crash left unfinished, and then a later write of the other lane was
                below its turn, or was skipped as equal to what the target no longer held
    stale       a later revision of this source record stands: outcome "stale"
    turn        of this call
    winner      what the target shall hold; None: nobody speaks for the key, then `on_delete` says what to do
    rename_to   the target renames its record to this key instead (only where it can)
    """

    call: bool
    stale: bool
    turn: int
    winner: Held | None
    on_delete: OnDelete
    rename_to: str | None = None

    @property
    def body(self) -> Body | None:
        """Body of the winner."""
        return self.winner.body if self.winner else None


def apply(state: Delivered, write: Write, lane: Lane, offset: int, *, routes: Collection[str] | None = None) -> Decision:
    """Record `write`, read at `offset` of `lane`, in `state`, and say what the target is to be told.

    routes   names of the target's routes in the flow as it is now: what others wrote no longer speaks. None: all speak.
    """
    if lane == "live":
        state.live = max(state.live, offset)
    else:
        state.bulk = max(state.bulk, offset)
    if routes is not None and any(held.route not in routes for held in state.held.values()):
        state.held = {name: held for name, held in state.held.items() if held.route in routes}
    name = f"{write.route}|{write.source}"
    before = state.held.get(name)
    stale = before is not None and write.revision < before.revision
    if not stale:
        body = write.body if write.op is Op.WRITE else None
        state.held[name] = Held(
            write.source, write.route, write.order, write.revision, body, write.position, write.committed, write.received, write.reason
        )
    if write.renamed_from is not None:
        # What stood there still stands where the key was taken already; else what was renamed does, whoever speaks for the key now.
        state.may_hold(write.body)
        state.unknown()
    won = state.winner()
    # Where nothing of ours stands, whatever is there came by the rename of another record, whose own write is still to come.
    rename = write.successor if write.then is not None and won is None and not stale and state.stands else None
    # `ignore` keeps what the source deleted; a record that only has another key now is not deleted, its old row is.
    kept = write.on_delete == "ignore" and write.successor is None
    return Decision(won is not None or rename is not None or not kept, stale, state.turn, won, write.on_delete, rename)


def _paths(*bodies: Body | None) -> Body:
    """An image of which only the paths are known: those of all bodies, nulls included."""
    found: Body = {}
    for body in bodies:
        for name, value in (body or {}).items():
            if isinstance(value, dict):
                held = found.get(name)
                found[name] = _paths(held if isinstance(held, dict) else None, value)
            else:
                found.setdefault(name, True)
    return found


def fingerprint(body: Body | None) -> str:
    """Of what a target shall hold: equal bodies have equal fingerprints."""
    if body is None:
        return GONE
    return hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS), digest_size=10).hexdigest()
