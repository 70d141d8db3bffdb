"""SOQL text → a small tree. Only the language; what the names mean is looked up in `query.py`.

Whatever is sent, the answer is a tree or a MALFORMED_QUERY; depth is bounded, so a hostile query cannot exhaust the stack.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import LarkError, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from deploy.sandbox.salesforce import values
from deploy.sandbox.salesforce.errors import SalesforceError

MAX_QUERY = 100_000
MAX_STRING = 4_000
MAX_DEPTH = 50
FUNCTIONS = frozenset({"COUNT", "COUNT_DISTINCT", "MAX", "MIN", "SUM", "AVG", "FIELDS"})
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "'": "'", "\\": "\\"}

Path_ = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    """A value in the text; `kind` is string, number, boolean, null, date or datetime. `value` in the kept form."""

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class Test:
    """`path operator literals`; operators: = != < > <= >= like in."""

    path: Path_
    operator: str
    literals: tuple[Literal, ...]
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """`all`, `any` or `not` of other conditions."""

    word: str
    parts: tuple["Test | Group", ...]
    depth: int


Condition = Test | Group


@dataclass(frozen=True, slots=True)
class Call:
    """An aggregate, or FIELDS(…): COUNT() has no path."""

    function: str
    path: Path_ | None
    alias: str | None


@dataclass(frozen=True, slots=True)
class Key:
    path: Path_ | Call
    descending: bool
    nulls_last: bool


@dataclass(frozen=True, slots=True)
class Query:
    items: tuple[Path_ | Call, ...]
    sobject: str
    where: Condition | None
    groups: tuple[Path_, ...]
    order: tuple[Key, ...]
    limit: int | None
    offset: int
    all_rows: bool


class _TextError(Exception):
    """Something in the text is wrong; the message goes to the caller."""


def _unescape(body: str) -> str:
    def one(match: re.Match[str]) -> str:
        letter = match[1]
        if letter not in _ESCAPES and letter not in "%_":
            raise _TextError(f"Illegal character sequence '\\{letter}' in string literal")
        return _ESCAPES.get(letter, match[0])  # \% and \_ keep their backslash for LIKE

    return re.sub(r"\\(.)", one, body, flags=re.DOTALL)


def _group(word: str, parts: list[Condition]) -> Group:
    depth = 1 + max(p.depth for p in parts)
    if depth > MAX_DEPTH:
        raise _TextError("conditions are nested too deeply")
    return Group(word, tuple(parts), depth)


def _count(token: Token) -> int:
    if not token.isdecimal() or len(token) > 9:
        raise _TextError(f"unexpected token: {token}")
    return int(token)


class _Build(Transformer[Token, Query]):  # type: ignore[misc]  # lark is not followed by mypy
    """Called by the parser as it reduces, so there is no walk over a deep tree."""

    def path(self, names: list[Token]) -> Path_:
        if len(names) > 6:
            raise _TextError("a relationship path may have at most five steps")
        return tuple(str(n) for n in names)

    def call(self, parts: list[Any]) -> Call:
        function, path, alias = [*parts, None][:3]
        name = str(function).upper()
        if name not in FUNCTIONS or (path is None and name != "COUNT"):
            raise _TextError(f"unexpected token: {function}")
        return Call(name, path, str(alias) if alias else None)

    def items(self, parts: list[Any]) -> tuple[Path_ | Call, ...]:
        return tuple(parts)

    def STRING(  # noqa: N802 - named for the terminal
        self, token: Token
    ) -> Literal:
        text = _unescape(token[1:-1])
        if len(text) > MAX_STRING:
            raise _TextError(f"string literal is longer than {MAX_STRING} characters")
        return Literal("string", text)

    def DATETIME(  # noqa: N802
        self, token: Token
    ) -> Literal:
        if (kept := values.datetime_text(str(token).upper())) is None:
            raise _TextError(f"Invalid date/time: {token}")
        return Literal("datetime", kept)

    def DATE(  # noqa: N802
        self, token: Token
    ) -> Literal:
        if values.datetime_text(f"{token}T00:00:00Z") is None:
            raise _TextError(f"Invalid date: {token}")
        return Literal("date", str(token))

    def number(self, token: Token) -> Literal:
        return Literal("number", float(token) if re.search(r"[.eE]", token) else int(token[:40]))

    def literal(self, part: Any) -> Literal:
        if isinstance(part, Literal):
            return part
        if part.type == "NUMBER":
            return self.number(part)
        return Literal("null", None) if part.type == "NULL" else Literal("boolean", part.type == "TRUE")

    def choices(self, parts: list[Any]) -> tuple[Literal, ...]:
        return tuple(self.literal(p) for p in parts)

    def compare(self, parts: list[Any]) -> Test:
        path, operator, value = parts
        return Test(path, "!=" if operator == "<>" else str(operator), (self.literal(value),))

    def like(self, parts: list[Any]) -> Test:
        literal = self.literal(parts[2])
        if literal.kind != "string":
            raise _TextError("LIKE needs a string")
        return Test(parts[0], "like", (literal,))

    def inside(self, parts: list[Any]) -> Test:
        return Test(parts[0], "in", parts[-1])

    def outside(self, parts: list[Any]) -> Group:
        return _group("not", [Test(parts[0], "in", parts[-1])])

    def group(self, parts: list[Any]) -> Condition:
        inner: Condition = parts[0]
        if inner.depth >= MAX_DEPTH:
            raise _TextError("conditions are nested too deeply")
        return inner

    def negation(self, parts: list[Any]) -> Group:
        return _group("not", [parts[-1]])

    def all_of(self, parts: list[Any]) -> Group:
        return _group("all", [p for p in parts if not isinstance(p, Token)])

    def any_of(self, parts: list[Any]) -> Group:
        return _group("any", [p for p in parts if not isinstance(p, Token)])

    def where(self, parts: list[Any]) -> Condition:
        condition: Condition = parts[1]
        return condition

    def key(self, parts: list[Any]) -> Key:
        path, direction, nulls = parts
        return Key(path, str(direction).upper() == "DESC", str(nulls).upper().endswith("LAST"))

    def grouping(self, parts: list[Any]) -> tuple[Path_, ...]:
        return tuple(parts[1:])

    def order(self, parts: list[Any]) -> tuple[Key, ...]:
        return tuple(parts[1:])

    def limit(self, parts: list[Any]) -> int:
        return _count(parts[1])

    def offset(self, parts: list[Any]) -> int:
        if (count := _count(parts[1])) > 2000:
            raise _TextError("Maximum SOQL offset allowed is 2000")
        return count

    def start(self, parts: list[Any]) -> Query:
        _, items, _, sobject, where, groups, order, limit, offset, all_rows = parts
        return Query(items, str(sobject), where, groups or (), order or (), limit, offset or 0, all_rows is not None)


_PARSER = Lark(Path(__file__).with_name("soql.lark").read_text(), parser="lalr", transformer=_Build(), maybe_placeholders=True)


def malformed(text: str) -> SalesforceError:
    return SalesforceError(400, "MALFORMED_QUERY", text)


def parse(text: str) -> Query:
    """The tree of a query. Errors: SalesforceError MALFORMED_QUERY, with row and column where they are known."""
    if len(text) > MAX_QUERY:
        raise malformed(f"SOQL statements cannot be longer than {MAX_QUERY} characters.")
    try:
        parsed = _PARSER.parse(text)
    except UnexpectedToken as error:
        raise malformed(
            _located(text, error, "unexpected token: " + (repr(str(error.token)[:80]) if error.token.type != "$END" else "'<EOF>'"))
        ) from None
    except UnexpectedCharacters as error:
        raise malformed(_located(text, error, f"unexpected char: {text[error.pos_in_stream : error.pos_in_stream + 1]!r}")) from None
    except VisitError as error:
        raise malformed(str(error.orig_exc)) from None
    except (_TextError, LarkError) as error:
        raise malformed(str(error)[:200]) from None
    assert isinstance(parsed, Query)  # noqa: S101 - the transformer ends in one
    return parsed


def _located(text: str, error: UnexpectedInput, what: str) -> str:
    where = error.pos_in_stream if isinstance(error.pos_in_stream, int) and error.pos_in_stream >= 0 else len(text)
    row, column = (max(1, getattr(error, name, 1) or 1) for name in ("line", "column"))
    around = text[max(0, where - 30) : where + 20].replace("\n", " ")
    return f"\n{around}\n{' ' * min(where, 30)}^\nERROR at Row:{row}:Column:{column}\n{what}"
