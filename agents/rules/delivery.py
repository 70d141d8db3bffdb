"""What a writer decides before it calls a target: which write is stale, what stands under a key, which turn it is. Pure.

The writer keeps one `Delivered` per target key and asks `apply` for every record of `writes.<target>`, in order; it may apply several
and call once, with the last decision that has a call. `wrote` tells what the target was made to hold.

Versions of maps. A write says which version of its route's map shaped it. One of a lower version than the writer applies for the
route, or than what the key holds of it, is refused (`outdated`) whatever its revision or turn: for a moment process may have shaped a later
event by the older map, in another worker. It is not lost: the writer sends its source record through the in-topic again, for this route
only, and process emits it as it is known by then, shaped anew. Two kinds are never refused so. A release has no shape, and whoever made it
may have forgotten the key left. A platform event is kept nowhere, so nothing could shape it anew: it is applied as it is, and is a dead
letter only where it would overwrite a newer shape under its key. For the target, a refused write is a stale one: what stands is told again,
for a chunk that a crash left unfinished may have written it, and what it would have left there is cleared.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import orjson

from agents.rules.writes import NULL, Json, WireWrite, read_json, write_json
from models.errors import FatalError
from models.write import Body, OnDelete, at_path

FORMAT = 3
"""1 was an object, with a fingerprint in the place of `stood`; in 2 the winner alone said what stands under a key."""
GONE = Json(b'"-"')
"""What stood last at a key for which nobody speaks."""
SAME = Json(b"true")
"""In a value of the table: the same as what should stand."""

Lane = Literal["live", "bulk"]


class Held(msgspec.Struct, array_like=True, gc=False):
    """The last write of one source record through one route. `body` NULL: released, the revision still guards."""

    source: str
    route: str
    order: int
    revision: int
    body: Json
    position: int | None
    committed: int | None
    received: int | None
    reason: str
    election: int = 0
    version: int = 0
    unique: str = ""

    @property
    def speaks(self) -> bool:
        """It has a body: it was not released."""
        return self.body != NULL


class Delivered(msgspec.Struct, array_like=True):
    """State of one target key, and in this order its value in the table.

    held           one of each source record and route
    live, bulk     last offset recorded of each lane's topic, -1 before the first
    written        turn last written; `stood` is what was written then, GONE, or NULL when not known
    id             the target's own id
    image          what the target may hold of ours: the body last written, or only the paths (see `may_hold`); NULL: nothing is known
    """

    format: int
    held: list[Held]
    live: int
    bulk: int
    written: int
    stood: Json
    id: str | None
    image: Json

    @property
    def turn(self) -> int:
        """Only grows: both lanes' offsets, counted from 1."""
        return self.live + self.bulk + 2

    def winner(self) -> Held | None:
        """Who decides under the key."""
        if len(self.held) == 1:
            return self.held[0] if self.held[0].speaks else None
        return min((held for held in self.held if held.speaks), key=_rank, default=None)

    def body(self) -> Json:
        """What should stand: the winner's body, and where that says nothing, not even null, what the next one says. NULL: nobody speaks."""
        if len(self.held) == 1:
            return self.held[0].body if self.held[0].speaks else NULL
        speaking = sorted((held for held in self.held if held.speaks), key=_rank)
        if not speaking:
            return NULL
        first, *others = speaking
        whole = read_json(first.body)
        filled = [_fill(whole, read_json(other.body)) for other in others]
        return write_json(whole) if any(filled) else first.body

    def same(self) -> bool:
        """The target was last made to hold exactly what it should hold now."""
        body = self.body()
        return self.stood == (GONE if body == NULL else body)

    @property
    def stands(self) -> bool:
        """The target confirmed a body under this key that nothing has removed since."""
        return self.stood not in (NULL, GONE)

    def wrote(self, turn: int, body: Json | None, *, id: str | None = None, kept: bool = False) -> None:
        """The target confirmed `body` (None: removed) at `turn`. `kept`: what was removed still holds its fields, it is only marked."""
        self.written, self.stood = turn, GONE if body is None else body
        if not kept:
            self.image = NULL if body is None else body
        if id is not None or body is None:
            self.id = id

    def may_hold(self, body: Json | None) -> None:
        """`body` may have reached the target: how a call ended is not known, or a chunk that a crash left unfinished made it."""
        if body is not None and body != NULL:
            self.image = write_json(_paths(read_json(self.image), read_json(body)))

    def unknown(self) -> None:
        """The call failed for good: the next write is made whatever it holds."""
        self.stood = NULL

    def encode(self) -> bytes:
        """As a value of the table `delivered`."""
        body = self.body()
        stood = SAME if self.stood == body != NULL else self.stood
        image = SAME if self.image == body != NULL else self.image
        return _encoder.encode((FORMAT, self.held, self.live, self.bulk, self.written, stood, self.id, image))

    @classmethod
    def decode(cls, raw: bytes | None) -> "Delivered":
        """Read back; None is a key never seen. Raises FatalError: a state that cannot be read must not be guessed."""
        if raw is None:
            return cls(FORMAT, [], -1, -1, -1, NULL, None, NULL)
        try:
            state: Delivered = _first_format(orjson.loads(raw)) if raw[:1] == b"{" else _decoder.decode(raw)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise FatalError(f"a value of table delivered cannot be read ({type(error).__name__}): rebuild it from its changelog") from None
        if state.format not in (2, FORMAT):
            raise FatalError(
                f"table delivered holds format {state.format}, this version reads 1 to {FORMAT}: start the version that wrote it"
            )
        if SAME in (state.stood, state.image):
            won = state.winner()
            body = state.body() if state.format == FORMAT else NULL if won is None else won.body
            state.stood = body if state.stood == SAME else state.stood
            state.image = body if state.image == SAME else state.image
        state.format = FORMAT
        return state


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Delivered)


