"""One source's way through one route: what it needs to know, whether it passes the filter, what it becomes, under which key. Pure."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agents.rules.duplicates import Grouping
from agents.rules.filters import Predicate
from agents.rules.mapping import CompiledMap
from agents.rules.merge import RecordState
from agents.rules.quality import Gate
from agents.rules.takes import TargetGate
from models.errors import PermanentError
from models.write import Body, OnDelete, at_path

SameKey = Callable[[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Compiled once from the flow.

    order      place of the source in the route's `from:`
    fields     paths that must be known before anything is emitted
    gone       paths that the map or the filter reads too, and the org does not show any more; added: paths that no line or filter names
    left_out   fields of the org that `fields: all` would give and that have no column here, and why
    version    of the route's map; 0 where maps are not versioned
    key        what names the target record: a path in the body, a template "{a}-{b}", or None: connection and record id
    once       duplicates are removed: of several emissions of one record in a chunk the last is enough
    unique     by which field of the body records are the same one; None: no record is compared with others
    beyond     what the target says that it takes, and what it refused; None: nothing is looked at
    """

    route: str
    source: str
    target: str
    object: str
    order: int
    query: bool
    on_delete: OnDelete
    renames: bool
    fields: frozenset[str]
    map: CompiledMap
    where: Predicate | None
    key: str | None
    same_key: SameKey
    gate: Gate
    once: bool
    unique: Grouping | None
    version: int = 0
    gone: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)
    beyond: TargetGate | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """Every path that the map and the filter read."""
        return self.fields | self.gone

    def shape(self, values: Mapping[str, Any], record_id: str, *, asks: bool = True) -> tuple[str, Body] | None:
        """Target key and body of a record that is not deleted; None when the filter keeps it out. Raises PermanentError.

        asks   the gate `beyond`; else the target itself answers
        """
        if self.where is not None and not self.where(values):
            return None
        body = self.map.apply(values)
        self.gate.check(body, record_id, self.map.entity or "record")
        if self.beyond is not None and asks:
            self.beyond.check(body, f"{self.source}/{record_id}", record_id, self.map.entity or "record")
        key = self.same_key(self.object, key_of(body, self.key)) if self.key is not None else None
        if key == "":
            raise PermanentError(f"the field {self.key} is blank: a record of {self.target} cannot be named by it", field=self.key)
        return (key if key is not None else f"{self.source.partition('/')[0]}/{record_id}"), body


def leaves(way: Way, state: RecordState) -> bool:
    """The target shall no longer hold the record: it was deleted, or the filter keeps it out."""
    return state.deleted or (way.where is not None and not way.where(state.values))


def key_of(body: Body, key: str) -> str:
    """The target key a body names. Raises PermanentError when it has none."""
    if "{" not in key:
        return _text(body, key)
    return "".join(head + (_text(body, name) if name else "") for head, name, _, _ in string.Formatter().parse(key))


def key_fields(key: str) -> tuple[str, ...]:
    """Paths a `key:` reads. Raises ValueError when it is no template."""
    if "{" not in key and "}" not in key:
        return (key,)
    return tuple(name for _, name, _, _ in string.Formatter().parse(key) if name)


def _text(body: Body, path: str) -> str:
    found = at_path(body, path.split("."))
    if isinstance(found, str) and found.strip():
        return found
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    what = "empty" if found is None or found == "" or isinstance(found, str) else f"a {type(found).__name__}"
    raise PermanentError(f"the field {path}, which names the record in the target, is {what}: fill it in the source", field=path)
