"""Maps: which value of a merged record goes where in a target's record. Compiled once; pure.

Policy for nulls, unless the map says otherwise: a null is written as null at its path, so that the target is cleared; that holds for a
null parent too (no Account: the Company fields are null, each by itself, so that siblings written by others stay). `skip` and `keep` give
no key then; for `keep` the writer has what stood there (agents/rules/delivery.py). A field that the
object does not have, or that a webhook did not send, gives no key at all. Types are kept: false stays false.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

from agents.rules.standard_fields import kind_of, may_have
from agents.rules.transforms import TRANSFORMS, Transform, mail
from models import entity as entities
from models.errors import PermanentError
from models.write import Body

ColumnType = Literal["text", "number", "boolean", "date", "datetime", "json"]
MapType = Literal["text", "number", "integer", "boolean", "date", "datetime", "json"]
Nulls = Literal["clear", "skip", "keep"]
_MISSING = object()


class Step(NamedTuple):
    """A transform. `name` as written; `gives` the type of what comes out, None where it is that of what came in."""

    name: str
    run: Transform
    gives: MapType | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value's way.

    instead    further sources, asked in turn while those before give nothing
    sobjects   only from these objects; () from all
    type       what the map says the value is, or None
    default    written where there is no value, in the target's own terms
    required   a record without this value is refused
    line       in the map file; 0 of a built-in map
    """

    source: str
    target: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    sobjects: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    type: MapType | None = None
    nulls: Nulls = "clear"
    default: Any = None
    required: bool = False
    line: int = field(default=0, compare=False)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every path it reads."""
        return self.source, *self.instead

    @property
    def last(self) -> Transform | None:
        """What is done last; that a text is text is no change."""
        return next((step.run for step in reversed(self.steps) if step.name != "type text"), None)

    @property
    def gives(self) -> MapType | None:
        """Type of what it writes, as far as the map alone tells."""
        return self.type or next((step.gives for step in reversed(self.steps) if step.gives), None)


@dataclass(frozen=True, slots=True)
class Map:
    """A map as written. `entity` None for a map file."""

    name: str
    leaves: tuple[Leaf, ...]
    entity: str | None = None
    sobjects: tuple[str, ...] = ()

    def columns(self, sobjects: Iterable[str] = ()) -> dict[str, ColumnType]:
        """Top-level fields of the mapped body and their types; those that only other objects fill are left out."""
        chosen = tuple(sobjects)
        found: dict[str, ColumnType] = {}
        for leaf in self.leaves:
            if leaf.sobjects and chosen and not set(leaf.sobjects) & set(chosen):
                continue
            name, kind = leaf.target[0], self._type(leaf, chosen)
            found[name] = kind if found.get(name, kind) == kind else "json"
        return found

    def types(self, sobjects: Iterable[str] = ()) -> dict[str, str]:
        """By top-level field its type, as agents/rules/quality.py names them: finer than a column's."""
        top = [leaf for leaf in self.leaves if len(leaf.target) == 1]
        mails = {leaf.target[0] for leaf in top if leaf.target == ("email",) or any(step.run is mail for step in leaf.steps)}
        whole = {leaf.target[0] for leaf in top if leaf.gives == "integer"}
        return {name: "mail" if name in mails else "integer" if name in whole else kind for name, kind in self.columns(sobjects).items()}

    def done(self) -> dict[str, Transform]:
        """By top-level field what is done last to every value of it, where that is one thing."""
        found: dict[str, set[Transform | None]] = {}
        for leaf in self.leaves:
            found.setdefault(leaf.target[0], set()).add(None if len(leaf.target) > 1 or leaf.default is not None else leaf.last)
        return {name: last for name, (last, *others) in found.items() if last is not None and not others}

    def _type(self, leaf: Leaf, sobjects: tuple[str, ...]) -> ColumnType:
        if len(leaf.target) > 1:
            return "json"
        if self.entity is not None:
            return ENTITY_COLUMNS[self.entity].get(leaf.target[0], "json")
        if (given := leaf.gives) is not None:
            return column_of(given)
        kinds = {kind_of(sobject, source) for source in leaf.sources for sobject in sobjects if may_have(sobject, source) is not False}
        kind = kinds.pop() if len(kinds) == 1 else None
        return kind or "json"


