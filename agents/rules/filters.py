"""`where:` of a route, in SOQL's comparison syntax, compiled once to a predicate on a merged record. Pure.

As in SOQL: texts are compared without regard to case, an empty text is null, `!=` holds for null, and `<`, `>`, LIKE never do. AND binds
closer than OR. Dates and date-times stand without quotes. What depends on the clock (TODAY, LAST_N_DAYS) is refused: a filter must give
the same answer when an event is processed again.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken, VisitError

Predicate = Callable[[Mapping[str, Any]], bool]

GRAMMAR = r"""
?start: or
?or: and (_OR and)*
?and: not (_AND not)*
?not: _NOT not -> negate
    | "(" or ")"
    | comparison
comparison: FIELD OPERATOR value          -> compare
    | FIELD _LIKE STRING                  -> like
    | FIELD _IN "(" value ("," value)* ")"        -> among
    | FIELD _NOT _IN "(" value ("," value)* ")"   -> not_among
?value: STRING -> text
    | DATETIME -> datetime
    | DATE -> date
    | NUMBER -> number
    | NULL -> null
    | TRUE -> true
    | FALSE -> false
OPERATOR: "!=" | "<>" | "<=" | ">=" | "=" | "<" | ">"
_OR.3: /or\b/i
_AND.3: /and\b/i
_NOT.3: /not\b/i
_LIKE.3: /like\b/i
_IN.3: /in\b/i
NULL.3: /null\b/i
TRUE.3: /true\b/i
FALSE.3: /false\b/i
FIELD: /[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*/
STRING: /'(\\.|[^'\\])*'/
DATETIME.2: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)/
DATE.1: /\d{4}-\d\d-\d\d/
NUMBER: /[+-]?\d+(\.\d+)?/
%ignore /\s+/
"""
NAMES = {
    "FIELD": "a field",
    "OPERATOR": "a comparison (= != < > <= >=)",
    "_LIKE": "LIKE",
    "_IN": "IN",
    "_NOT": "NOT",
    "_AND": "AND",
    "_OR": "OR",
    "STRING": "a text in 'single quotes'",
    "NUMBER": "a number",
    "DATE": "a date",
    "DATETIME": "a date-time",
    "NULL": "null",
    "TRUE": "true",
    "FALSE": "false",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": ",",
    "$END": "the end",
}
MAX_LENGTH, MAX_DEPTH = 20_000, 100


class FilterError(ValueError):
    """A `where:` that cannot be used; `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.message, self.line, self.column = message, line, column


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled filter: the paths it reads, and the test."""

    fields: tuple[str, ...]
    matches: Predicate


def compile_filter(text: str) -> Filter:
    """Compile `text`. Raises FilterError."""
    if len(text) > MAX_LENGTH:
        raise FilterError(f"is longer than {MAX_LENGTH} characters", 1, 1)
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth > MAX_DEPTH:
            raise FilterError(f"is nested deeper than {MAX_DEPTH} parentheses", text.count("\n", 0, at) + 1, 1)
    build = _Build()
    try:
        found = build.transform(_PARSER.parse(text))
    except UnexpectedInput as error:
        raise _explain(error, text) from None
    except VisitError as error:
        if isinstance(error.orig_exc, FilterError):
            raise error.orig_exc from None
        raise
    except RecursionError:
        raise FilterError("is nested too deeply", 1, 1) from None
    return Filter(tuple(dict.fromkeys(build.fields)), found)


def _explain(error: UnexpectedInput, text: str) -> FilterError:
    wanted: set[str] = set()
    what = "this"
    if isinstance(error, UnexpectedToken):
        wanted, what = set(error.accepts or error.expected), f"{str(error.token)[:30]!r}" if str(error.token) else "the end"
    elif isinstance(error, UnexpectedCharacters):
        wanted, what = set(error.allowed or ()), f"{text[error.pos_in_stream or 0 :][:1]!r}"
    line, column = getattr(error, "line", -1), getattr(error, "column", -1)
    if isinstance(error, UnexpectedEOF) or line < 1 or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
        line, column, what = text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1, "the end"
    names = sorted(NAMES[name] for name in wanted if name in NAMES)
    return FilterError(f"{what} is not understood here" + (f", expected {', '.join(names)}" if names else ""), line, column)


def _plain(found: Any) -> Any:
    """A record's value as filters compare it."""
    if type(found) is str:
        return found.casefold() or None
    return found


def _moment(found: Any) -> datetime | None:
    """A field's date or date-time; None when it is none."""
    if not isinstance(found, str):
        return None
    try:
        moment = datetime.fromisoformat(found.upper())
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}
_NUMBERS = (int, float)


def _comparable(held: Any, wanted: Any) -> Any:
    """`held` in the kind of `wanted`, None where there is no order between them."""
    if isinstance(wanted, datetime):
        return _moment(held)
    if isinstance(wanted, bool) or isinstance(held, bool):
        return None
    if isinstance(wanted, _NUMBERS):
        return held if isinstance(held, _NUMBERS) else None
    return held if isinstance(held, str) else None


def _equal(wanted: Any) -> Callable[[Any], bool]:
    if isinstance(wanted, datetime):
        return lambda held: _moment(held) == wanted
    if isinstance(wanted, bool):
        return lambda held: held is wanted
    if wanted is None:
        return lambda held: held is None
    return lambda held: held == wanted and not isinstance(held, bool)


@v_args(inline=True)
class _Build(Transformer[Token, Predicate]):  # type: ignore[misc]  # lark is not typed for us
    """Parse tree to closures; remembers the fields."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[str] = []

    def _field(self, token: Token) -> str:
        self.fields.append(str(token))
        return str(token)

    def text(self, token: Token) -> Any:
        return _plain(_unquote(token))

    def number(self, token: Token) -> Any:
        return float(token) if "." in token else int(token)

    def date(self, token: Token) -> Any:
        return self.datetime(token)

    def datetime(self, token: Token) -> Any:
        try:
            if len(token) == 10:
                date.fromisoformat(token)
            found = datetime.fromisoformat(token)
        except ValueError:
            raise FilterError(f"{token} is no date", token.line or 1, token.column or 1) from None
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def null(self, _: Token) -> Any:
        return None

    def true(self, _: Token) -> Any:
        return True

    def false(self, _: Token) -> Any:
        return False

    def negate(self, inner: Predicate) -> Predicate:
        return lambda record: not inner(record)

    def compare(self, field: Token, operator: Token, wanted: Any) -> Predicate:
        name = self._field(field)
        if operator in ("=", "!=", "<>"):
            equal, sign = _equal(wanted), operator == "="
            return lambda record: equal(_plain(record.get(name))) is sign
        if wanted is None or isinstance(wanted, bool):
            raise FilterError(f"{operator} cannot compare with null, true or false", operator.line or 1, operator.column or 1)
        order = _ORDER[operator]

        def ordered(record: Mapping[str, Any]) -> bool:
            held = _comparable(_plain(record.get(name)), wanted)
            return held is not None and order(held, wanted)

        return ordered

    def like(self, field: Token, pattern: Token) -> Predicate:
        name = self._field(field)
        wanted = re.compile(_wildcards(pattern), re.DOTALL)
        return lambda record: isinstance(held := _plain(record.get(name)), str) and wanted.fullmatch(held) is not None

    def among(self, field: Token, *wanted: Any) -> Predicate:
        name = self._field(field)
        tests = [_equal(one) for one in wanted]

        def any_of(record: Mapping[str, Any]) -> bool:
            held = _plain(record.get(name))
            return any(test(held) for test in tests)

        return any_of

    def not_among(self, field: Token, *wanted: Any) -> Predicate:
        return self.negate(self.among(field, *wanted))


def _all(*parts: Predicate) -> Predicate:
    return lambda record: all(part(record) for part in parts)


def _any(*parts: Predicate) -> Predicate:
    return lambda record: any(part(record) for part in parts)


setattr(_Build, "and", v_args(inline=True)(lambda _, *parts: _all(*parts)))
setattr(_Build, "or", v_args(inline=True)(lambda _, *parts: _any(*parts)))

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def _unquote(token: Token) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), token[1:-1], flags=re.DOTALL)


def _wildcards(token: Token) -> str:
    """LIKE: % is any text, _ one character, a backslash makes them plain."""
    out, text, at = [], str(token[1:-1]), 0
    while at < len(text):
        sign = text[at]
        if sign == "\\" and at + 1 < len(text):
            at += 1
            out.append(re.escape(_ESCAPES.get(text[at], text[at]).casefold()))
        else:
            out.append(".*" if sign == "%" else "." if sign == "_" else re.escape(sign.casefold()))
        at += 1
    return "".join(out)


_PARSER = Lark(GRAMMAR, parser="lalr", maybe_placeholders=False)
