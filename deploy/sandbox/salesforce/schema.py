"""Which objects and fields the sandbox org has: the standard ones as a table, custom ones from a YAML file.

Says only what exists; values are checked in `values.py`, told to clients in `describe.py`.
"""

import re
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deploy.sandbox.salesforce.standard import ADDRESS, OBJECTS, PERSON_ACCOUNT, SYSTEM

TYPES = frozenset({"id", "string", "textarea", "boolean", "int", "double", "currency", "percent", "date", "datetime"})
TYPES |= {"picklist", "multipicklist", "reference", "email", "phone", "url", "address"}


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field. `compound`/`component`: parent and name inside an event's nested value. `hidden`: never in events."""

    name: str
    type: str
    length: int = 0
    reference: tuple[str, ...] = ()
    required: bool = False
    writable: bool = True
    hidden: bool = False
    default: Any = None
    external_id: bool = False
    unique: bool = False
    is_name: bool = False
    compound: str | None = None
    component: str | None = None

    @property
    def custom(self) -> bool:
        return self.name.endswith(("__c", "__pc"))

    @property
    def relationship(self) -> str | None:
        if self.type != "reference":
            return None
        return self.name[:-1] + "r" if self.custom else self.name.removesuffix("Id")

    @property
    def label(self) -> str:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.name.removesuffix("__c").replace("_", " "))


@dataclass(slots=True)
class SObject:
    """One object: fields by name, components by compound parent, and both look-ups without regard to case."""

    name: str
    prefix: str
    fields: dict[str, Field] = field(default_factory=dict)
    compounds: dict[str, list[Field]] = field(default_factory=dict)
    by_lower: dict[str, Field] = field(default_factory=dict)
    relationships: dict[str, Field] = field(default_factory=dict)

    @property
    def custom(self) -> bool:
        return self.name.endswith("__c")

    @property
    def event(self) -> bool:
        """A platform event: published, never kept."""
        return self.name.endswith("__e")

    @property
    def channel(self) -> str:
        return f"/event/{self.name}" if self.event else "/data/" + channel_name(self.name)

    def remove(self, name: str) -> None:
        """Take a custom field away, as an administrator does; what records held of it is seen no more."""
        if (gone := self.fields.pop(name, None)) is not None:
            del self.by_lower[name.lower()]
            if gone.relationship:
                del self.relationships[gone.relationship.lower()]

    def add(self, new: Field) -> None:
        self.fields[new.name] = new
        self.by_lower[new.name.lower()] = new
        if new.compound:
            self.compounds.setdefault(new.compound, []).append(new)
        if new.relationship:
            self.relationships[new.relationship.lower()] = new


def channel_name(entity: str) -> str:
    """`Account` → `AccountChangeEvent`, `Foo__c` → `Foo__ChangeEvent`."""
    return f"{entity[:-1]}ChangeEvent" if entity.endswith("__c") else f"{entity}ChangeEvent"


def _parse(line: str, compound: str | None = None, component: str | None = None) -> Field:
    name, kind, *flags = line.split()
    base, _, argument = kind.partition(":")
    default: Any = False if base == "boolean" else None
    for flag in flags:
        if flag.startswith("default="):
            text = flag.removeprefix("default=")
            default = text == "true" if base == "boolean" else text.replace("_", " ") if base == "picklist" and "/" not in text else text
    length = int(argument) if argument.isdigit() else {"picklist": 255, "id": 18, "reference": 18}.get(base, 0)
    reference = tuple(argument.split("|")) if base == "reference" else ()
    return Field(
        name, base, length, reference, "required" in flags, "ro" not in flags, "hidden" in flags, default,
        is_name="name" in flags, compound=compound, component=component,
    )  # fmt: skip


def _standard(name: str, text: str) -> SObject:
    prefix, *lines = text.splitlines()
    made = SObject(name, prefix)
    for line in SYSTEM.split("\n")[1:-1] + lines:
        _grow(made, line)
    return made


def _grow(made: SObject, line: str) -> None:
    """Add what one line of the table says: a field, an address or the name of a person."""
    field_name, kind, *_ = line.split()
    if kind == "address":
        stem = "" if field_name == "." else field_name
        made.add(Field(f"{stem}Address", "address", writable=False, hidden=True))
        for part in ADDRESS:
            made.add(_parse(stem + part, f"{stem}Address", part.split()[0]))
    elif kind == "person-name":
        made.add(Field("Name", "string", 121, writable=False, hidden=True, is_name=True))
        for part in ("Salutation picklist", "FirstName string:40", "LastName string:80 required"):
            if not (made.name == "User" and part.startswith("Salutation")):
                made.add(_parse(part, "Name", part.split()[0]))
    else:
        made.add(_parse(line))


