"""What PostgreSQL's catalogue says of the columns of a table, for the target of that type. Only reads."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import orjson
import psycopg
from psycopg import sql

from agents.rules.takes import Takes
from models.learned import Rule

COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
_SOLE = "i.indisunique AND i.indnkeyatts = 1 AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = '(NOT _deleted)')"
"""Of an index: a value stands once in one column, in all rows or in those that are not marked as deleted."""
TAKES = f"""
SELECT a.attname,
       CASE WHEN coalesce(b.typname, t.typname) IN ('varchar', 'bpchar') AND greatest(a.atttypmod, t.typtypmod) > 4
            THEN greatest(a.atttypmod, t.typtypmod) - 4 END,
       (SELECT array_agg(e.enumlabel::text) FROM pg_enum e WHERE e.enumtypid = coalesce(b.oid, t.oid)),
       a.attnotnull OR t.typnotnull,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND {_SOLE}),
       (SELECT array_agg(pg_get_constraintdef(k.oid)) FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c'
        AND k.conkey = ARRAY[a.attnum])
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype
WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL(%s)
"""  # noqa: S608 - of constants
UNIQUE = f"""
SELECT a.attname, bool_or(i.indpred IS NULL)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
WHERE n.nspname = %s AND c.relname = %s AND NOT i.indisprimary AND {_SOLE}
GROUP BY a.attname
"""  # noqa: S608 - of constants
CONSTRAINED = """
SELECT a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
WHERE n.nspname = %s AND c.relname = %s AND a.attnum = ANY (coalesce(
    (SELECT k.conkey FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = %s),
    (SELECT i.indkey::int2[] FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid AND x.relname = %s)))
"""
_COLUMN = r'\(?(?:"(?:[^"]|"")+"|\w+)\)?(?:::text)?'
_LIST = re.compile(rf"CHECK \(\({_COLUMN} = ANY \(\(?ARRAY\[(.+?)\]\)?(?:::text\[\])?\)\)\)(?: NOT VALID)?", re.DOTALL)
_VALUE = re.compile(r"'((?:[^']|'')*)'::[a-z ]+(?:\(\d+\))?(?:, |$)")
_LENGTH = re.compile(rf"CHECK \(\((?:char_length|character_length|length)\({_COLUMN}\) (<=?) (\d+)\)\)(?: NOT VALID)?")
"""Checks as pg_get_constraintdef writes them."""
RULES: Mapping[str, Rule] = {
    "22001": "length",
    "22P02": "type",
    "22007": "type",
    "22008": "type",
    "23502": "required",
    "23505": "unique",
}
"""By SQLSTATE."""


async def columns(connection: psycopg.AsyncConnection, schema: str, table: str) -> dict[str, str]:
    """Columns and their types; empty when there is no such table."""
    found = await connection.execute(COLUMNS, [schema, table])
    return {name: "timestamptz" if kind == "timestamp with time zone" else kind for name, kind in await found.fetchall()}


async def takes(connection: psycopg.AsyncConnection, schema: str, table: str, without: Collection[str]) -> Mapping[str, Takes]:
    """By column what it takes, where it does not take all of its type."""
    found = await connection.execute(TAKES, [schema, table, list(without)])
    said = {name: takes_of(*rest) for name, *rest in await found.fetchall()}
    return {name: one for name, one in said.items() if one != Takes()}


async def needed(connection: psycopg.AsyncConnection, schema: str, table: str, without: Collection[str]) -> list[str]:
    """Columns that must not be null."""
    return [column for column, one in (await takes(connection, schema, table, without)).items() if one.required]


async def unique(connection: psycopg.AsyncConnection, schema: str, table: str) -> dict[str, bool]:
    """Columns that hold a value once: in all rows (True), or in those that are not marked as deleted."""
    found = await connection.execute(UNIQUE, [schema, table])
    return dict(await found.fetchall())


async def culprit(
    connection: psycopg.AsyncConnection, schema: str, table: str, types: Mapping[str, str], row: Mapping[str, object], error: psycopg.Error
) -> tuple[str, Rule, psycopg.Error] | None:
    """Why a row was refused: the column, the rule, the error about it; None where it is not one column's."""
    if isinstance(error, psycopg.IntegrityError):
        name = error.diag.constraint_name or ""
        found = [error.diag.column_name] if error.diag.column_name else []
        found += [column for (column,) in await (await connection.execute(CONSTRAINED, [schema, table, name, name])).fetchall()]
        return (found[0], RULES.get(error.sqlstate or "", "value"), error) if len(found) == 1 else None
    there = await columns(connection, schema, table)  # somebody may have changed a type
    for column, kind in types.items():  # each is read by itself
        typed = sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(there.get(column, kind)))
        query = sql.SQL("SELECT s.* FROM json_to_recordset(%s::json) AS s({})").format(typed)
        try:
            await connection.execute(query, [orjson.dumps([{column: row.get(column)}]).decode()])
        except psycopg.DataError as why:
            return column, RULES.get(why.sqlstate or "", "value"), why
    return None


def takes_of(length: int | None, values: Sequence[str] | None, required: bool, unique: bool, checks: Iterable[str] | None) -> Takes:
    """Of one column. Of a check that is neither a list of values nor a length nothing is said."""
    lengths, lists = [length] if length else [], [frozenset(values)] if values else []
    for check in checks or ():
        if found := _LENGTH.fullmatch(check):
            lengths.append(int(found[2]) - (found[1] == "<"))
        elif (found := _LIST.fullmatch(check)) and "".join(one[0] for one in _VALUE.finditer(found[1])) == found[1]:
            lists.append(frozenset(one[1].replace("''", "'") for one in _VALUE.finditer(found[1])))
    some = frozenset.intersection(*lists) if lists else None
    return Takes(min(lengths, default=None), some, None, required=required, unique=unique)
