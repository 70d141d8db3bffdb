"""Who may see what: field-level security, access to objects, View All Data and sharing, per user. Without a word everything is allowed.

Hidden fields are left out of a copy of the schema, so whoever works with that copy cannot name them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from deploy.sandbox.salesforce.errors import bad
from deploy.sandbox.salesforce.schema import Schema, SObject

if TYPE_CHECKING:
    from deploy.sandbox.salesforce.org import Org
    from deploy.sandbox.salesforce.store import Row

_ALWAYS = frozenset({"Id", "IsDeleted", "CreatedDate", "CreatedById", "LastModifiedDate", "LastModifiedById", "SystemModstamp", "OwnerId"})


@dataclass(slots=True)
class Rights:
    """Of one user. `hidden`: fields by object; `closed`: objects that do not exist for him; without View All Data he sees the records he
    owns, those in `shared`, and all of the objects in `view_all_records`."""

    hidden: dict[str, set[str]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    view_all_data: bool = True
    view_all_records: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)

    def views_all(self, sobject: str) -> bool:
        return sobject not in self.closed and (self.view_all_data or sobject in self.view_all_records)

    def as_dict(self) -> dict[str, Any]:
        hidden = {name: sorted(fields) for name, fields in self.hidden.items()}
        lists = {name: sorted(getattr(self, name)) for name in ("closed", "view_all_records", "shared")}
        return {"hidden": hidden, "view_all_data": self.view_all_data} | lists


class Access:
    def __init__(self, org: Org) -> None:
        self.org = org
        self.rights: dict[str, Rights] = {}
        self._views: dict[str, Schema] = {}

    def of(self, user_id: str) -> Rights:
        return self.rights.get(user_id) or Rights()

    def change(self, user_id: str, given: dict[str, Any]) -> Rights:
        """Take over the rights named in `given`, others stay. Errors: ValueError that says what was wrong."""
        for name in ("closed", "view_all_records", "shared"):
            if not isinstance(given.get(name, []), list):
                raise ValueError(f"{name}: expected a list")
        rights = self.rights.setdefault(user_id, Rights())
        if (hidden := given.get("hidden")) is not None:
            if not isinstance(hidden, dict):
                raise ValueError('hidden: expected fields by object, such as {"Contact": ["Email"]}')
            rights.hidden = {(found := self._object(name)).name: self._fields(found, names) for name, names in hidden.items()}
        for name in ("closed", "view_all_records"):
            if (objects := given.get(name)) is not None:
                setattr(rights, name, {self._object(o).name for o in objects})
        if (shared := given.get("shared")) is not None:
            rights.shared = {str(record_id) for record_id in shared}
        if (view_all := given.get("view_all_data")) is not None:
            rights.view_all_data = view_all is not False
        self._views.clear()
        return rights

    def _object(self, name: Any) -> SObject:
        if (found := self.org.schema.get(str(name))) is None:
            raise ValueError(f"no object named {name!r}")
        return found

    def _fields(self, sobject: SObject, names: Any) -> set[str]:
        made = set()
        for name in names if isinstance(names, list) else [names]:
            found = sobject.by_lower.get(str(name).lower())
            if found is None:
                raise ValueError(f"{sobject.name} has no field {name!r}")
            if found.name in _ALWAYS or found.required or found.is_name:
                raise ValueError(f"{sobject.name}.{found.name} cannot be hidden: system and required fields are always visible")
            made.add(found.name)
        return made

    def schema(self, user_id: str) -> Schema:
        """The schema as the user sees it."""
        rights = self.rights.get(user_id)
        if rights is None or not (rights.hidden or rights.closed):
            return self.org.schema
        if user_id not in self._views:
            self._views[user_id] = self.org.schema.without(rights.hidden, rights.closed)
        return self._views[user_id]

    def forget_views(self) -> None:
        """After a change of the schema."""
        self._views.clear()

    def sees(self, user_id: str) -> Callable[[Row], bool] | None:
        """Which rows the user may see; None where he may see all."""
        rights = self.of(user_id)
        if rights.view_all_data:
            return None
        prefixes = {self.org.schema.objects[name].prefix for name in rights.view_all_records}
        return lambda row: row.get("OwnerId", user_id) == user_id or row["Id"] in rights.shared or row["Id"][:3] in prefixes

    def check_written(self, user_id: str, sobject: SObject, written: Row) -> None:
        """Refuse a write that names a field hidden from the user. Errors: INVALID_FIELD."""
        hidden = {name.lower() for name in self.of(user_id).hidden.get(sobject.name, ())}
        for name in written:
            if name.lower() in hidden:
                raise bad("INVALID_FIELD", f"No such column '{name}' on sobject of type {sobject.name}")

    def trimmed(self, user_id: str, entity: str, data: bytes) -> bytes:
        """An event without what is hidden from the user: absent from the body and from changedFields."""
        hidden = self.of(user_id).hidden.get(entity)
        if not hidden:
            return data
        sobject = self.org.schema.objects[entity]
        event = orjson.loads(data)
        payload = event["payload"]
        changed = payload.get("ChangeEventHeader", {}).get("changedFields", [])
        for name in hidden:
            found = sobject.fields[name]
            path = f"{found.compound}.{found.component}" if found.compound else name
            inner = payload.get(found.compound) if found.compound else None
            if isinstance(inner, dict):
                inner.pop(found.component, None)
                if not inner:
                    del payload[found.compound]
            payload.pop(name, None)
            if path in changed:
                changed.remove(path)
        return orjson.dumps(event)
