"""Maps: which value of a merged record goes where in a target's record. Compiled once; pure.

Policy for nulls: a null is written as null at its path, so that the target is cleared; that holds for a null parent too (no Account: the
Company fields are null, each by itself, so that siblings written by others stay). A field that the object does not have, or that a
webhook did not send, gives no key at all. Types are kept: false stays false.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from agents.rules.standard_fields import kind_of, may_have
from agents.rules.transforms import TRANSFORMS, Transform, mail
from models import entity as entities
from models.errors import PermanentError
from models.write import Body

ColumnType = Literal["text", "number", "boolean", "date", "datetime", "json"]
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value's way. `sobjects`: only from these objects; () from all."""

    source: str
    target: tuple[str, ...]
    transform: Transform | None = None
    sobjects: tuple[str, ...] = ()


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

    def _type(self, leaf: Leaf, sobjects: tuple[str, ...]) -> ColumnType:
        if len(leaf.target) > 1:
            return "json"
        if self.entity is not None:
            return ENTITY_COLUMNS[self.entity].get(leaf.target[0], "json")
        kinds = {kind_of(sobject, leaf.source) for sobject in sobjects if may_have(sobject, leaf.source) is not False}
        kind = kinds.pop() if len(kinds) == 1 else None
        return "text" if leaf.transform is mail else kind or "json"


@dataclass(slots=True)
class CompiledMap:
    """A map for one source's records."""

    name: str
    entity: str | None
    leaves: tuple[tuple[str, tuple[str, ...], str, Transform | None], ...]
    fields: tuple[str, ...] = field(default=())

    def apply(self, values: Mapping[str, Any]) -> Body:
        """The mapped body of a merged record. Raises PermanentError naming the field whose value does not fit."""
        body: Body = {}
        for source, parents, name, transform in self.leaves:
            value = values.get(source, _MISSING)
            if value is _MISSING:
                continue
            if transform is not None and value is not None:
                try:
                    value = transform(value)
                except ValueError as error:
                    raise PermanentError(f"field {source} cannot be mapped by {self.name}: {error}", field=source) from None
            into = body
            for parent in parents:
                into = into.setdefault(parent, {})
            into[name] = value
        return body


def compile_map(found: Map, sobject: str, others: Iterable[str] = ()) -> CompiledMap:
    """For records of `sobject` ("" for hooks). A standard field that it lacks and one of `others` (the route's objects) has is left out."""
    leaves = []
    for leaf in found.leaves:
        if leaf.sobjects and sobject not in leaf.sobjects:
            continue
        if not leaf.sobjects and lacks(sobject, leaf.source, others):
            continue
        leaves.append((leaf.source, leaf.target[:-1], leaf.target[-1], leaf.transform))
    return CompiledMap(found.name, found.entity, tuple(leaves), tuple(dict.fromkeys(leaf[0] for leaf in leaves)))


def lacks(sobject: str, path: str, others: Iterable[str]) -> bool:
    """An object of a route certainly lacks a field that another of its objects has: it is not asked for there."""
    if not sobject:
        return False
    root, dot, _ = path.partition(".")
    has = may_have(sobject, f"{root}Id" if dot and not root.endswith("__r") else path)
    return has is False and any(
        other != sobject and may_have(other, f"{root}Id" if dot and not root.endswith("__r") else path) is not False for other in others
    )


def identifier(path: tuple[str, ...]) -> Transform | None:
    """Transform of a plain map's target: the identifier `email` is lower-cased and trimmed, all else is left alone."""
    return mail if path == ("email",) else None


def _entity(sobjects: str, entity: str, *leaves: tuple[str, str, str] | tuple[str, str, str, str]) -> Map:
    made = tuple(
        Leaf(source, (target,), TRANSFORMS[transform], tuple(only[0].split()) if only else ())
        for source, target, transform, *only in leaves
    )
    return Map(entity, made, entity, tuple(sobjects.split()))


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
