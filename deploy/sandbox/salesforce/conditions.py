"""Makes the condition of a query a function over a row: how values are compared, and what a literal may be compared with. No state."""

from collections.abc import Callable, Iterable
from typing import Any

from deploy.sandbox.salesforce import ids, soql
from deploy.sandbox.salesforce.errors import SalesforceError, bad
from deploy.sandbox.salesforce.schema import Field
from deploy.sandbox.salesforce.store import Row

Getter = Callable[[Row], Any]
Check = Callable[[Row], bool]
NUMERIC = frozenset({"int", "double", "currency", "percent"})
IDS = frozenset({"id", "reference"})


def refused(code: str, text: str) -> SalesforceError:
    """A 400 of a query: unlike others it has no `fields`."""
    return SalesforceError(400, code, text)


def folded(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def conjuncts(where: soql.Condition | None) -> Iterable[soql.Test]:
    """The tests that every row found must pass."""
    if isinstance(where, soql.Test):
        yield where
    elif isinstance(where, soql.Group) and where.word == "all":
        for part in where.parts:
            yield from conjuncts(part)


def operand(found: Field, literal: soql.Literal, operator: str) -> Any:
    """The literal in the form the field is compared in. Errors: INVALID_FIELD where the kinds do not fit, as Salesforce words it."""
    if literal.kind == "null":
        if operator not in ("=", "!=", "in"):
            raise refused("INVALID_QUERY_FILTER_OPERATOR", f"invalid operator on {found.name} field")
        return None
    wants = "number" if found.type in NUMERIC else found.type if found.type in ("boolean", "date", "datetime") else "string"
    if literal.kind != wants:
        quoted = "and should not be enclosed in quotes" if wants != "string" else "and should be enclosed in quotes"
        raise refused("INVALID_FIELD", f"value of filter criterion for field '{found.name}' must be of type {found.type} {quoted}")
    if found.type in IDS:
        return ids.normalize(literal.value) or _malformed_id(literal.value, operator)
    if wants == "boolean" and operator not in ("=", "!=", "in"):
        raise refused("INVALID_QUERY_FILTER_OPERATOR", f"invalid operator on {found.name} field")
    return literal.value


def _malformed_id(text: str, operator: str) -> str:
    if operator in ("<", ">", "<=", ">=", "like"):
        return text  # keyset paging starts from any text
    raise bad("INVALID_QUERY_FILTER_OPERATOR", f"invalid ID field: {text[:80]}")


def test(found: Field, get: Getter, operator: str, wanted: list[Any]) -> Check:
    """Ids and moments are compared as they are, all other text without regard to case."""
    if operator == "like":
        matches = like(wanted[0])
        return lambda row: isinstance(v := get(row), str) and matches(v)
    if found.type not in IDS and found.type not in ("date", "datetime", *NUMERIC, "boolean"):
        raw, get = get, lambda row: folded(raw(row))
        wanted = [folded(w) for w in wanted]
    if operator == "in":
        members = set(wanted)
        return lambda row: get(row) in members
    want = wanted[0]
    match operator:
        case "=":
            return lambda row: bool(get(row) == want)
        case "!=":
            return lambda row: bool(get(row) != want)
        case "<":
            return lambda row: (v := get(row)) is not None and v < want
        case "<=":
            return lambda row: (v := get(row)) is not None and v <= want
        case ">":
            return lambda row: (v := get(row)) is not None and v > want
    return lambda row: (v := get(row)) is not None and v >= want


def like(pattern: str) -> Callable[[str], bool]:
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
