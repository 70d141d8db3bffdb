"""Names of one query resolved against one object: fields and parents, the rows that may match, records in REST's form.

Sees the schema it is given, which may be one user's: a field hidden there does not exist. Changes nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from deploy.sandbox.salesforce import ids, soql
from deploy.sandbox.salesforce.conditions import Check, Getter, conjuncts, operand, refused, test
from deploy.sandbox.salesforce.schema import Field, Schema, SObject
from deploy.sandbox.salesforce.store import Row, Store

Project = Callable[[Row], dict[str, Any]]
_RANGE = frozenset({">", ">=", "<", "<="})
_HINT = (
    "If you are attempting to use a custom field, be sure to append the '__c' after the custom field name. "
    "Please reference your WSDL or the describe call for the appropriate names."
)


@dataclass(slots=True)
class Candidates:
    """Rows that may match. `by` is the field whose order they are in, with Id behind it; `exact` the tests that need no second look."""

    rows: Iterable[Row]
    by: str = "Id"
    exact: tuple[soql.Test, ...] = ()


class Plan:
    def __init__(self, store: Store, schema: Schema, sobject: SObject, api: str, text: str = "") -> None:
        self.store, self.schema, self.sobject, self.api, self.text = store, schema, sobject, api, text

    def field(self, path: soql.Path_) -> tuple[tuple[Field, ...], Field]:
        """The reference fields to follow and the field at the end."""
        at = self.sobject
        steps: list[Field] = []
        for name in path[:-1]:
            step = at.relationships.get(name.lower())
            if step is None:
                if name.lower() == self.sobject.name.lower() and not steps:
                    continue  # the object's own name in front of a field
                raise refused("INVALID_FIELD", self._marked(path, f"Didn't understand relationship '{name}' in field path. {_HINT}"))
            steps.append(step)
            targets = [t for t in (self.schema.get(r) for r in step.reference) if t]
            at = next((t for t in targets if path[-1].lower() in t.by_lower or path[-1].lower() in t.relationships), targets[0])
        found = at.by_lower.get(path[-1].lower())
        if found is None:
            raise refused("INVALID_FIELD", self._marked(path, f"No such column '{path[-1]}' on entity '{at.name}'. {_HINT}"))
        return tuple(steps), found

    def _marked(self, path: soql.Path_, what: str) -> str:
        """The message with the place in the query above it, as Salesforce shows it."""
        at = self.text.find(".".join(path))
        if at < 0:
            return what
        row, column = self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)
        around = self.text[max(0, at - 30) : at + 30].replace("\n", " ")
        return f"\n{around}\n{' ' * min(at, 30)}^\nERROR at Row:{row}:Column:{column}\n{what}"

    def getter(self, path: soql.Path_) -> Getter:
        steps, found = self.field(path)
        name = found.name
        if not steps:
            return lambda row: row.get(name)

        def follow(row: Row) -> Any:
            at = self._follow(row, steps)
            return at.get(name) if at else None

        return follow

    def _follow(self, row: Row, steps: Iterable[Field]) -> Row | None:
        at: Row | None = row
        for step in steps:
            target = at.get(step.name) if at else None
            at = self.store.anywhere(target) if target else None
            if at and at["IsDeleted"]:
                return None
        return at

    def column(self, path: soql.Path_) -> tuple[str, Field]:
        """The name over a CSV column, in the schema's spelling, and its field."""
        steps, found = self.field(path)
        return ".".join([*(s.relationship or "" for s in steps), found.name]), found

    def projection(self, paths: Iterable[soql.Path_]) -> Project:
        """What makes a row into a REST record, parents nested and with `attributes`."""
        plain: list[tuple[str, bool, list[Field]]] = []
        nested: dict[str, list[soql.Path_]] = {}
        steps: dict[str, Field] = {}
        for path in paths:
            via, found = self.field(path)
            if via:
                name = via[0].relationship or ""
                nested.setdefault(name, []).append(path[-len(via) :])
                steps[name] = via[0]
            else:
                parts = self.sobject.compounds.get(found.name, []) if found.type == "address" else []
                plain.append((found.name, found.type == "datetime", parts))
        deeper = {name: self._parents(steps[name], below) for name, below in nested.items()}
        kind, url = self.sobject.name, f"{self.api}/sobjects/{self.sobject.name}/"

        def project(row: Row) -> dict[str, Any]:
            out: dict[str, Any] = {"attributes": {"type": kind, "url": url + row["Id"]}}
            value: Any
            for name, moment, parts in plain:
                value = _address(row, parts) if parts else row.get(name)
                out[name] = value[:-1] + "+0000" if moment and value else value
            for name, make in deeper.items():
                out[name] = make(row)
            return out

        return project

    def _parents(self, step: Field, below: list[soql.Path_]) -> Callable[[Row], dict[str, Any] | None]:
        plans: dict[str, Project] = {}

        def make(row: Row) -> dict[str, Any] | None:
            parent = self._follow(row, (step,))
            target = self.schema.by_prefix(parent["Id"]) if parent else None
            if parent is None or target is None:
                return None
            if target.name not in plans:
                known = [p for p in below if p[0].lower() in target.by_lower or p[0].lower() in target.relationships]
                plans[target.name] = Plan(self.store, self.schema, target, self.api).projection(known)
            return plans[target.name](parent)

        return make

    def candidates(self, where: soql.Condition | None, *, by_stamp: bool = False, descending: bool = False) -> Candidates:
        """The rows that may match, by an index where the condition allows; in the order of the stamps where that is wanted and cheap."""
        table = self.store.tables[self.sobject.name]
        low, high = 0, len(table.order)
        first = last = None  # bounds in the index of stamps
        exact: list[soql.Test] = []
        for one in conjuncts(where):
            name = one.path[0].lower() if len(one.path) == 1 else ""
            strings = [v.value for v in one.literals if v.kind == "string"]
            if name == "id" and one.operator in ("=", "in"):
                wanted = {i for i in map(ids.normalize, strings) if i}
                return Candidates(table.rows[i] for i in sorted(wanted, reverse=descending) if i in table.rows)
            found = self.sobject.by_lower.get(name)
            if found and found.name in table.external and one.operator in ("=", "in") and len(strings) == len(one.literals):
                # deleted rows are not in that index; queryAll by external id must see them, so it scans
                hits = {i for s in strings for i in self.store.by_external(self.sobject, found.name, s)}
                gone = (r for r in table.rows.values() if r["IsDeleted"])
                rows = sorted([table.rows[i] for i in hits] + list(gone), key=lambda r: str(r["Id"]), reverse=descending)
                return Candidates(rows)
            if name == "id" and one.operator in _RANGE and strings:
                edge = ids.normalize(strings[0]) or strings[0]
                at = (bisect_right if one.operator in (">", "<=") else bisect_left)(table.order, edge)
                low, high = (max(low, at), high) if ">" in one.operator else (low, min(high, at))
                exact.append(one)
            elif name == "systemmodstamp" and one.operator in _RANGE and one.literals[0].kind == "datetime":
                stamps = self.store.stamps(self.sobject)
                after = one.operator in (">", "<=")
                at = bisect_left(stamps, (one.literals[0].value, "~" if after else ""))
                first, last = (max(first or 0, at), last) if ">" in one.operator else (first, at if last is None else min(last, at))
        if by_stamp or first is not None or last is not None:
            stamps = self.store.stamps(self.sobject)
            first, last = first or 0, len(stamps) if last is None else last
            if by_stamp or last - first < high - low:
                chosen = stamps[first:last]
                ordered = reversed(chosen) if descending and by_stamp else chosen
                return Candidates((table.rows[i] for _, i in ordered), "SystemModstamp")
        order = table.order[low:high]
        return Candidates((table.rows[i] for i in (reversed(order) if descending else order)), exact=tuple(exact))

    def condition(self, where: soql.Condition, known: tuple[soql.Test, ...] = ()) -> Check | None:
        """The condition as a function; None where the tests `known` to hold are all of it. Every name is looked up all the same."""
        if isinstance(where, soql.Group):
            parts = [c for p in where.parts if (c := self.condition(p, known if where.word == "all" else ()))]
            if where.word == "not":
                return lambda row: not parts[0](row)
            if len(parts) < 2:
                return parts[0] if parts else None
            if where.word == "all":
                return lambda row: all(p(row) for p in parts)
            return lambda row: any(p(row) for p in parts)
        found = self.field(where.path)[1]
        wanted = [operand(found, literal, where.operator) for literal in where.literals]
        if any(where is k for k in known):
            return None
        return test(found, self.getter(where.path), where.operator, wanted)


def _address(row: Row, parts: list[Field]) -> dict[str, Any] | None:
    if all(row.get(p.name) is None for p in parts):
        return None
    return {(p.component or "")[0].lower() + (p.component or "")[1:]: row.get(p.name) for p in parts}
