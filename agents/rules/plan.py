"""What must be known of a source's records: what maps and filters need, and what must be followed to keep that right. Pure."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from agents.rules.compound import FULL_NAME, PERSONS, parts, relationship_key

ALWAYS = ("Id", "IsDeleted", "SystemModstamp")
"""In every row; what a row is read for."""
ROW_ONLY = frozenset({"SystemModstamp"})
"""Flat, yet never in an event: an event makes it unknown."""


class Concerns(dict[str, bool | None]):
    """By name in an event whether a plan follows it: True, as it is; False, by way of a compound field; None, not at all.

    Found once for each name, because every event asks for each of its names.
    """

    MOST = 5000

    def __init__(self, sobject: str, flat: frozenset[str]) -> None:
        self._sobject, self._flat = sobject, flat

    def __missing__(self, name: str) -> bool | None:
        parent, dot, part = name.partition(".")
        compound = dict(parts(self._sobject, parent) or (parts("Contact", parent) if parent == "Name" else ()))
        follows = compound.get(part, part) in self._flat if dot else name in self._flat or not self._flat.isdisjoint(compound.values())
        if len(self) >= self.MOST:  # names that no object has
            self.clear()
        self[name] = found = (not dot and not compound) if follows else None
        return found


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one source.

    needed     paths that maps and filters need: an incomplete record lacks one of them
    select     SOQL paths a row is read with: needed, what follows from them, Id, IsDeleted, SystemModstamp
    flat       flat fields that are merged from events and rows
    dotted     relationship paths with their steps: known from rows only
    through    by relationship key ("OwnerId") the paths that go through it
    named      `Name` is derived from its parts in events
    gone       paths of maps and filters that the org does not show any more: told by events or known from before, else left out
    hook       records are bodies of webhooks: `dotted` are all paths, replaced whole
    event      records are platform events: `dotted` are all paths, each event stands for itself and nothing is merged
    followed   every path whose value a record may hold
    print      tells plans apart: of what is followed
    version    grows with each version of a map of the source's routes
    """

    sobject: str
    needed: frozenset[str]
    select: tuple[str, ...]
    flat: frozenset[str]
    dotted: tuple[tuple[str, tuple[str, ...]], ...]
    through: dict[str, tuple[str, ...]]
    named: bool
    hook: bool = False
    event: bool = False
    version: int = 0
    gone: frozenset[str] = frozenset()
    concerns: Concerns = field(init=False, repr=False, compare=False)
    followed: frozenset[str] = field(init=False, repr=False, compare=False)
    print: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        followed = self.flat.union((path for path, _ in self.dotted), ("Id", "IsDeleted"))
        print = hashlib.blake2b(",".join(sorted(followed)).encode(), digest_size=4).hexdigest()
        object.__setattr__(self, "concerns", Concerns(self.sobject, self.flat))
        object.__setattr__(self, "followed", followed)
        object.__setattr__(self, "print", print)


def make_plan(
    sobject: str, paths: Iterable[str], *, hook: bool = False, event: bool = False, version: int = 0, gone: Collection[str] = ()
) -> Plan:
    """Plan for the paths that all routes of a source read, those of `gone` where they are to be had. Id and IsDeleted are known without
    being merged.
    """
    wanted = dict.fromkeys(paths)
    if hook or event:
        all_paths = tuple((path, tuple(path.split("."))) for path in wanted)
        return Plan(sobject, frozenset(), (), frozenset(), all_paths, {}, False, hook, event, version)
    through: dict[str, tuple[str, ...]] = {}
    for path in wanted:
        if path not in gone and (key := relationship_key(path)):
            through[key] = (*through.get(key, ()), path)
    named = sobject in PERSONS and "Name" in wanted
    shown = (path for path in wanted if path not in gone)
    select = dict.fromkeys((*ALWAYS, *shown, *through, *(("FirstName", "LastName") if named else ())))
    needed = frozenset(select) - {"Id", "IsDeleted", *(ROW_ONLY - set(wanted))}
    dotted = tuple((path, tuple(path.split("."))) for path in wanted if "." in path)
    flat = frozenset(name for name in needed.union(gone) if "." not in name) | (frozenset(FULL_NAME) if named else frozenset())
    return Plan(sobject, needed, tuple(select), flat, dotted, through, named, version=version, gone=frozenset(gone))