class Schema:
    """All objects of the org. `selected` are those whose changes become events."""

    def __init__(self, custom: dict[str, Any] | None = None) -> None:
        self.objects = {name: _standard(name, text) for name, text in OBJECTS.items()}
        self.selected = {name for name in self.objects if name != "User"}
        self._lower = {name.lower(): name for name in self.objects}
        for name, fields in (custom or {}).items():
            self.extend(str(name), fields)

    def extend(self, name: str, fields: Any) -> None:
        """Add custom fields to an object, or take away those that are None; a custom object or platform event that is not there is made.
        Errors: ValueError.
        """
        if name not in self.objects:
            if not re.fullmatch(r"[A-Za-z]\w*__[ce]", name):
                raise ValueError(
                    f"{name}: neither a standard object of the sandbox nor a custom object (named …__c) or platform event (…__e)"
                )
            number = sum(o.custom or o.event for o in self.objects.values())
            if name.endswith("__e"):
                self.objects[name] = SObject(name, f"e0{number:x}"[:3])
                for line in (
                    "CreatedDate datetime ro",
                    "CreatedById reference:User ro",
                    "EventUuid string:36 ro hidden",
                    "ReplayId string:1000 ro hidden",
                ):
                    self.objects[name].add(_parse(line))
            else:
                self.objects[name] = _standard(name, f"a0{number:x}\nName string:80 name\nOwnerId reference:User owner")
                self.selected.add(name)
            self._lower[name.lower()] = name
        if not isinstance(fields, dict):
            raise ValueError(f"{name}: expected a map of custom fields, e.g. `Score__c: {{type: double}}`")
        for field_name, options in fields.items():
            if options is None and str(field_name).endswith("__c"):
                self.objects[name].remove(str(field_name))
            elif str(field_name) not in self.objects[name].fields:
                self.objects[name].add(_custom_field(name, str(field_name), options if isinstance(options, dict) else {"type": options}))

    def enable_person_accounts(self) -> None:
        """Accounts that are people: fields of their contact on the account, `__pc` for custom ones. Cannot be undone, as in Salesforce."""
        account, contact = self.objects["Account"], self.objects["Contact"]
        for line in ("Salutation picklist", "FirstName string:40", "LastName string:80"):
            account.add(_parse(line, "Name", line.split()[0]))
        for line in PERSON_ACCOUNT.splitlines():
            _grow(account, line)
        _grow(contact, "IsPersonAccount boolean ro")
        for f in list(contact.fields.values()):
            if f.custom:
                account.add(replace(f, name=f"{f.name[:-3]}__pc", external_id=False, unique=False, required=False))

    @property
    def person_accounts(self) -> bool:
        return "IsPersonAccount" in self.objects["Account"].fields

    def without(self, hidden: dict[str, set[str]], closed: set[str]) -> "Schema":
        """A copy in which these fields (by object) and objects do not exist."""
        made = copy(self)
        made.objects = {name: o for name, o in self.objects.items() if name not in closed}
        made._lower = {name.lower(): name for name in made.objects}
        for name, fields in hidden.items():
            if name in made.objects:
                made.objects[name] = SObject(name, self.objects[name].prefix)
                for f in self.objects[name].fields.values():
                    if f.name not in fields:
                        made.objects[name].add(f)
        return made

    def get(self, name: str) -> SObject | None:
        """The object of that name, without regard to case, as Salesforce looks it up."""
        return self.objects.get(self._lower.get(name.lower(), ""))

    def by_prefix(self, record_id: str) -> SObject | None:
        return next((o for o in self.objects.values() if record_id.startswith(o.prefix)), None)


def _custom_field(owner: str, name: str, options: dict[str, Any]) -> Field:
    kind = str(options.get("type", "string"))
    known = {"type", "length", "externalId", "unique", "required", "references", "default"}
    if not re.fullmatch(r"[A-Za-z]\w*__c", name):
        raise ValueError(f"{owner}.{name}: the name of a custom field ends in __c")
    if kind not in TYPES - {"id", "address"}:
        raise ValueError(f"{owner}.{name}: unknown type {kind!r}; known: {', '.join(sorted(TYPES - {'id', 'address'}))}")
    if unknown := set(options) - known:
        raise ValueError(f"{owner}.{name}: unknown option {', '.join(sorted(map(str, unknown)))}; known: {', '.join(sorted(known))}")
    made = _parse(f"{name} {kind}")
    return replace(
        made,
        length=int(options.get("length", {"textarea": 32768}.get(kind, made.length or 255))),
        reference=tuple(str(options.get("references", "Account")).split("|")) if kind == "reference" else (),
        external_id=bool(options.get("externalId")),
        unique=bool(options.get("unique", options.get("externalId"))),
        required=bool(options.get("required")),
        default=options.get("default", made.default),
    )


def load(path: Path | None) -> Schema:
    """The schema with the custom fields of a YAML file. Errors: ValueError that names object and field."""
    if path is None:
        return Schema()
    read = YAML(typ="safe").load(path.read_text())
    if read is not None and not isinstance(read, dict):
        raise ValueError(f"{path}: expected a map from object to custom fields")
    return Schema(read)
