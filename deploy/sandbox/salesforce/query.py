"""Runs a parsed SOQL query against the store: the rows that match, in order, or what they amount to. Only reads."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from deploy.sandbox.salesforce import soql, values
from deploy.sandbox.salesforce.conditions import IDS, NUMERIC, Getter, folded, refused
from deploy.sandbox.salesforce.plan import Plan
from deploy.sandbox.salesforce.schema import Field, Schema
from deploy.sandbox.salesforce.store import Row, Store

T = TypeVar("T")
Sees = Callable[[Row], bool]
Group = tuple[Row, list[Row]]  # the record of a group, and its rows


@dataclass(slots=True)
class Result:
    """`total` rows found; `rows` and `project` make the records, page by page. For COUNT() there are none."""

    total: int
    rows: list[Row]
    project: Callable[[Row], dict[str, Any]]


@dataclass(slots=True)
class Columns:
    """A result as a table: the names over the columns, their fields and how to read them; `rows` runs the query."""

    sobject: str
    names: list[str]
    fields: list[Field]
    getters: list[Getter]
    rows: Callable[[], list[Row]]
    ordered: bool


def run(store: Store, text: str, api: str, *, deleted: bool = False, schema: Schema | None = None, sees: Sees | None = None) -> Result:
    """Parse and run. `api` is the path in front of record URLs, `/services/data/v67.0`; `schema` and `sees` are what the caller's user may
    see, all where not given. Errors: SalesforceError."""
    query = soql.parse(text)
    plan = _plan(store, schema or store.schema, query, text, api)
    if query.groups or any(isinstance(i, soql.Call) and i.function != "FIELDS" for i in query.items):
        return _aggregated(plan, query, deleted, sees)
    project = plan.projection(_paths(plan, query))
    rows = _rows(plan, query, deleted, sees)
    return Result(len(rows), rows, project)


def columns(store: Store, text: str, *, deleted: bool = False, schema: Schema | None = None, sees: Sees | None = None) -> Columns:
    """As `run`, for Bulk API 2.0, which has no aggregates, groups, offsets and compound fields. Errors: SalesforceError."""
    query = soql.parse(text)
    plan = _plan(store, schema or store.schema, query, text, "")
    if query.groups or any(isinstance(i, soql.Call) and i.function != "FIELDS" for i in query.items):
        raise refused("API_ERROR", "Aggregate queries and GROUP BY are not supported in Bulk Query")
    if query.offset:
        raise refused("API_ERROR", "OFFSET is not supported in Bulk Query")
    paths = _paths(plan, query)
    named = [plan.column(p) for p in paths]
    if any(f.type == "address" for _, f in named):
        raise refused("API_ERROR", "Selecting compound data not supported in Bulk Query")
    if query.where:
        plan.condition(query.where)  # its names are checked now, it runs later
    rows = partial(_rows, plan, query, deleted, sees)
    getters = [plan.getter(p) for p in paths]
    return Columns(plan.sobject.name, [n for n, _ in named], [f for _, f in named], getters, rows, bool(query.order))


def _plan(store: Store, schema: Schema, query: soql.Query, text: str, api: str) -> Plan:
    sobject = schema.get(query.sobject)
    if sobject is None:
        hint = "If you are attempting to use a custom object, be sure to append the '__c' after the entity name."
        raise refused("INVALID_TYPE", f"sObject type '{query.sobject}' is not supported. {hint}")
    if sobject.event:
        raise refused("INVALID_TYPE_FOR_OPERATION", f"entity type {sobject.name} does not support query")
    return Plan(store, schema, sobject, api, text)


def _paths(plan: Plan, query: soql.Query) -> list[soql.Path_]:
    paths: list[soql.Path_] = []
    for item in query.items:
        if isinstance(item, soql.Call):
            paths += [(name,) for name in _every(plan, query, item)]
        else:
            paths.append(item)
    lower = [tuple(s.lower() for s in p) for p in paths]
    if twice := [p for p, count in Counter(lower).items() if count > 1]:
        raise refused(
            "INVALID_FIELD", f"duplicate field selected: {next(p[-1] for p, low in zip(paths, lower, strict=True) if low in twice)}"
        )
    return paths


def _every(plan: Plan, query: soql.Query, call: soql.Call) -> list[str]:
    which = (call.path or ("",))[-1].upper()
    if which not in ("ALL", "STANDARD", "CUSTOM"):
        raise soql.malformed(f"unexpected token: {which}")
    if query.limit is None or query.limit > 200:
        raise soql.malformed("The SOQL FIELDS function must have a LIMIT of at most 200")
    return [f.name for f in plan.sobject.fields.values() if which == "ALL" or f.custom == (which == "CUSTOM")]


def _rows(plan: Plan, query: soql.Query, deleted: bool, sees: Sees | None, *, whole: bool = False) -> list[Row]:
    """The rows found; those of an index that already has the order wanted are looked at only until there are enough."""
    keys = [(plan.field(k.path)[1] if isinstance(k.path, tuple) else None, k) for k in query.order]
    if any(f is None for f, _ in keys):
        raise soql.malformed("Field must be grouped or aggregated")
    names = [f.name if f and len(k.path if isinstance(k.path, tuple) else ()) == 1 else "" for f, k in keys]
    down = [k.descending for _, k in keys]
    by_stamp = names in (["SystemModstamp"], ["SystemModstamp", "Id"]) and len(set(down)) == 1 and not (down[0] and len(names) == 1)
    by_id = names in ([], ["Id"])
    found = plan.candidates(query.where, by_stamp=by_stamp, descending=bool(down and down[0]) and (by_stamp or by_id))
    matches = plan.condition(query.where, found.exact) if query.where else None
    hides = not (deleted or query.all_rows)
    rows: Iterable[Row] = found.rows
    if hides:
        rows = (r for r in rows if not r["IsDeleted"])
    if matches is not None:
        rows = filter(matches, rows)
    if sees is not None:
        rows = filter(sees, rows)
    if whole:
        return list(rows)
    end = None if query.limit is None else query.offset + query.limit
    if (by_id and found.by == "Id") or (by_stamp and found.by == "SystemModstamp"):
        return list(islice(rows, query.offset, end))
    ordered = list(rows)
    if found.by != "Id":
        ordered.sort(key=lambda r: str(r["Id"]), reverse=by_id and bool(down and down[0]))
    if not by_id:
        ordered = sort(ordered, [(_sorted_by(plan, k.path), k) for k in query.order if isinstance(k.path, tuple)])
    return ordered[query.offset : end]


def _sorted_by(plan: Plan, path: soql.Path_) -> Getter:
    get = plan.getter(path)
    return get if plan.field(path)[1].type in IDS else lambda row: folded(get(row))


def sort(rows: list[T], keys: list[tuple[Callable[[T], Any], soql.Key]]) -> list[T]:
    """In the order of the keys, nulls first unless told otherwise; stable."""
    for get, key in reversed(keys):
        empty = [r for r in rows if get(r) is None]
        full = sorted((r for r in rows if get(r) is not None), key=get, reverse=key.descending)
        rows = full + empty if key.nulls_last else empty + full
    return rows


def _aggregated(plan: Plan, query: soql.Query, deleted: bool, sees: Sees | None) -> Result:
    calls = [i for i in query.items if isinstance(i, soql.Call)]
    if any(c.path is None for c in calls):
        if len(query.items) > 1 or query.groups:
            raise soql.malformed("COUNT() must be the only element in the SELECT list")
        count = _count(plan, query, deleted, sees)
        return Result(count if query.limit is None else min(count, query.limit), [], lambda row: row)
    groups = {tuple(s.lower() for s in p): plan.getter(p) for p in query.groups}
    plain = [i for i in query.items if not isinstance(i, soql.Call)]
    if any(tuple(s.lower() for s in p) not in groups for p in plain) or any(c.function == "FIELDS" for c in calls):
        raise soql.malformed("Field must be grouped or aggregated")
    makers = _makers(plan, query)
    bare = soql.Query(query.items, query.sobject, query.where, (), (), None, 0, query.all_rows)
    rows = _rows(plan, bare, deleted, sees, whole=True)
    if not query.groups:
        if query.order:
            raise soql.malformed("Ordered field must be grouped or aggregated")
        return Result(1, [_record(makers, rows)], lambda row: row)
    split: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        split.setdefault(tuple(folded(get(row)) for get in groups.values()), []).append(row)
    made: list[Group] = [(_record(makers, members), members) for members in split.values()]
    made = sort(made, [(_group_key(plan, groups, key), key) for key in query.order])
    end = None if query.limit is None else query.offset + query.limit
    records = [record for record, _ in made[query.offset : end]]
    return Result(len(records), records, lambda row: row)


def _group_key(plan: Plan, groups: dict[tuple[str, ...], Getter], key: soql.Key) -> Callable[[Group], Any]:
    if isinstance(key.path, soql.Call):
        value = _value(plan, key.path)
        return lambda made: value(made[1])
    if tuple(s.lower() for s in key.path) not in groups:
        raise soql.malformed("Ordered field must be grouped or aggregated")
    get = _sorted_by(plan, key.path)
    return lambda made: get(made[1][0])


def _makers(plan: Plan, query: soql.Query) -> list[tuple[str, Callable[[list[Row]], Any]]]:
    """The columns of an AggregateResult: name, and the value of a group."""
    made: list[tuple[str, Callable[[list[Row]], Any]]] = []
    number = 0
    for item in query.items:
        if isinstance(item, soql.Call):
            made.append((item.alias or f"expr{number}", _value(plan, item)))
            number += item.alias is None
        else:
            made.append((plan.field(item)[1].name, _shown(plan, item)))
    return made


def _shown(plan: Plan, path: soql.Path_) -> Callable[[list[Row]], Any]:
    get, found = plan.getter(path), plan.field(path)[1]
    return lambda rows: values.rest_form(found, get(rows[0]))


def _value(plan: Plan, call: soql.Call) -> Callable[[list[Row]], Any]:
    path = call.path or ()
    get, found = plan.getter(path), plan.field(path)[1]
    if call.function in ("SUM", "AVG") and found.type not in NUMERIC:
        raise soql.malformed(f"field {found.name} does not support aggregate operator {call.function}")
    if call.function in ("MAX", "MIN") and found.type in ("boolean", "textarea", "address"):
        raise soql.malformed(f"field {found.name} does not support aggregate operator {call.function}")

    def value(rows: list[Row]) -> Any:
        got = [v for row in rows if (v := get(row)) is not None]
        match call.function:
            case "COUNT":
                return len(got)
            case "COUNT_DISTINCT":
                return len(set(map(folded, got)))
            case "SUM":
                return sum(got) if got else None
            case "AVG":
                return sum(got) / len(got) if got else None
        return values.rest_form(found, (max if call.function == "MAX" else min)(got)) if got else None

    return value


def _record(makers: list[tuple[str, Callable[[list[Row]], Any]]], rows: list[Row]) -> dict[str, Any]:
    return {"attributes": {"type": "AggregateResult"}} | {name: value(rows) for name, value in makers}


def _count(plan: Plan, query: soql.Query, deleted: bool, sees: Sees | None) -> int:
    if query.where is None and sees is None:  # asked all the time, and known
        table = plan.store.tables[plan.sobject.name]
        return len(table.rows) - (0 if deleted or query.all_rows else table.deleted)
    bare = soql.Query(query.items, query.sobject, query.where, (), (), None, 0, query.all_rows)
    return len(_rows(plan, bare, deleted, sees, whole=True))
