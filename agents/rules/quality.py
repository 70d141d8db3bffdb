"""Quality of a mapped record. Here: required fields, the first of three stages. Pure; reasons never hold a value.

A record that fails is a dead letter of its route; other routes of the record go on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agents.rules.transforms import kind, text
from models.errors import PermanentError

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a record fails: the field or fields, the rule, the class of what stood there."""

    field: str
    rule: str
    found: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}, found {self.found}"


def _has(body: Body, name: str) -> bool:
    value = body.get(name)
    return value is not None and (not isinstance(value, str) or bool(text(value)))


def _required(*names: str) -> Callable[[Body], list[Fault]]:
    def check(body: Body) -> list[Fault]:
        return [Fault(name, "required", kind(body.get(name))) for name in names if not _has(body, name)]

    return check


_named = _required("externalId")


def _person(body: Body) -> list[Fault]:
    faults = _named(body)
    if not _has(body, "email") and not (_has(body, "firstName") and _has(body, "lastName")):
        found = ", ".join(kind(body.get(name)) for name in ("email", "firstName", "lastName"))
        faults.append(Fault("email", "email required, or firstName and lastName", found))
    return faults


REQUIRED: dict[str, Callable[[Body], list[Fault]]] = {
    "person": _person,
    "account": _required("externalId", "name"),
    "opportunity": _required("externalId", "name", "accountExternalId"),
    "task": _named,
    "case": _named,
}
"""By entity of the map; a plain map has none."""


def require(entity: str | None, body: Body, record_id: str) -> None:
    """Check the required fields. Raises PermanentError with every fault."""
    rule = REQUIRED.get(entity or "")
    if rule is not None and (faults := rule(body)):
        told = "; ".join(map(str, faults))
        raise PermanentError(f"{entity} {record_id} fails quality: {told}; fill it in the source or change the map", field=faults[0].field)
