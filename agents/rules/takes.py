"""What a target takes in its fields, by its own describe and by what it refused, and the gate of a route made of both. Pure.

A gate stops what the target would refuse, before it costs a call; the target has the last word. So what it refused is generalised no
further than it surely goes: no null where none was taken, a length and what is longer, else this very value. Only of a type is a class
learned, once several values of it were refused in a row and none was taken. And nothing learned holds for long, nor for another version of
the map, nor after the target says something else of the field, nor after it took such a value.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from agents.rules.mapping import Leaf
from agents.rules.quality import Fault, QualityError
from agents.rules.standard_fields import kind_of
from agents.rules.transforms import kind
from models.learned import Learned, Rule
from models.write import Body, at_path

IN_A_ROW = 3
"""Different values of a class that are refused, with none taken between, before the class is."""
LEARNED = "refused by target"

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d{1,9})? ?(Z|[+-]\d\d:?\d\d))?")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
TEXTS = frozenset({"text", "blank text", "date as text", "number as text"})
NUMBERS = frozenset({"number", "whole number"})
GIVEN: Mapping[str, frozenset[str]] = {
    "text": TEXTS,
    "number": NUMBERS,
    "integer": frozenset({"whole number"}),
    "boolean": frozenset({"boolean"}),
    "date": frozenset({"date as text"}),
    "datetime": frozenset({"date as text"}),
}
"""By type of a map's field the classes of what it writes."""


def class_of(value: Any) -> str:
    """Finer than `kind`, never the value; of a list that of its first element, "list" where it has none."""
    if isinstance(value, list):
        return next((class_of(each) for each in value if each is not None), "list")
    if isinstance(value, str) and (found := kind(value)) == "text":
        return "date as text" if _DATE.fullmatch(value) else "number as text" if _NUMBER.fullmatch(value) else found
    if isinstance(value, float) and not value.is_integer():
        return "number"
    return "whole number" if isinstance(value, int | float) and not isinstance(value, bool) else kind(value)


@dataclass(frozen=True, slots=True)
class Takes:
    """What a field takes, by the target's describe; None: anything, as far as it says.

    length    characters of a text; values: of a picklist; classes: as `class_of` names them
    required  it must not be null; unique: no other record may hold the same, which only the target can judge
    """

    length: int | None = None
    values: frozenset[str] | None = None
    classes: frozenset[str] | None = None
    required: bool = False
    unique: bool = False

    def refuses(self, value: Any) -> tuple[Rule, str] | None:
        """The rule that a value breaks, and what it says."""
        if value is None:
            return ("required", "not null") if self.required else None
        if isinstance(value, str):
            if self.values is not None and value not in self.values:
                return "picklist", f"one of {len(self.values)} values"
            if self.length is not None and len(value) > self.length and len(value.rstrip(" ")) > self.length:
                return "length", f"at most {self.length} characters"
        if self.classes is not None and (found := class_of(value)) != "list" and found not in self.classes:
            return "type", " or ".join(sorted(self.classes))
        return None

    def less(self, given: Iterable[str | None]) -> "Takes | None":
        """Without what values of these types (of the map; None: any) cannot break; None where nothing is left to look at."""
        sure = self.classes is not None and all(GIVEN.get(one or "", frozenset({""})) <= self.classes for one in given)
        classes = None if sure else self.classes
        left = Takes(self.length, self.values, classes, self.required)
        return None if left == Takes() else left

    @property
    def print(self) -> str:
        """Tells apart what is said of a field."""
        said = [self.length, sorted(self.values or ()), sorted(self.classes or ()), self.required, self.unique]
        return hashlib.blake2b(msgspec.json.encode(said), digest_size=4).hexdigest()


class Refusal(NamedTuple):
    """One value that a target refused: of which route, field, rule and record ("connection/sObject/id"), by which version of the map."""

    route: str
    field: str
    rule: Rule
    value: Any
    source: str
    version: int


def learn(refusal: Refusal, schema: str, now: int, *, class_: bool) -> Learned:
    """What follows from a refusal. `class_`: several values of its class were refused."""
    route, field, rule, value, source, version = refusal
    known: dict[str, Any] = {"found": class_of(value), "version": version, "schema": schema}
    if value is None:
        known["found"] = "null"
    elif rule == "length" and isinstance(value, str) and value:
        known |= {"least": len(value), "found": "longer text"}
    elif not (class_ and rule == "type"):
        known |= {"mark": mark_of(value), "source": source if rule == "unique" else ""}
    return Learned(route=route, field=field, rule=rule, since=now, at=now, **known)


def mark_of(value: Any) -> str:
    """Tells values apart."""
    return hashlib.blake2b(msgspec.json.encode(value, order="deterministic"), digest_size=8).hexdigest()


