"""The records of the org and the transactions that change them.

A kept row is never changed in place: a commit puts a new dict in its stead, so a cursor or an event may hold on to the old one.
Knows nothing of HTTP or of events; what a commit did is told as a list of `Change`.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.sandbox.salesforce import conversion, ids, values
from deploy.sandbox.salesforce.errors import SalesforceError, bad, not_found
from deploy.sandbox.salesforce.schema import Schema, SObject

Row = dict[str, Any]
Kind = Literal["CREATE", "UPDATE", "DELETE", "UNDELETE"]


@dataclass(slots=True)
class Change:
    """What a transaction made of one record; `sequence` is its place in the transaction, from 1."""

    sobject: SObject
    kind: Kind
    id: str
    before: Row | None
    after: Row
    sequence: int


@dataclass(slots=True)
class Table:
    rows: dict[str, Row] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # ids, ascending
    external: dict[str, dict[str, set[str]]] = field(default_factory=dict)  # field → lower-case value → ids not deleted
    next_number: int = 0
    deleted: int = 0  # how many of the rows are
    purged: list[tuple[str, Row]] = field(default_factory=list)  # when deleted, and what was then taken out of the recycle bin
    stamps: list[tuple[str, str]] | None = None  # (SystemModstamp, id), ascending; made when first asked for


class Store:
    def __init__(self, schema: Schema, seed: int = 0) -> None:
        self.schema = schema
        self._rng = random.Random(seed)  # own sequence: ids depend on the seed alone
        self.tables: dict[str, Table] = {}
        for sobject in schema.objects.values():
            self.add(sobject)

    def add(self, sobject: SObject) -> None:
        """A table for an object that has none, an index for an external id that has none."""
        table = self.tables.get(sobject.name)
        if table is None:
            table = self.tables[sobject.name] = Table(next_number=self._rng.randrange(62**3, 62**4))
        for f in sobject.fields.values():
            if (f.external_id or f.unique) and f.name not in table.external:
                table.external[f.name] = {}

    def new_id(self, sobject: SObject) -> str:
        table = self.tables[sobject.name]
        table.next_number += 1
        return ids.make(sobject.prefix, table.next_number)

    def find(self, sobject: SObject, record_id: str) -> Row | None:
        """The row, deleted or not."""
        return self.tables[sobject.name].rows.get(record_id)

    def anywhere(self, record_id: str) -> Row | None:
        """The row of an id of any object, by its prefix."""
        found = self.schema.by_prefix(record_id)
        return self.find(found, record_id) if found else None

    def by_external(self, sobject: SObject, field_name: str, value: str) -> list[str]:
        return sorted(self.tables[sobject.name].external[field_name].get(value.lower(), ()))

    def live(self, sobject: SObject) -> Iterator[Row]:
        return (row for row in self.tables[sobject.name].rows.values() if not row["IsDeleted"])

    def stamps(self, sobject: SObject) -> list[tuple[str, str]]:
        """(SystemModstamp, id) of every row, deleted or not, ascending."""
        table = self.tables[sobject.name]
        if table.stamps is None:
            table.stamps = sorted((row["SystemModstamp"], row["Id"]) for row in table.rows.values())
        return table.stamps

    def purge(self, sobject: SObject, record_id: str) -> bool:
        """Take a deleted row out of the recycle bin; False where it is not in there."""
        table = self.tables[sobject.name]
        row = table.rows.get(record_id)
        if row is None or not row["IsDeleted"]:
            return False
        if table.stamps is not None:
            del table.stamps[bisect_left(table.stamps, (row["SystemModstamp"], record_id))]
        del table.order[bisect_left(table.order, record_id)]
        del table.rows[record_id]
        table.deleted -= 1
        table.purged.append((row["SystemModstamp"], row))
        return True

    def put(self, sobject: SObject, row: Row) -> None:
        """Keep a row as it is; for commits and for the seeded beginning."""
        table = self.tables[sobject.name]
        old = table.rows.get(row["Id"])
        table.deleted += bool(row["IsDeleted"]) - bool(old and old["IsDeleted"])
        if table.stamps is not None:
            if old is not None:
                del table.stamps[bisect_left(table.stamps, (old["SystemModstamp"], old["Id"]))]
            insort(table.stamps, (row["SystemModstamp"], row["Id"]))
        if old is None:
            insort(table.order, row["Id"])
        table.rows[row["Id"]] = row
        for name, index in table.external.items():
            if old and not old["IsDeleted"] and old.get(name) is not None:
                index.get(str(old[name]).lower(), set()).discard(row["Id"])
            if not row["IsDeleted"] and row.get(name) is not None:
                index.setdefault(str(row[name]).lower(), set()).add(row["Id"])


class Transaction:
    """Changes that become visible together. Nothing is kept before `commit`; an error in an operation leaves the others as they were.

    `now` is in seconds. All records of a commit get one LastModifiedDate, never below the one they had.
    """

    def __init__(self, store: Store, user_id: str, now: float) -> None:
        self.store, self.user_id, self.now = store, user_id, now
        self._touched: dict[str, Change] = {}
        self._sequence = 0

    def create(self, sobject: SObject, written: Row) -> str:
        row: Row = {name: f.default for name, f in sobject.fields.items()}
        person = sobject.name == "Account" and self.store.schema.person_accounts and bool(written.get("LastName"))
        given = self._checked(sobject, {"Name": written["LastName"]} | written if person else written)
        if missing := [f.name for f in sobject.fields.values() if f.required and given.get(f.name) is None]:
            raise bad("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(missing)}]", *missing)
        record_id = self.store.new_id(sobject)
        if person:
            row["IsPersonAccount"] = True
        row |= {"Id": record_id, "IsDeleted": False, "CreatedById": self.user_id, "LastModifiedById": self.user_id}
        if "OwnerId" in row:
            row["OwnerId"] = self.user_id
        if "CaseNumber" in row:
            row["CaseNumber"] = f"{len(self.store.tables['Case'].rows) + len(self._touched) + 1001:08d}"
        row |= given
        self._unique(sobject, record_id, given)
        values.derive(sobject, row, given)
        self._touch(sobject, "CREATE", None, row)
        if person:
            contact = self.store.schema.objects["Contact"]
            row["PersonContactId"] = self.create(contact, conversion.of_contact(written) | {"AccountId": record_id})
            self._touched[row["PersonContactId"]].after["IsPersonAccount"] = True
        return record_id

    def update(self, sobject: SObject, record_id: str, written: Row, *, system: bool = False) -> None:
        """`system` lets fields through that only the platform writes (lead conversion)."""
        row = self._existing(sobject, record_id)
        given = self._checked(sobject, written, system=system)
        if missing := [n for n, v in given.items() if v is None and sobject.fields[n].required]:
            raise bad("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(missing)}]", *missing)
        self._unique(sobject, record_id, given)
        new = row | given | {"LastModifiedById": self.user_id}
        values.derive(sobject, new, given)
        self._touch(sobject, "UPDATE", row, new)
        if row.get("IsPersonAccount") and not system:
            self._mirror(sobject, row, written)

    def _mirror(self, sobject: SObject, row: Row, written: Row) -> None:
        """The other half of a person account changes along."""
        on_account = sobject.name == "Account"
        half = conversion.of_contact(written) if on_account else conversion.of_account(written)
        other = self.store.schema.objects["Contact" if on_account else "Account"]
        self.update(other, row["PersonContactId" if on_account else "AccountId"], half, system=True)

    def delete(self, sobject: SObject, record_id: str) -> None:
        row = self._existing(sobject, record_id)
        self._touch(sobject, "DELETE", row, row | {"IsDeleted": True, "LastModifiedById": self.user_id})
        if sobject.name == "Account" and row.get("IsPersonAccount"):
            self.delete(self.store.schema.objects["Contact"], row["PersonContactId"])

    def undelete(self, sobject: SObject, record_id: str) -> None:
        row = self._current(sobject, record_id)
        if row is None:
            raise not_found()
        if not row["IsDeleted"]:
            raise bad("UNDELETE_FAILED", "Entity is not in the recycle bin")
        self._unique(sobject, record_id, row)
        self._touch(sobject, "UNDELETE", row, row | {"IsDeleted": False, "LastModifiedById": self.user_id})
        if sobject.name == "Account" and row.get("IsPersonAccount"):
            self.undelete(self.store.schema.objects["Contact"], row["PersonContactId"])

    def checked(self, sobject: SObject, written: Row) -> Row:
        """The kept form of what is written to a platform event, which no table keeps. Errors: SalesforceError."""
        given = self._checked(sobject, written)
        if missing := [f.name for f in sobject.fields.values() if f.required and given.get(f.name) is None]:
            raise bad("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(missing)}]", *missing)
        return given

    def touched(self) -> list[Change]:
        """What the transaction has done so far."""
        return list(self._touched.values())

    def unselected(self) -> None:
        """A change of some object that nobody subscribed to: takes a sequence number, leaves a hole."""
        self._sequence += 1

    def commit(self) -> list[Change]:
        """Keep everything; the changes in the order their records were first touched."""
        stamp = max([values.iso(self.now), *(c.before["SystemModstamp"] for c in self._touched.values() if c.before)])
        for change in self._touched.values():
            change.after["LastModifiedDate"] = change.after["SystemModstamp"] = stamp
            if change.before is None:
                change.after["CreatedDate"] = stamp
            self.store.put(change.sobject, change.after)
        return list(self._touched.values())

    def _current(self, sobject: SObject, record_id: str) -> Row | None:
        touched = self._touched.get(record_id)
        return touched.after if touched else self.store.find(sobject, record_id)

    def _existing(self, sobject: SObject, record_id: str) -> Row:
        row = self._current(sobject, record_id)
        if row is None:
            raise not_found()
        if row["IsDeleted"]:
            raise SalesforceError(404, "ENTITY_IS_DELETED", "entity is deleted", [])
        return row

    def _touch(self, sobject: SObject, kind: Kind, before: Row | None, after: Row) -> None:
        """One change per record: the first kind with the last data. A record that ends deleted is a DELETE, though."""
        known = self._touched.get(after["Id"])
        if known is None:
            self._sequence += 1
            self._touched[after["Id"]] = Change(sobject, kind, after["Id"], before, after, self._sequence)
            return
        known.after = after
        if known.kind == "CREATE" and after["IsDeleted"]:
            del self._touched[after["Id"]]  # never seen by anybody
        elif after["IsDeleted"]:
            known.kind = "DELETE"
        elif known.kind == "DELETE":
            known.kind = "UNDELETE" if known.before and known.before["IsDeleted"] else "UPDATE"

    def _checked(self, sobject: SObject, written: Row, *, system: bool = False) -> Row:
        given: Row = {}
        for name, value in written.items():
            if name == "attributes":
                continue
            found = sobject.by_lower.get(name.lower())
            if found is None:
                raise bad("INVALID_FIELD", f"No such column '{name}' on sobject of type {sobject.name}")
            if not found.writable and not system:
                detail = (
                    "Please check the security settings of this field and verify that it is read/write for your profile or permission set."
                )
                raise bad("INVALID_FIELD_FOR_INSERT_UPDATE", f"Unable to create/update fields: {found.name}. {detail}", found.name)
            given[found.name] = kept = values.check(found, value)
            if found.type == "reference" and kept is not None:
                self._reference(found.name, found.reference, kept)
        return given

    def _reference(self, name: str, targets: tuple[str, ...], record_id: str) -> None:
        target = self.store.schema.by_prefix(record_id)
        row = self._current(target, record_id) if target and target.name in targets else None
        if row is None or row["IsDeleted"]:
            raise bad("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id", name)

    def _unique(self, sobject: SObject, record_id: str, given: Row) -> None:
        for name in self.store.tables[sobject.name].external:
            value = given.get(name)
            if value is None or not sobject.fields[name].unique:
                continue
            holders = set(self.store.by_external(sobject, name, str(value)))
            for other in self._touched.values():
                if other.sobject is sobject:
                    holders.discard(other.id)
                    if not other.after["IsDeleted"] and str(other.after.get(name)).lower() == str(value).lower():
                        holders.add(other.id)
            if holders := holders - {record_id}:
                raise bad("DUPLICATE_VALUE", f"duplicate value found: {name} duplicates value on record with id: {min(holders)[:15]}")
