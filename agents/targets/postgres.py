"""PostgreSQL as a target: one table per object, one row per key, guarded by the turn.

A table is `<schema>.<object>`: the map's fields as typed columns beside `_key` (primary key) and the other columns of META. A row is the
whole record: a field the body does not have is NULL. When nobody speaks for a key any longer the row stays, `_deleted` true, because it
holds the turn that keeps a late write from reviving it: `tombstone` and `mark` leave the values but unique ones, `delete` empties them.
What it may not do: compare anything but turns (and elections: agents/elected.py), keep state of its own, or touch another one's table.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import orjson
import psycopg
import structlog
from psycopg import sql
from pydantic import Field, SecretStr

from agents import catalogue, elected
from agents.rules import sqltext
from agents.rules.takes import Takes
from agents.targets.base import Columns, Effect, Fault, Options
from models.errors import HeadraceError, PausedError, PermanentError, TemporaryError
from models.scrub import scrub
from models.write import Body, Outcome, WriteResult

log = structlog.get_logger()

TYPES = {"text": "text", "number": "numeric", "boolean": "boolean", "date": "date", "datetime": "timestamptz", "json": "jsonb"}
META = {
    "_key": "text",
    "_turn": "bigint",
    "_revision": "bigint",
    "_source": "text",
    "_route": "text",
    "_deleted": "boolean",
    "_position": "bigint",
    "_committed": "timestamptz",
    "_received": "timestamptz",
    "_reason": "text",
    "_installation": "text",
    "_written_at": "timestamptz",
}
COMPUTED = {
    "_committed": "to_timestamp(s._committed / 1000::float8)",
    "_received": "to_timestamp(s._received / 1000::float8)",
    "_written_at": "now()",
}
"""Times come as epoch milliseconds; divided as numeric they took a tenth of the statement."""
SENT = {name: "bigint" if kind == "timestamptz" else kind for name, kind in META.items() if name != "_written_at"}
UNFIT = "cannot be the name of a table or column (1 to 63 bytes)"
KEYS = 10_000
"""Keys in a page."""
OWNERS = "_headrace"
"""Table that names the installation each object belongs to."""

PAUSES = re.compile(
    r"authentication failed|no password supplied|role .* does not exist|database .* does not exist|pg_hba\.conf|not permitted"
)
"""libpq gives no SQLSTATE for a refused connection, only text; in another language it is a TemporaryError, which retries as well."""


class PostgresOptions(Options):
    """dsn as libpq reads it; schema is made when missing."""

    dsn: SecretStr
    schema_: str = Field(default="public", alias="schema", min_length=1, max_length=63)
    connections: int = Field(default=4, ge=1, le=100)


class Target:
    """See the protocol in base.py."""

    options_class = PostgresOptions
    batch_records = 2000
    batch_bytes = 8_000_000
    requests_per_second: float | None = None
    compares = True
    renames = False
    key_field: str | None = None
    default_object: str | None = None

    def __init__(self, name: str, options: PostgresOptions, installation: str) -> None:
        self.name, self.options, self.installation = name, options, installation
        self._objects: dict[str, Columns] = {}
        self._statements: dict[str, tuple[bytes, bytes]] = {}  # the whole row; all but its values
        self._types: dict[str, dict[str, str]] = {}
        self._idle: list[psycopg.AsyncConnection] = []
        self._slots = asyncio.Semaphore(options.connections)

    @staticmethod
    def refusal(name: str) -> str | None:
        """Columns of META and of elections are ours; a longer name would be cut."""
        if name in META or name in elected.ELECTED:
            return f"{name} is a column that Headrace writes itself"
        return None if sqltext.is_name(name) else f"{name[:80]!r} {UNFIT}"

    def same_key(self, object: str, key: str) -> str:  # noqa: ARG002 - the protocol's
        """Text is compared as it stands."""
        return key

    def alone(self, effect: Effect) -> float | None:  # noqa: ARG002 - the protocol's
        """Everything fits into a batch."""
        return None

    async def start(self, objects: Mapping[str, Columns]) -> None:
        """Make and extend the tables, under a lock that several workers share."""
        for object_name, columns in objects.items():
            if not sqltext.is_name(object_name):
                raise PausedError(f"{object_name[:80]!r} {UNFIT}; change it in the flow file")
            if object_name == OWNERS:
                raise PausedError(f"target {self.name}: {OWNERS} is Headrace's own table; choose another object")
            if refused := [column for column in columns if self.refusal(column)]:
                raise PausedError(f"target {self.name}: {self.refusal(refused[0])}; rename it in the map")
        self._objects = dict(objects)
        types, more = {}, {}
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"headrace {self.options.schema_}"])
            await self._schema(connection)
            for object_name, columns in objects.items():
                types[object_name] = await self._table(connection, object_name, columns)
                table = elected.Table(self.options.schema_, object_name, types[object_name])
                more[object_name] = await elected.prepare(connection, table, META)
            made = {name: (self._upsert(name, kinds | more[name][0]), self._upsert(name, *more[name][1:])) for name, kinds in types.items()}
            # Composed here: for a call of a few rows that would be most of its work.
            statements = {name: (whole.as_bytes(connection), kept.as_bytes(connection)) for name, (whole, kept) in made.items()}
        self._types, self._statements = types, statements

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        """One statement per object and kind; each is atomic, and repeating one changes nothing."""
        if not self._statements:
            await self.start(self._objects)
        statements = self._statements
        groups: dict[tuple[str, bool], list[int]] = {}
        for place, effect in enumerate(effects):
            if effect.object not in self._objects:
                remedy = "no route of the flow writes it; redrive after mending the flow"
                raise PermanentError(f"target {self.name} has no table {effect.object}: {remedy}")
            keeps = effect.json is None and effect.on_delete != "delete"
            groups.setdefault((effect.object, keeps), []).append(place)
        results: list[WriteResult] = [_STALE] * len(effects)
        async with self._connection() as connection:
            for (object_name, keeps), places in groups.items():
                some = [effects[place] for place in places]
                rows = [self._row(effect) for effect in some]
                table, sent = elected.Table(self.options.schema_, object_name, self._types[object_name]), b"[%b]" % b",".join(rows)
                try:
                    applied = await elected.execute(connection, statements[object_name][keeps], sent.decode(), table, some)
                except (psycopg.DataError, psycopg.IntegrityError) as error:
                    if len(effects) == 1:
                        raise await self._culprit(connection, object_name, orjson.loads(rows[0]), error) from None
                    raise
                for place in places:
                    if effects[place].key in applied:
                        results[place] = _WRITTEN if effects[place].json is not None else _DELETED
        return results

    async def probe(self) -> None:
        """As start: rights, ownership and tables may be what was missing."""
        await self.start(self._objects)

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().close()

    async def adopt(self) -> list[str]:
        """Take over the tables of another installation: their turns become 0. Gives the names of the objects taken."""
        async with self._connection() as connection, connection.transaction():
            owners = self._table_name(OWNERS)
            there = await (await connection.execute("SELECT to_regclass(%s)", [owners.as_string(connection)])).fetchone()
            if there in (None, (None,)):
                return []
            found = await connection.execute(sql.SQL("SELECT object FROM {} WHERE installation <> %s").format(owners), [self.installation])
            taken = [name for (name,) in await found.fetchall()]
            for name in taken:
                took = sql.SQL("UPDATE {} SET _turn = 0, _installation = %s").format(self._table_name(name))
                await connection.execute(took, [self.installation])
                await elected.forget(connection, self.options.schema_, name)
            await connection.execute(sql.SQL("UPDATE {} SET installation = %s").format(owners), [self.installation])
        return taken

    async def differing(self, object: str, expected: Mapping[str, Body]) -> Mapping[str, Fault]:
        """One statement: the bodies as `write` would convert them, beside the rows."""
        if object not in self._types:
            await self.start(self._objects)
        types = self._types[object]
        statement = sql.SQL(
            "SELECT s._key, CASE WHEN t._key IS NULL THEN 'missing' WHEN t._deleted THEN 'deleted' ELSE 'changed' END "
            "FROM json_to_recordset(%s::json) AS s({sent}) LEFT JOIN {table} AS t ON t._key = s._key "
            "WHERE t._key IS NULL OR t._deleted OR ({ours}) IS DISTINCT FROM ({theirs})"
        ).format(
            sent=sql.SQL(", ").join(_column(c, kind) for c, kind in {"_key": "text", **types}.items()),
            table=self._table_name(object),
            ours=sql.SQL(", ").join(sql.Identifier("s", c) for c in ("_key", *types)),
            theirs=sql.SQL(", ").join(sql.Identifier("t", c) for c in ("_key", *types)),
        )
        rows = [{**body, "_key": key} for key, body in expected.items()]
        async with self._connection() as connection:
            found = await connection.execute(statement, [orjson.dumps(rows).decode()])
            return dict(await found.fetchall())

    async def standing(self, object: str, after: str, until: str | None = None) -> Sequence[str]:
        """A page of keys."""
        statement = sql.SQL(
            'SELECT _key FROM {} WHERE NOT _deleted AND _key COLLATE "C" > %s AND (%s::text IS NULL OR _key COLLATE "C" < %s) '
            'ORDER BY _key COLLATE "C" LIMIT %s'
        )
        async with self._connection() as connection:
            found = await connection.execute(statement.format(self._table_name(object)), [after, until, until, KEYS])
            return [key for (key,) in await found.fetchall()]

    async def hashes(self, object: str, bounds: Sequence[str]) -> Sequence[tuple[int, int]]:
        """One statement: PostgreSQL reads its rows, and nothing of them goes over the wire."""
        if object not in self._types:
            await self.start(self._objects)
        columns = [
            sql.SQL(sqltext.READ.get(k, "{0}::text")).format(sql.Identifier(c)) for c, k in {"_key": "text", **self._types[object]}.items()
        ]
        statement = sql.SQL(
            'SELECT width_bucket(_key COLLATE "C", %s::text[]) AS part, count(*), '
            "sum(('x' || left(md5(convert_to(array_to_string(ARRAY[{columns}], %s, %s), 'UTF8')), 15))::bit(60)::bigint) "
            "FROM {table} WHERE NOT _deleted GROUP BY part"
        ).format(columns=sql.SQL(", ").join(columns), table=self._table_name(object))
        found = [(0, 0)] * (len(bounds) + 1)
        async with self._connection() as connection:
            answer = await connection.execute(statement, [list(bounds), sqltext.BETWEEN, sqltext.NULL])
            for part, count, total in await answer.fetchall():
                found[part] = count, int(total)
        return found

    def hash_of(self, object: str, key: str, body: Body) -> int:
        """As `hashes` counts it."""
        return sqltext.hash_of(key, body, self._types[object].items())

    def _row(self, effect: Effect) -> bytes:
        """One element of the JSON parameter: the body, then the columns of META (of two names that are equal the last counts)."""
        meta = effect.meta
        ours = orjson.dumps(
            {
                "_key": effect.key,
                "_turn": effect.turn,
                "_revision": meta.revision,
                "_source": meta.source,
                "_route": meta.route,
                "_deleted": effect.json is None,
                "_position": meta.position,
                "_committed": meta.committed,
                "_received": meta.received,
                "_reason": meta.reason,
                "_installation": self.installation,
                **elected.of(meta),
            }
        )
        if effect.json is None or len(effect.json) == EMPTY:
            return ours
        return bytes(effect.json)[:-1] + b"," + ours[1:]

    def _upsert(self, object_name: str, types: Mapping[str, str], kept: Sequence[str] = ()) -> sql.Composed:
        """`kept`: columns that must not be null, where only a row that is there can be written without values."""
        columns, sent = [*META, *types, *kept], {**SENT, **types}
        return sql.SQL(
            "INSERT INTO {table} AS t ({columns}) SELECT {values} FROM json_to_recordset(%s::json) AS s({sent}) {there}"
            "ON CONFLICT (_key) DO UPDATE SET {sets} WHERE excluded._turn >= t._turn RETURNING t._key"
        ).format(
            table=self._table_name(object_name),
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
            there=sql.SQL("JOIN {} AS o ON o._key = s._key " if kept else "").format(self._table_name(object_name)),
            values=sql.SQL(", ").join(
                _plain(COMPUTED[c]) if c in COMPUTED else sql.Identifier("o" if c in kept else "s", c) for c in columns
            ),
            sent=sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(c), _plain(kind)) for c, kind in sent.items()),
            sets=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in columns if c not in ("_key", *kept)),
        )

    async def _schema(self, connection: psycopg.AsyncConnection) -> None:
        """The schema, only where it is missing (CREATE … IF NOT EXISTS asks for the right even when there is nothing to make)."""
        there = await (await connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [self.options.schema_])).fetchone()
        if there is None:
            await connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.options.schema_)))
        if not await catalogue.columns(connection, self.options.schema_, OWNERS):
            made = "CREATE TABLE {} (object text PRIMARY KEY, installation text NOT NULL, made timestamptz NOT NULL DEFAULT now())"
            await connection.execute(sql.SQL(made).format(self._table_name(OWNERS)))

    async def _table(self, connection: psycopg.AsyncConnection, object_name: str, columns: Columns) -> dict[str, str]:
        """Make or extend one table; gives the types its columns really have."""
        owners, table = self._table_name(OWNERS), self._table_name(object_name)
        there = await catalogue.columns(connection, self.options.schema_, object_name)
        found = await connection.execute(sql.SQL("SELECT installation FROM {} WHERE object = %s").format(owners), [object_name])
        owner = await found.fetchone()
        place = f"target {self.name}: table {self.options.schema_}.{object_name}"
        if owner is not None and owner[0] != self.installation:
            remedy = f"run `headrace adopt {self.name}` to take it over, or choose another schema"
            raise PausedError(f"{place} is written by installation {owner[0]}; {remedy}")
        if there and owner is None:
            raise PausedError(f"{place} was not made by Headrace; choose another schema or object")
        wanted = {**META, **{column: TYPES[kind] for column, kind in columns.items()}}
        if not there:
            parts = [_column(c, f"{kind} NOT NULL" if c in ("_turn", "_deleted") else kind) for c, kind in wanted.items()]
            await connection.execute(sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY (_key))").format(table, sql.SQL(", ").join(parts)))
            await connection.execute(
                sql.SQL("INSERT INTO {} (object, installation) VALUES (%s, %s) ON CONFLICT (object) DO UPDATE SET made = now()").format(
                    owners
                ),
                [object_name, self.installation],
            )
            return {column: TYPES[kind] for column, kind in columns.items()}
        if missing := [sql.SQL("ADD COLUMN {}").format(_column(c, kind)) for c, kind in wanted.items() if c not in there]:
            await connection.execute(sql.SQL("ALTER TABLE {} {}").format(table, sql.SQL(", ").join(missing)))
            log.info("table extended", target=self.name, table=object_name, columns=[c for c in wanted if c not in there])
        for column in (c for c in columns if there.get(c, wanted[c]) != wanted[c]):
            retype = sqltext.retype(self.options.schema_, object_name, column, wanted[column])
            log.warning("column keeps another type than the map's", target=self.name, column=column, table=there[column], remedy=retype)
        return {column: there.get(column, wanted[column]) for column in columns}

    async def _culprit(
        self, connection: psycopg.AsyncConnection, object_name: str, row: Mapping[str, object], error: psycopg.Error
    ) -> PermanentError:
        """With the field of a refused row that is guilty, where it is one."""
        found = await catalogue.culprit(connection, self.options.schema_, object_name, self._types[object_name], row, error)
        if found is None or found[0] not in self._types[object_name]:
            return PermanentError(f"target {self.name}: {object_name} refuses this record: {_said(error)}")
        column, rule, why = found
        text, kind = f"{object_name}.{column} cannot hold this value", self._types[object_name][column]
        if kind != (wanted := TYPES[self._objects[object_name][column]]):
            self._statements = {}  # somebody may do what is said here: the next write looks at the table again
            retype = sqltext.retype(self.options.schema_, object_name, column, wanted)
            text += f" (it is {kind}, the map makes it {wanted}: {retype}, then redrive)"
        return PermanentError(f"target {self.name}: {text}: {_said(why)}", field=column, rule=rule)

    async def describe(self, object: str) -> Mapping[str, Takes]:
        """From the catalogue; nothing of a table that is not there."""
        async with self._connection() as connection:
            return await catalogue.takes(connection, self.options.schema_, object, META)

    def _table_name(self, object_name: str) -> sql.Identifier:
        return sql.Identifier(self.options.schema_, object_name)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """A connection of at most `connections`; one that was interrupted or has lost its server is closed, never used again."""
        async with self._slots:
            connection: psycopg.AsyncConnection | None = None
            try:
                while self._idle and connection is None:
                    connection = self._idle.pop()
                    if connection.closed:
                        connection = None
                if connection is None:
                    connection = await psycopg.AsyncConnection.connect(
                        self.options.dsn.get_secret_value(), autocommit=True, application_name=f"headrace {self.installation}"
                    )
                yield connection
                self._idle.append(connection)
                connection = None
            except psycopg.Error as error:
                if connection is not None and not connection.closed and isinstance(error, psycopg.DataError | psycopg.IntegrityError):
                    self._idle.append(connection)
                    connection = None
                else:
                    await self.close()
                if error.sqlstate in RESTART:
                    self._statements = {}
                raise self._class_of(error) from None
            finally:
                if connection is not None:
                    await connection.close()

    def _class_of(self, error: psycopg.Error) -> HeadraceError:
        """What PostgreSQL's error asks for, by its SQLSTATE."""
        state, text = error.sqlstate or "", f"target {self.name}: PostgreSQL says {_said(error)}"
        if state[:2] in ("22", "23", "54"):
            return PermanentError(text)
        if state[:2] == "28" or state in ("42501", "3D000") or (not state and PAUSES.search(str(error))):
            return PausedError(f"{text}; check the user, its password and its rights in the dsn")
        if state[:2] in ("", "08", "25", "40", "53", "55", "57", "58", "XX") or state in RESTART:
            return TemporaryError(text)
        return PausedError(f"{text} ({state})")


EMPTY = len(b"{}")
_WRITTEN, _DELETED, _STALE = WriteResult(Outcome.WRITTEN), WriteResult(Outcome.DELETED), WriteResult(Outcome.STALE)
RESTART = ("42P01", "42703", "3F000", "42P10", "0A000", "42804")
"""A table, column, schema or index is gone, a plan is out of date, a column has another type: all are looked at before the next try."""


def _column(name: str, kind: str) -> sql.Composed:
    return sql.SQL("{} {}").format(sql.Identifier(name), _plain(kind))


def _plain(text: str) -> sql.SQL:
    """SQL of our own tables above, or a type name PostgreSQL gave; never text of a record."""
    return sql.SQL(text)


def _said(error: psycopg.Error) -> str:
    """The server's main message: no context, which repeats whole rows, and of a value that it cannot read not the value."""
    text = error.diag.message_primary or str(error).split("\n", 1)[0]
    return scrub(re.sub('".*"', '"…"', text, flags=re.DOTALL) if isinstance(error, psycopg.DataError) else text, 300)