class Known(NamedTuple):
    """What was learned of one field, so that one look finds what stops a value: by mark and record, and the others."""

    marks: Mapping[tuple[str, str], Learned]
    others: tuple[Learned, ...]

    @classmethod
    def of(cls, learned: Iterable[Learned]) -> "Known":
        """All must be of one field."""
        every = tuple(learned)
        return cls({(one.mark, one.source): one for one in every if one.mark}, tuple(one for one in every if not one.mark))

    def stopping(self, value: Any, source: str) -> Learned | None:
        """What stops the value in a record of this source ("connection/sObject/id")."""
        if self.marks:
            mark = mark_of(value)
            if (found := self.marks.get((mark, "")) or self.marks.get((mark, source))) is not None:
                return found
        return next((one for one in self.others if _stops(one, value)), None)


def _stops(learned: Learned, value: Any) -> bool:
    if learned.found == "null":
        return value is None
    if learned.least:
        return isinstance(value, str) and len(value) >= learned.least
    return class_of(value) == learned.found


class _Check(NamedTuple):
    """Of one field. `steps`: its path, () where `name` is all of it; a null or a text of up to `length` surely passes, -1: no text does."""

    name: str
    steps: tuple[str, ...]
    null: bool
    length: float
    takes: Takes
    learned: Known | None

    @property
    def path(self) -> str:
        """In a body."""
        return ".".join(self.steps) or self.name

    @classmethod
    def of(cls, path: str, takes: Takes, known: Known | None) -> "_Check":
        """With what needs no closer look."""
        texts = known is None and takes.values is None and (takes.classes is None or takes.classes >= TEXTS)
        length = math.inf if takes.length is None else takes.length
        steps = tuple(path.split(".")) if "." in path else ()
        return cls(path, steps, known is None and not takes.required, length if texts else -1, takes, known)

    def faults(self, value: Any, source: str) -> tuple[Fault, str] | None:
        """What the target would refuse, and what it says."""
        if (broken := self.takes.refuses(value)) is not None:
            fault = Fault(self.path, f"{broken[0]} in target", kind(value))
            return fault, f"{fault} (the target takes {broken[1]})"
        if self.learned is not None and (one := self.learned.stopping(value, source)) is not None:
            fault = Fault(self.path, LEARNED, one.found)
            return fault, f"{fault} (by rule {one.rule}, {one.times} times; it is asked again after an hour)"
        return None


@dataclass(frozen=True, slots=True)
class TargetGate:
    """Of one way."""

    checks: tuple[_Check, ...]

    def check(self, body: Body, source: str, record_id: str, what: str = "record") -> None:
        """Raises QualityError with every field that the target would refuse."""
        found = []
        for name, steps, null, length, takes, learned in self.checks:
            value = at_path(body, steps) if steps else body.get(name)
            if null if value is None else (value.__class__ is str and len(value) <= length):
                continue
            if (fault := _Check(name, steps, null, length, takes, learned).faults(value, source)) is not None:
                found.append(fault)
        if found:
            remedy = "mend it in the source, or the target; `headrace redrive` asks the target itself"
            told = "; ".join(words for _, words in found)
            raise QualityError(f"{what} {record_id} fails quality: {told}; {remedy}", tuple(fault for fault, _ in found))


def target_gate(
    leaves: Iterable[Leaf], sobject: str, takes: Mapping[str, Takes], learned: Iterable[Learned], version: int
) -> TargetGate | None:
    """The gate of a way whose map writes `leaves`; None where there is nothing to look at."""
    given: dict[str, list[str | None]] = {}
    keeps = set[str]()  # what is missing there the writer fills in
    for leaf in leaves:
        types: list[str | None] = [leaf.gives or kind_of(sobject, source) for source in leaf.sources]
        given.setdefault(".".join(leaf.target), []).extend([*types, None] if leaf.default is not None else types)
        keeps |= {".".join(leaf.target)} if leaf.nulls == "keep" else set()
    rules: dict[str, list[Learned]] = {}
    for one in learned:
        said = takes.get(one.field)
        exact = said is not None and (said.values is not None or said.classes is not None)
        if (
            one.version == version
            and one.schema == (said.print if said else "")
            and not (one.whole and exact)
            and not (one.found == "null" and one.field in keeps)
        ):
            rules.setdefault(one.field, []).append(one)
    checks = []
    for path, types in given.items():
        said = replace(takes[path], required=takes[path].required and path not in keeps) if path in takes else None
        left = said.less(types) if said is not None else None
        if left is not None or path in rules:
            checks.append(_Check.of(path, left or Takes(), Known.of(rules[path]) if path in rules else None))
    return TargetGate(tuple(checks)) if checks else None
