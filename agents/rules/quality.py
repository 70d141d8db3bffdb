"""Quality of a mapped record, in stages that a route names: `required` and `types`, lists of named checks. Pure; reasons hold no value.

A record that fails is a dead letter of its route with all its faults; other routes of the record go on. The third stage, `duplicates`,
looks at several records (duplicates.py) and so at those alone that passed here: a bad record holds back no good one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from agents.rules.normalisers import phone, registered_domain, user, valid_mail
from agents.rules.transforms import Transform, boolean, day, domain, integer, kind, mail, moment, number, text
from models.errors import PermanentError
from models.write import Body, at_path

Path = tuple[str, ...]
"""Into a body, step by step."""


class Fault(NamedTuple):
    """Why a record fails: the field or fields, the rule, the class of what stood there."""

    field: str
    rule: str
    found: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}, found {self.found}"


UNTOLD = (Fault("-", "rule", "-"),)
"""Of what is no fault of the record but of a rule."""


class QualityError(PermanentError):
    """A record that fails, with every fault."""

    def __init__(self, reason: str, faults: tuple[Fault, ...]) -> None:
        super().__init__(reason, field=faults[0].field)
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Need:
    """A check of the stage `required`: all paths of one of the alternatives are filled. `field` is the one that is told."""

    field: str
    rule: str
    any_of: tuple[tuple[Path, ...], ...]


def need(*names: str) -> tuple[Need, ...]:
    """Each of these top-level fields is filled."""
    return tuple(_path((name,)) for name in names)


def _path(path: Path) -> Need:
    return Need(".".join(path), "required", ((path,),))


_PERSON = Need("email", "email required, or firstName and lastName", ((("email",),), (("firstName",), ("lastName",))))
REQUIRED: dict[str, tuple[Need, ...]] = {
    "person": (*need("externalId"), _PERSON),
    "account": need("externalId", "name"),
    "opportunity": need("externalId", "name", "accountExternalId"),
    "task": need("externalId"),
    "case": need("externalId"),
}
"""By entity of the map; a plain map has none."""


def _words(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        raise ValueError(f"{kind(value)} is not text")
    return text(value)


def _trimmed(value: Any) -> Any:
    """Every text inside."""
    if isinstance(value, dict):
        return {name: _trimmed(inner) for name, inner in value.items()}
    return [_trimmed(inner) for inner in value] if isinstance(value, list) else text(value)


TYPES: dict[str, Transform] = {
    "text": _words,
    "mail": mail,
    "number": number,
    "integer": integer,
    "boolean": boolean,
    "date": day,
    "datetime": moment,
    "json": _trimmed,
}
"""Checks of the stage `types`, by the type that a field of the map has: each gives the value as that type, or raises ValueError."""


_NULL = type(None)
_SURE: dict[str, tuple[type, ...]] = {"number": (int, float), "integer": (int,), "boolean": (bool,)}
_SURE_AFTER: dict[tuple[str, Transform | None], tuple[type, ...]] = {
    ("text", text): (str, int, float, bool),
    **{("text", clean): (str,) for clean in (mail, domain, valid_mail, phone, registered_domain, user)},
    ("mail", mail): (str,),
    ("number", number): (str,),
    ("date", day): (str,),
    ("datetime", moment): (str,),
}
"""By type, and by what a map did last to a value: classes of values that the check would leave as they are."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The checks of one way, compiled once: `required`, and by top-level field its type, its check, and values that need none."""

    required: tuple[Need, ...] = ()
    types: tuple[tuple[str, str, Transform, frozenset[type]], ...] = ()

    def check(self, body: Body, record_id: str, what: str = "record") -> None:
        """Convert `body` in place. Raises QualityError with every fault."""
        faults: list[Fault] = []
        for one in self.required:
            if not _filled(body, one.any_of):
                found = ", ".join(dict.fromkeys(kind(at_path(body, path)) for paths in one.any_of for path in paths))
                faults.append(Fault(one.field, one.rule, found))
        for name, rule, codec, sure in self.types:
            if (value := body.get(name)).__class__ in sure:
                continue
            try:
                body[name] = codec(value)
            except ValueError:
                faults.append(Fault(name, rule, kind(value)))
        if faults:
            told = "; ".join(map(str, faults))
            raise QualityError(f"{what} {record_id} fails quality: {told}; fill it in the source or change the map", tuple(faults))


def gate(
    stages: Iterable[str],
    entity: str | None,
    types: Mapping[str, str],
    required: Iterable[Path] = (),
    done: Mapping[str, Transform] = MappingProxyType({}),
) -> Gate:
    """The checks of these stages.

    types      by top-level field its type, a key of TYPES
    required   what the map itself demands, whatever the stages
    done       by top-level field what the map did last to every value of it
    """
    named = set(stages)
    needs = (*(REQUIRED.get(entity or "", ()) if "required" in named else ()), *map(_path, required))
    typed = tuple((name, rule, TYPES[rule], _sure(rule, done.get(name))) for name, rule in types.items()) if "types" in named else ()
    return Gate(tuple(dict.fromkeys(needs)), typed)


def _sure(rule: str, done: Transform | None) -> frozenset[type]:
    return frozenset((_NULL, *_SURE.get(rule, ()), *_SURE_AFTER.get((rule, getattr(done, "func", done)), ())))


def faults_of(error: BaseException | None) -> tuple[Fault, ...]:
    """Every fault of a record that failed; what a rule of the map refused counts as one."""
    if isinstance(error, QualityError):
        return error.faults
    return (Fault(getattr(error, "field", None) or "-", "map", "-"),)


def _filled(body: Body, any_of: tuple[tuple[Path, ...], ...]) -> bool:
    """Whether each path of one of the alternatives is."""
    for paths in any_of:
        for path in paths:
            value = at_path(body, path)
            if value is None or (isinstance(value, str) and text(value) is None):
                break
        else:
            return True
    return False