def _first_format(found: dict[str, Any]) -> Delivered:
    """A value of format 1. It kept a fingerprint of what stood, which says no more than whether that was the winner's body."""
    if found["f"] != 1:
        raise FatalError(f"table delivered holds format {found['f']}, this version reads 1 to {FORMAT}: start the version that wrote it")
    row = [2, found["h"], *found["o"], found["w"], found["p"], found["id"], found["i"]]
    state = _decoder.decode(orjson.dumps(row, option=orjson.OPT_SORT_KEYS))
    won = state.winner()
    if won is not None and found["p"] == hashlib.blake2b(bytes(won.body), digest_size=10).hexdigest():
        state.stood = SAME
    return state


@dataclass(slots=True)  # not frozen: see models/write.py
class Decision:
    """What one record of `writes.<target>` asks for.

    call        False: nothing is to be done at the target (a delete that the route ignores). A stale write calls too, with what stands: it
                may have reached the target in a chunk that a crash left unfinished, and then a later write of the other lane was
                below its turn, or was skipped as equal to what the target no longer held
    stale       a later revision of this source record stands: outcome "stale"
    turn        of this call
    winner      who decides under the key; None: nobody speaks for it, then `on_delete` says what to do
    body        what the target shall hold then
    rename_to   the target renames its record to this key instead (only where it can)
    """

    call: bool
    stale: bool
    turn: int
    winner: Held | None
    body: Json | None
    on_delete: OnDelete
    rename_to: str | None = None


def apply(
    state: Delivered, write: WireWrite, lane: Lane, offset: int, *, routes: Collection[str] | None = None, refused: bool = False
) -> Decision:
    """Record `write`, read at `offset` of `lane`, in `state`, and say what the target is to be told.

    routes    names of the target's routes in the flow as it is now: what others wrote no longer speaks. None: all speak.
    refused   it was shaped by an older map: it does not speak
    """
    if lane == "live":
        state.live = max(state.live, offset)
    else:
        state.bulk = max(state.bulk, offset)
    place, others = None, False
    for n, held in enumerate(state.held):
        if held.source == write.source and held.route == write.route:
            place = n
        others = others or (routes is not None and held.route not in routes)
    stale = refused or (place is not None and _older(write, state.held[place]))
    if refused or (stale and place is not None and write.version != state.held[place].version):
        state.may_hold(write.body)
    if not stale:
        told = write.body
        if write.keeps and place is not None and told != NULL != state.held[place].body:
            told = write_json(_kept(read_json(told), read_json(state.held[place].body), write.keeps))
        fresh = Held(
            write.source,
            write.route,
            write.order,
            write.revision,
            told,
            write.position,
            write.committed,
            write.received,
            write.reason,
            write.election,
            write.version,
            write.unique,
        )
        if place is None:
            state.held.append(fresh)
        else:
            state.held[place] = fresh
    if routes is not None and others:
        state.held = [held for held in state.held if held.route in routes]
    if write.renamed_from is not None:
        # What stood there still stands where the key was taken already; else what was renamed does, whoever speaks for the key now.
        state.may_hold(write.body)
        state.may_hold(write.left)
        state.unknown()
    won = state.winner()
    # Where nothing of ours stands, whatever is there came by the rename of another record, whose own write is still to come.
    rename = write.successor if write.then is not None and won is None and not stale and state.stands else None
    # `ignore` keeps what the source deleted; a record that only has another key now is not deleted, its old row is.
    kept = write.on_delete == "ignore" and write.successor is None
    body = state.body() if won is not None else None
    return Decision(won is not None or rename is not None or not kept, stale, state.turn, won, body, write.on_delete, rename)


def _rank(held: Held) -> tuple[int, str, int, str]:
    """The order in the route's `from:`, then the lowest source, then the latest revision."""
    return held.order, held.source, -held.revision, held.route


def _fill(body: Body, other: Body) -> bool:
    """Add what only `other` says, field by field of objects that both have; whether there was anything."""
    more = False
    for name, value in other.items():
        if name not in body:
            body[name], more = value, True
        elif isinstance(value, dict) and isinstance(held := body[name], dict):
            more = _fill(held, value) or more
    return more


def _older(write: WireWrite, held: Held) -> bool:
    """Of equal revisions one that nobody had to decide is the later: its route no longer looks for duplicates. Elections of two groups
    cannot be compared: where the route or its map now finds them by another field, what comes later is the later.
    """
    if write.revision != held.revision:
        return write.revision < held.revision
    same = write.unique == held.unique and write.version <= held.version
    return same and 0 < write.election < held.election


def outdated(state: Delivered, write: WireWrite, applied: int) -> bool:
    """Whether a write was shaped by an older map than what `applied` says is in use, or than what the key holds of its route."""
    if write.op == "release" or not write.version:
        return False
    return write.version < applied or any(write.version < held.version for held in state.held if held.route == write.route)


def _kept(body: Body, before: Body, paths: Collection[str]) -> Body:
    """`body` with what it lacks of these paths, as it was before."""
    for path in paths:
        *parents, name = path.split(".")
        held = at_path(before, (*parents, name))
        into: Any = body
        for parent in parents if held is not None else ():
            into = into.setdefault(parent, {}) if isinstance(into, dict) else None
        if held is not None and isinstance(into, dict):
            into.setdefault(name, held)
    return body


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
