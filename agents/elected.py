"""Which row of a table of PostgreSQL may hold a value that is unique there, where several are told of it.

Rows of one value are in several partitions, so the row that shall hold it may be written before the one that held it is released. Then the
value is taken from a row that is marked as deleted, or that stands by an earlier election of the same group (agents/rules/duplicates.py) or
by none: its own write or release is on its way. Beside a row that stands by a later election a write is stale, for the same reason.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from agents import catalogue
from agents.rules.duplicates import MAIL
from agents.targets.base import Effect, Meta

ELECTED = {"_election": "bigint", "_elected_by": "text"}
"""Columns of a table that has unique ones: by which election the row stands, of a group of which field. Null: nobody had to decide."""
ADDRESS = f"{MAIL} in any case"
"""What stands there for groups of mail addresses: whoever says `unique: email` has others."""
EXACT = frozenset("text citext uuid boolean numeric bigint integer smallint timestamptz jsonb".split())  # noqa: SIM905 - one line
"""Types that keep a value as it is. Where a column rounds or pads, two groups may have the same there: the table judges alone."""
ELECTION = """
CASE WHEN s._elected_by = ANY ({names}) AND t._route = s._route AND to_jsonb(t.{column}) = to_jsonb(s.{column})
THEN CASE WHEN t._elected_by = s._elected_by THEN t._election ELSE 0 END END
"""
"""Of row `t`, where the write `s` is of the group to which both values belong, else null. As JSON they are compared as groups are."""
TAKE = """
UPDATE {table} AS t SET {given_up} FROM {rows}
WHERE t.{column} = s.{column} AND t._key <> s._key AND (t._deleted OR {election} <= s._election)
"""
LATER = """
SELECT EXISTS (SELECT FROM {table} AS t JOIN {rows} ON t.{column} = s.{column} WHERE NOT t._deleted AND {election} > s._election)
"""


class Table(NamedTuple):
    """With the types of the columns that a map writes."""

    schema: str
    name: str
    kinds: Mapping[str, str]


async def prepare(
    connection: psycopg.AsyncConnection, table: Table, ours: Collection[str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The columns that a row has beside those of the map and `ours`, those that one without a body gives up, those that take no null."""
    schema, name, kinds = table
    unique, there = await catalogue.unique(connection, schema, name), await catalogue.columns(connection, schema, name)
    missing = [sql.SQL("ADD COLUMN {} {}").format(sql.Identifier(c), sql.SQL(kind)) for c, kind in ELECTED.items() if c not in there]
    needed = await catalogue.needed(connection, schema, name, ours)
    if missing and not unique:
        return {}, {}, needed
    if missing:
        await connection.execute(sql.SQL("ALTER TABLE {} {}").format(sql.Identifier(schema, name), sql.SQL(", ").join(missing)))
    given_up = {column: kinds[column] for column, whole in unique.items() if whole and column in kinds and column not in needed}
    return ELECTED, given_up | ELECTED, needed


def of(meta: Meta) -> dict[str, Any]:
    """Values of ELECTED in the JSON of a row."""
    return {"_election": meta.election, "_elected_by": meta.unique or ADDRESS} if meta.election else {}


async def execute(connection: psycopg.AsyncConnection, statement: bytes, rows: str, table: Table, effects: Sequence[Effect]) -> set[str]:
    """Keys that an upsert of these effects (`rows`, in JSON) wrote, after others gave way where they must. Raises psycopg's errors."""
    try:
        answer = await connection.execute(statement, [rows])
    except psycopg.errors.UniqueViolation:
        if len(effects) > 1 and not any(effect.meta.election for effect in effects):
            raise
        try:
            async with connection.transaction():
                await _make_room(connection, table, rows)
                answer = await connection.execute(statement, [rows])
        except psycopg.errors.UniqueViolation:
            if len(effects) > 1 or not await _outvoted(connection, table, rows, effects[0]):
                raise
            return set()
    return {key for (key,) in await answer.fetchall()}


async def forget(connection: psycopg.AsyncConnection, schema: str, table: str) -> None:
    """Another installation held the elections: they count no more."""
    if "_elected_by" in await catalogue.columns(connection, schema, table):
        await connection.execute(sql.SQL("UPDATE {} SET _elected_by = NULL").format(sql.Identifier(schema, table)))


async def _make_room(connection: psycopg.AsyncConnection, table: Table, rows: str) -> None:
    """Free the values of these rows. A row whose column takes no null is marked as deleted instead.

    Where a column has become unique since `prepare`, those of ELECTED are missing: an error after which the table is looked at again.
    """
    unique = await catalogue.unique(connection, table.schema, table.name)
    needed = await catalogue.needed(connection, table.schema, table.name, ()) if unique else []
    for column, kind in table.kinds.items():
        if column in unique and kind in EXACT:
            given_up = sql.SQL("_deleted = true" if column in needed else "{} = NULL").format(sql.Identifier(column))
            await connection.execute(_among(TAKE, table, column, given_up=given_up), [rows])


async def _outvoted(connection: psycopg.AsyncConnection, table: Table, rows: str, effect: Effect) -> bool:
    """Whether another row holds the value by a later election."""
    column = effect.meta.unique or MAIL
    if effect.json is None or table.kinds.get(column) not in EXACT:
        return False
    return await (await connection.execute(_among(LATER, table, column), [rows])).fetchone() == (True,)


def _among(text: str, table: Table, column: str, **more: sql.Composable) -> sql.Composed:
    """Kinds are type names that PostgreSQL gave."""
    name = sql.Identifier(column)
    sent = sql.SQL("json_to_recordset(%s::json) AS s(_key text, _route text, _election bigint, _elected_by text, {} {})")
    return sql.SQL(text).format(
        table=sql.Identifier(table.schema, table.name),
        rows=sent.format(name, sql.SQL(table.kinds[column])),
        column=name,
        election=sql.SQL(ELECTION).format(names=sql.Literal([column, ADDRESS] if column == MAIL else [column]), column=name),
        **more,
    )
