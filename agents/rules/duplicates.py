"""Which of the records that share a value (a mail address) stands in the target: the newest, then the lowest source. The others are held.

A group is one value of one field of one route. Each record's write joins it and the group alone says whether it is written or released; a
record whose value is another one now leaves, and then its new group (or the write itself, where it has none) speaks at a higher revision,
so what the old group once said of it is stale. Of one record and one revision the later election speaks: it only grows, and the writer
compares it, because the lanes overtake each other. Pure.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import orjson

from agents.rules.transforms import mail
from agents.rules.writes import WireWrite
from models.errors import FatalError, PermanentError
from models.write import Body, at_path

FORMAT = 1
LONGEST = 400
"""Characters of a group's name, which is part of keys; a longer value is told by its hash."""
MAIL = "email"
"""Field by which persons are the same one where the flow names none."""
MOST_MEMBERS = 5000
"""Of a group: its value is one record of the changelog."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """By which field of a body records of a route are the same one; `steps`: its path, () where `field` is all of it.

    mail   by an address, whatever its case
    """

    field: str
    steps: tuple[str, ...]
    mail: bool = False

    def group(self, body: Body) -> str | None:
        """Name of the group that a body belongs to, None where nothing stands there.

        An address is its own name. Of any other value it is a blank, with which no address begins, and JSON, which holds no control sign.
        """
        value = at_path(body, self.steps) if self.steps else body.get(self.field)
        if self.mail:
            value = mail(value) if isinstance(value, str) else None
            if value is None or (len(value) <= LONGEST and "\0" not in value):
                return value
        elif value in (None, "", [], {}):
            return None
        elif isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        name = orjson.dumps([self.field, value], option=orjson.OPT_SORT_KEYS)
        if len(name) > LONGEST:
            name = orjson.dumps([self.field, None, hashlib.blake2b(name, digest_size=16).hexdigest()])
        return f" {name.decode()}"


def grouping(field: str, *, mail: bool = False) -> Grouping:
    """By this path of the body."""
    return Grouping(field, tuple(field.split(".")) if "." in field else (), mail)


def field_of(group: str) -> str:
    """By which field a group of this name is one. Raises ValueError for what is no name."""
    return str(orjson.loads(group)[0]) if group[:1] == " " else MAIL


class Member(msgspec.Struct, array_like=True, gc=False):
    """A record of the group. `committed`: epoch ms of its last change; not `speaks`: it left, the revision still guards."""

    revision: int
    committed: int
    speaks: bool


class Group(msgspec.Struct, array_like=True):
    """Members by source; last offset recorded of each lane's topic, -1 before the first. Their writes are kept beside it."""

    format: int = FORMAT
    members: dict[str, Member] = msgspec.field(default_factory=dict)
    live: int = -1
    bulk: int = -1

    @property
    def election(self) -> int:
        """Only grows: both lanes' offsets, counted from 1."""
        return self.live + self.bulk + 2

    def winner(self) -> str | None:
        """Source of who stands for all."""
        speaking = ((-member.committed, source) for source, member in self.members.items() if member.speaks)
        return min(speaking, default=(0, None))[1]

    def encode(self) -> bytes:
        """As a value of the table `groups`."""
        return _encoder.encode(self)

    @classmethod
    def decode(cls, raw: bytes | None) -> "Group":
        """Read back. Raises FatalError: a state that cannot be read must not be guessed."""
        if raw is None:
            return cls()
        try:
            found: Group = _decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise FatalError(f"a value of table groups cannot be read ({type(error).__name__}): rebuild it from its changelog") from None
        if found.format != FORMAT:
            raise FatalError(f"table groups holds format {found.format}, this version reads {FORMAT}: start the version that wrote it")
        return found


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Group)


@dataclass(slots=True)
class Decided:
    """What a record of the topic `duplicates` made of its group.

    said     writes and releases, as (Kafka key, value) of the target's topic; releases first
    stale    a later revision of this record is known here
    again    it was seen before: everything is said once more
    winner   source of who stands for the group now; None: nobody
    before   who stood until now
    """

    said: list[tuple[bytes, bytes]]
    stale: bool
    again: bool
    winner: str | None
    before: str | None


def decide(group: Group, write: WireWrite, lane: str, offset: int, stored: Callable[[str], bytes], *, field: str = MAIL) -> Decided:
    """Record `write`, read at `offset` of `lane`, in `group`: a write joins, a release leaves. Raises PermanentError: the group is full.

    stored   gives the last write of a member that speaks, this one included
    field    by which they are the same one
    """
    if write.source not in group.members and len(group.members) >= MOST_MEMBERS:
        raise PermanentError(
            f"more than {MOST_MEMBERS:,} records have the same {field}: take `duplicates` out of the route, or clean them in the source",
            field=field,
        )
    again = offset <= (group.live if lane == "live" else group.bulk)
    if lane == "live":
        group.live = max(group.live, offset)
    else:
        group.bulk = max(group.bulk, offset)
    before, known = group.winner(), group.members.get(write.source)
    stale = known is not None and write.revision < known.revision
    if not stale:
        group.members[write.source] = Member(write.revision, write.committed or 0, write.op == "write")
    after = group.winner()
    told = dict.fromkeys(group.members if again else () if stale else (write.source,))
    if before != after:
        told |= dict.fromkeys(source for source in (before, after) if source is not None)
    said = [
        _said(stored(source), group.election, field, stored(after) if after and source != after else None, own=source == write.source)
        for source in sorted(told, key=lambda source: source == after)
        if group.members[source].speaks
    ]
    return Decided(said, stale, again, after, before)


def _said(raw: bytes, election: int, field: str, winner: bytes | None, *, own: bool) -> tuple[bytes, bytes]:
    """A member's write, or its release where another one stands for it."""
    plain = orjson.loads(raw)
    plain["election"] = election
    if field != MAIL:
        plain["unique"] = field
    if winner is not None:
        del plain["body"]
        # `on_delete: ignore` keeps what the source deleted; this record is not deleted, another one stands for it.
        plain |= {"op": "release", "successor": orjson.loads(winner)["key"]}
    elif not own:
        plain["always"] = True  # it comes back for what happened to another record: that is no latency, and nothing to be skipped
    return f"{plain['object']}|{plain['key']}".encode(), orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
