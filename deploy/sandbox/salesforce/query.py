"""Runs a parsed SOQL query against the store: names looked up, indexes by id and external id used, rows in REST's form."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from deploy.sandbox.salesforce import ids, soql, values
from deploy.sandbox.salesforce.errors import SalesforceError, bad
from deploy.sandbox.salesforce.schema import Field, SObject
from deploy.sandbox.salesforce.store import Row, Store

Getter = Callable[[Row], Any]
_NUMERIC = frozenset({"int", "double", "currency", "percent"})


@dataclass(slots=True)
class Result:
    """`total` rows found; `rows` and `project` make the records, page by page. For COUNT() there are none."""

    total: int
    rows: list[Row]
    project: Callable[[Row], dict[str, Any]]


def run(store: Store, text: str, api: str, *, deleted: bool = False) -> Result:
    """Parse and run. `api` is the path in front of record URLs, `/services/data/v67.0`. Errors: SalesforceError."""
    query = soql.parse(text)
    sobject = store.schema.get(query.sobject)
    if sobject is None:
        hint = "If you are attempting to use a custom object, be sure to append the '__c' after the entity name."
        raise bad_name("INVALID_TYPE", f"sObject type '{query.sobject}' is not supported. {hint}")
    plan = _Plan(store, sobject, api)
    calls = [i for i in query.items if isinstance(i, soql.Call)]
    project = (lambda row: row) if calls else plan.projection([i for i in query.items if not isinstance(i, soql.Call)])
    matches = plan.condition(query.where) if query.where else None
    keys = [(plan.getter(k.path), k) for k in query.order]
    rows = [
        r for r in plan.candidates(query.where) if (deleted or query.all_rows or not r["IsDeleted"]) and (matches is None or matches(r))
    ]
    if calls:
        return _aggregate(plan, query, calls, rows)
    if keys and not (len(keys) == 1 and query.order[0].path[0].lower() == "id" and not query.order[0].descending):
        rows.sort(key=cmp_to_key(lambda a, b: _compare_rows(keys, a, b)))
    rows = rows[query.offset : None if query.limit is None else query.offset + query.limit]
    return Result(len(rows), rows, project)


def bad_name(code: str, text: str) -> SalesforceError:
    """As `bad`, but without `fields`: query errors have none."""
    return SalesforceError(400, code, text)


def _aggregate(plan: "_Plan", query: soql.Query, calls: list[soql.Call], rows: list[Row]) -> Result:
    if len(calls) != len(query.items):
        raise soql.malformed("Field must be grouped or aggregated")
    if any(c.path is None for c in calls):
        if len(calls) > 1:
            raise soql.malformed("COUNT() must be the only element in the SELECT list")
        limited = rows[: query.limit] if query.limit is not None else rows
        return Result(len(limited), [], lambda row: row)
    out: dict[str, Any] = {"attributes": {"type": "AggregateResult"}}
    for number, call in enumerate(calls):
        found = plan.field(call.path or ())[1]
        got = [v for v in map(plan.getter(call.path or ()), rows) if v is not None]
        value: Any = len(got)
        if call.function != "COUNT":
            value = values.rest_form(found, (max if call.function == "MAX" else min)(got)) if got else None
        out[call.alias or f"expr{number}"] = value
    return Result(1, [out], lambda row: row)


def _compare_rows(keys: list[tuple[Getter, soql.Key]], a: Row, b: Row) -> int:
    for getter, key in keys:
        x, y = _folded(getter(a)), _folded(getter(b))
        if x == y:
            continue
        if x is None or y is None:
            return (1 if key.nulls_last else -1) * (1 if x is None else -1)
        less = -1 if x < y else 1
        return -less if key.descending else less
    return -1 if a["Id"] < b["Id"] else 1


def _folded(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


class _Plan:
    """Names of one query resolved against one object."""

    def __init__(self, store: Store, sobject: SObject, api: str) -> None:
        self.store, self.sobject, self.api = store, sobject, api

    def field(self, path: soql.Path_) -> tuple[tuple[Field, ...], Field]:
        """The reference fields to follow and the field at the end."""
        at = self.sobject
        steps: list[Field] = []
        for name in path[:-1]:
            step = at.relationships.get(name.lower())
            if step is None:
                if name.lower() == self.sobject.name.lower() and not steps:
                    continue  # the object's own name in front of a field
                raise bad_name("INVALID_FIELD", f"Didn't understand relationship '{name}' in field path. {_HINT}")
            steps.append(step)
            targets = [t for t in (self.store.schema.get(r) for r in step.reference) if t]
            at = next((t for t in targets if path[-1].lower() in t.by_lower or path[-1].lower() in t.relationships), targets[0])
        found = at.by_lower.get(path[-1].lower())
        if found is None:
            raise bad_name("INVALID_FIELD", f"No such column '{path[-1]}' on entity '{at.name}'. {_HINT}")
        return tuple(steps), found

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

    def projection(self, paths: list[soql.Path_]) -> Callable[[Row], dict[str, Any]]:
        """What makes a row into a REST record, parents nested and with `attributes`."""
        plain: list[tuple[Field, list[Field]]] = []
        nested: dict[str, list[soql.Path_]] = {}
        steps: dict[str, Field] = {}
        for path in paths:
            via, found = self.field(path)
            if via:
                name = via[0].relationship or ""
                nested.setdefault(name, []).append(path[-len(via) :])
                steps[name] = via[0]
            else:
                plain.append((found, self.sobject.compounds.get(found.name, []) if found.type == "address" else []))
        deeper = {name: self._parents(steps[name], below) for name, below in nested.items()}

        def project(row: Row) -> dict[str, Any]:
            out: dict[str, Any] = {"attributes": self._attributes(self.sobject, row)}
            for found, parts in plain:
                out[found.name] = _address(row, parts) if parts else values.rest_form(found, row.get(found.name))
            for name, make in deeper.items():
                out[name] = make(row)
            return out

        return project

    def _parents(self, step: Field, below: list[soql.Path_]) -> Callable[[Row], dict[str, Any] | None]:
        plans: dict[str, Callable[[Row], dict[str, Any]]] = {}

        def make(row: Row) -> dict[str, Any] | None:
            parent = self._follow(row, (step,))
            target = self.store.schema.by_prefix(parent["Id"]) if parent else None
            if parent is None or target is None:
                return None
            if target.name not in plans:
                known = [p for p in below if p[0].lower() in target.by_lower or p[0].lower() in target.relationships]
                plans[target.name] = _Plan(self.store, target, self.api).projection(known)
            return plans[target.name](parent)

        return make

    def _attributes(self, sobject: SObject, row: Row) -> dict[str, str]:
        return {"type": sobject.name, "url": f"{self.api}/sobjects/{sobject.name}/{row['Id']}"}

    def candidates(self, where: soql.Condition | None) -> Iterable[Row]:
        """The rows that may match, in the order of their ids, by an index where the condition allows."""
        table = self.store.tables[self.sobject.name]
        low, high = 0, len(table.order)
        for test in _conjuncts(where):
            if len(test.path) != 1:
                continue
            name = test.path[0].lower()
            strings = [v.value for v in test.literals if v.kind == "string"]
            if name == "id" and test.operator in ("=", "in"):
                wanted = {i for i in map(ids.normalize, strings) if i}
                return [table.rows[i] for i in sorted(wanted) if i in table.rows]
            found = self.sobject.by_lower.get(name)
            if found and found.name in table.external and test.operator in ("=", "in") and len(strings) == len(test.literals):
                # deleted rows are not in that index; queryAll by external id must see them, so it scans
                hits = {i for s in strings for i in self.store.by_external(self.sobject, found.name, s)}
                gone = (r for r in table.rows.values() if r["IsDeleted"])
                return sorted([table.rows[i] for i in hits] + list(gone), key=lambda r: str(r["Id"]))
            if name == "id" and test.operator in (">", ">=", "<", "<=") and strings:
                edge = ids.normalize(strings[0]) or strings[0]
                at = (bisect_right if test.operator in (">", "<=") else bisect_left)(table.order, edge)
                low, high = (max(low, at), high) if ">" in test.operator else (low, min(high, at))
        return (table.rows[i] for i in table.order[low:high])

    def condition(self, where: soql.Condition) -> Callable[[Row], bool]:
        if isinstance(where, soql.Group):
            parts = [self.condition(p) for p in where.parts]
            if where.word == "not":
                return lambda row: not parts[0](row)
            return (lambda row: all(p(row) for p in parts)) if where.word == "all" else (lambda row: any(p(row) for p in parts))
        found = self.field(where.path)[1]
        getter = self.getter(where.path)
        wanted = [_operand(found, literal, where.operator) for literal in where.literals]
        return _test(getter, where.operator, wanted)


_HINT = (
    "If you are attempting to use a custom field, be sure to append the '__c' after the custom field name. "
    "Please reference your WSDL or the describe call for the appropriate names."
)


def _conjuncts(where: soql.Condition | None) -> Iterable[soql.Test]:
    if isinstance(where, soql.Test):
        yield where
    elif isinstance(where, soql.Group) and where.word == "all":
        for part in where.parts:
            yield from _conjuncts(part)


def _address(row: Row, parts: list[Field]) -> dict[str, Any] | None:
    if all(row.get(p.name) is None for p in parts):
        return None
    return {(p.component or "")[0].lower() + (p.component or "")[1:]: row.get(p.name) for p in parts}


def _operand(found: Field, literal: soql.Literal, operator: str) -> Any:
    """The literal in the form the field is compared in. Errors: INVALID_FIELD where the kinds do not fit, as Salesforce words it."""
    if literal.kind == "null":
        if operator not in ("=", "!=", "in"):
            raise bad_name("INVALID_QUERY_FILTER_OPERATOR", f"invalid operator on {found.name} field")
        return None
    wants = (
        "boolean"
        if found.type == "boolean"
        else "number"
        if found.type in _NUMERIC
        else found.type
        if found.type in ("date", "datetime")
        else "string"
    )
    if literal.kind != wants:
        quoted = "and should not be enclosed in quotes" if wants != "string" else "and should be enclosed in quotes"
        raise bad_name("INVALID_FIELD", f"value of filter criterion for field '{found.name}' must be of type {found.type} {quoted}")
    if found.type in ("id", "reference"):
        return ids.normalize(literal.value) or _malformed_id(literal.value, operator)
    if wants == "boolean" and operator not in ("=", "!=", "in"):
        raise bad_name("INVALID_QUERY_FILTER_OPERATOR", f"invalid operator on {found.name} field")
    return literal.value


def _malformed_id(text: str, operator: str) -> str:
    if operator in ("<", ">", "<=", ">=", "like"):
        return text  # keyset paging starts from any text
    raise bad("INVALID_QUERY_FILTER_OPERATOR", f"invalid ID field: {text[:80]}")


def _test(getter: Getter, operator: str, wanted: list[Any]) -> Callable[[Row], bool]:
    if operator == "in":
        members = {_folded(w) if not _is_id(w) else w for w in wanted}
        return lambda row: (v := getter(row)) in members or _folded(v) in members
    if operator == "like":
        matches = _like(wanted[0])
        return lambda row: isinstance(v := getter(row), str) and matches(v)
    exact = _is_id(wanted[0])
    folded = wanted[0] if exact else _folded(wanted[0])

    def fold(row: Row) -> Any:
        value = getter(row)
        return value if exact else _folded(value)

    if operator == "=":
        return lambda row: bool(fold(row) == folded)
    if operator == "!=":
        return lambda row: bool(fold(row) != folded)
    if operator == "<":
        return lambda row: (v := fold(row)) is not None and v < folded
    if operator == "<=":
        return lambda row: (v := fold(row)) is not None and v <= folded
    if operator == ">":
        return lambda row: (v := fold(row)) is not None and v > folded
    return lambda row: (v := fold(row)) is not None and v >= folded


def _is_id(value: Any) -> bool:
    """Ids are compared with regard to case, all other text without."""
    return isinstance(value, str) and ids.normalize(value) == value


def _like(pattern: str) -> Callable[[str], bool]:
    """LIKE without regular expressions: no pattern makes it slow. `%` any text, `_` one character, backslash escapes both."""
    wanted: list[str | None] = []  # a folded character, "" for any one, None for any text
    escaped = False
    for c in pattern:
        if c == "\\" and not escaped:
            escaped = True
            continue
        wanted.append(c.casefold() if escaped or c not in "%_" else "" if c == "_" else None)
        escaped = False

    def matches(text: str) -> bool:
        at = star = 0
        resume = -1
        i = 0
        while i < len(text):
            if at < len(wanted) and (want := wanted[at]) is not None and want in ("", text[i].casefold()):
                i, at = i + 1, at + 1
            elif at < len(wanted) and wanted[at] is None:
                star, resume, at = i, at, at + 1
            elif resume >= 0:
                star += 1
                i, at = star, resume + 1
            else:
                return False
        return all(w is None for w in wanted[at:])

    return matches