def column_of(type: MapType) -> ColumnType:
    """Type of the column that holds such values."""
    return "number" if type == "integer" else type


Read = Callable[[Mapping[str, Any]], Any]


@dataclass(slots=True)
class CompiledMap:
    """A map for one source's records. `leaves` are the plain ones, `others` have a function each; both are made of `written`.

    `required` are the paths, in the body, of what must be there, `keeps` those where nothing means what was written last.
    """

    name: str
    entity: str | None
    leaves: tuple[tuple[str, tuple[str, ...], str, Transform | None], ...]
    fields: tuple[str, ...] = field(default=())
    others: tuple[tuple[str, tuple[str, ...], str, Read], ...] = ()
    required: tuple[tuple[str, ...], ...] = ()
    written: tuple[Leaf, ...] = ()
    keeps: tuple[str, ...] = ()

    def apply(self, values: Mapping[str, Any]) -> Body:
        """The mapped body of a merged record. Raises PermanentError naming the field whose value does not fit."""
        body: Body = {}
        source = ""
        try:
            for source, parents, name, transform in self.leaves:
                value = values.get(source, _MISSING)
                if value is _MISSING:
                    continue
                if transform is not None and value is not None:
                    value = transform(value)
                (_inside(body, parents) if parents else body)[name] = value
            for source, parents, name, read in self.others:  # noqa: B007 - the message names it
                value = read(values)
                if value is not _MISSING:
                    (_inside(body, parents) if parents else body)[name] = value
        except ValueError as error:
            raise self._misfit(source, error) from None
        return body

    def _misfit(self, source: str, error: ValueError) -> PermanentError:
        return PermanentError(f"field {source} cannot be mapped by {self.name}: {error}", field=source)


def _inside(body: Body, parents: tuple[str, ...]) -> Body:
    for parent in parents:
        body = body.setdefault(parent, {})
    return body


def compile_map(found: Map, sobject: str, others: Iterable[str] = ()) -> CompiledMap:
    """For records of `sobject` ("" for hooks). A standard field that it lacks and one of `others` (the route's objects) has is left out."""
    chosen = []
    for leaf in found.leaves:
        if leaf.sobjects and sobject not in leaf.sobjects:
            continue
        sources = leaf.sources if leaf.sobjects else tuple(source for source in leaf.sources if not lacks(sobject, source, others))
        if sources:
            chosen.append(leaf if sources == leaf.sources else replace(leaf, source=sources[0], instead=sources[1:]))
    plain = [leaf for leaf in chosen if is_plain(leaf)]
    return CompiledMap(
        found.name,
        found.entity,
        tuple((leaf.source, leaf.target[:-1], leaf.target[-1], compose(leaf.steps)) for leaf in plain),
        tuple(dict.fromkeys(source for leaf in chosen for source in leaf.sources)),
        tuple((leaf.source, leaf.target[:-1], leaf.target[-1], _read(leaf)) for leaf in chosen if not is_plain(leaf)),
        tuple(leaf.target for leaf in chosen if leaf.required),
        tuple(chosen),
        tuple(".".join(leaf.target) for leaf in chosen if leaf.nulls == "keep"),
    )


def is_plain(leaf: Leaf) -> bool:
    """One source, null to null."""
    return not leaf.instead and leaf.default is None and leaf.nulls == "clear"


def compose(steps: tuple[Step, ...]) -> Transform | None:
    """One function of several; what became null stays null."""
    if len(steps) < 2:
        return steps[0].run if steps else None
    functions = tuple(step.run for step in steps)

    def run(value: Any) -> Any:
        for function in functions:
            if value is None:
                break
            value = function(value)
        return value

    return run


def _read(leaf: Leaf) -> Read:
    sources, transform, default, clears = leaf.sources, compose(leaf.steps), leaf.default, leaf.nulls == "clear"

    def read(values: Mapping[str, Any]) -> Any:
        found = _MISSING
        for source in sources:
            value = values.get(source, _MISSING)
            if value is not None and value is not _MISSING and transform is not None:
                value = transform(value)
            if value is not _MISSING:
                found = value
                if value is not None:
                    return value
        if default is not None:
            return default
        return found if clears else _MISSING

    return read


def lacks(sobject: str, path: str, others: Iterable[str]) -> bool:
    """An object of a route certainly lacks a field that another of its objects has: it is not asked for there."""
    if not sobject:
        return False
    root, dot, _ = path.partition(".")
    has = may_have(sobject, f"{root}Id" if dot and not root.endswith("__r") else path)
    return has is False and any(
        other != sobject and may_have(other, f"{root}Id" if dot and not root.endswith("__r") else path) is not False for other in others
    )


def identifier(path: tuple[str, ...]) -> tuple[Step, ...]:
    """Steps of a plain line: the identifier `email` is lower-cased and trimmed, all else is left alone."""
    return (Step("mail", mail, "text"),) if path == ("email",) else ()


def _entity(sobjects: str, entity: str, *leaves: tuple[str, str, str] | tuple[str, str, str, str]) -> Map:
    made = tuple(
        Leaf(source, (target,), _steps(transform), tuple(only[0].split()) if only else ()) for source, target, transform, *only in leaves
    )
    return Map(entity, made, entity, tuple(sobjects.split()))


def _steps(name: str) -> tuple[Step, ...]:
    return (Step(name, run),) if (run := TRANSFORMS[name]) is not None else ()


def _column(annotation: Any) -> ColumnType:
    kinds = {int: "number", float: "number", bool: "boolean", str: "text"}
    base = next((arg for arg in get_args(annotation) if arg is not type(None)), annotation)
    return kinds.get(base, base.__name__)  # type: ignore[no-any-return]  # date and datetime are called so


ENTITY_COLUMNS: dict[str, dict[str, ColumnType]] = {
    cls.__name__.lower(): {name: _column(info.annotation) for name, info in cls.model_fields.items()}
    for cls in (entities.Person, entities.Account, entities.Opportunity, entities.Task, entities.Case)
}

_PERSON = _entity(
    "Contact Lead",
    "person",
    ("Id", "externalId", "none"),
    ("Email", "email", "mail"),
    ("FirstName", "firstName", "trim"),
    ("LastName", "lastName", "trim"),
    ("Title", "title", "trim"),
    ("Phone", "phone", "trim"),
    ("AccountId", "accountExternalId", "none", "Contact"),
    ("Company", "company", "trim", "Lead"),
    ("Status", "status", "trim", "Lead"),
)

BUILT_IN: dict[str, Map] = {
    "person": _PERSON,
    "contact": Map("contact", _PERSON.leaves, "person", ("Contact",)),
    "lead": Map("lead", _PERSON.leaves, "person", ("Lead",)),
    "account": _entity(
        "Account",
        "account",
        ("Id", "externalId", "none"),
        ("Name", "name", "trim"),
        ("Website", "domain", "domain"),
        ("Industry", "industry", "trim"),
        ("NumberOfEmployees", "employeeCount", "integer"),
        ("AnnualRevenue", "annualRevenue", "number"),
    ),
    "opportunity": _entity(
        "Opportunity",
        "opportunity",
        ("Id", "externalId", "none"),
        ("Name", "name", "trim"),
        ("StageName", "stage", "trim"),
        ("CloseDate", "closeDate", "date"),
        ("AccountId", "accountExternalId", "none"),
        ("Amount", "amount", "number"),
    ),
    "task": _entity(
        "Task",
        "task",
        ("Id", "externalId", "none"),
        ("Subject", "subject", "trim"),
        ("Status", "status", "trim"),
        ("ActivityDate", "dueDate", "date"),
        ("WhoId", "personExternalId", "none"),
        ("WhatId", "relatedExternalId", "none"),
        ("OwnerId", "ownerExternalId", "none"),
    ),
    "case": _entity(
        "Case",
        "case",
        ("Id", "externalId", "none"),
        ("CaseNumber", "number", "trim"),
        ("Subject", "subject", "trim"),
        ("Status", "status", "trim"),
        ("Priority", "priority", "trim"),
        ("AccountId", "accountExternalId", "none"),
        ("ContactId", "personExternalId", "none"),
        ("ClosedDate", "closedAt", "datetime"),
    ),
}
"""Default maps; their fields are those the requirements list."""
