"""PostgreSQL itself passes the suite, and holds what only a table can show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from msgspec.structs import replace
from psycopg import sql

from agents.targets import make_target
from agents.targets.base import Columns, ColumnType, Comparing, Hashing, Listing, TargetLike
from models.errors import PausedError, PermanentError
from models.flow import Target as TargetOptions
from models.write import Body
from tests.conformance.suite import ANN, BOB, CAT, A, B, Bench, Conformance, Fields, always
from tests.support.effects import effect
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.postgres


class PostgresRig:
    """A schema and a role of its own, behind a proxy."""

    object = "person"

    def __init__(self, url: str) -> None:
        self.columns: Columns = {"name": "text", "city": "text", "score": "number"}
        self.url = url
        self.name = f"t_{uuid4().hex[:8]}"
        self.connection: psycopg.AsyncConnection
        self.proxy: TcpProxy

    async def start(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        parts = urlsplit(self.url)
        self.proxy = await TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5432).__aenter__()
        await self.run("CREATE ROLE {} LOGIN PASSWORD 'made-up'")
        await self.run("CREATE SCHEMA {0} AUTHORIZATION {0}")
        place = f"{self.name}:made-up@127.0.0.1:{self.proxy.port}"
        self.dsn = urlunsplit(("postgresql", place, parts.path, "sslmode=disable", ""))

    async def stop(self) -> None:
        await self.proxy.__aexit__(None, None, None)
        await self.run("DROP SCHEMA {} CASCADE")
        await self.run("DROP OWNED BY {}")
        await self.run("DROP ROLE {}")
        await self.connection.close()

    async def run(self, text: Any) -> None:
        await self.connection.execute(sql.SQL(text).format(sql.Identifier(self.name)))

    async def rows(self, text: Any) -> list[tuple[Any, ...]]:
        return await (await self.connection.execute(sql.SQL(text).format(sql.Identifier(self.name)))).fetchall()

    def target(self, name: str, installation: str) -> TargetLike:
        return make_target(name, TargetOptions.model_validate({"type": "postgres", "dsn": self.dsn, "schema": self.name}), installation)

    def body(self, key: str, fields: Fields) -> Body:
        return dict(fields)

    def bad(self, key: str) -> Body:
        return {"name": "Bad", "score": "a lot"}

    async def held(self) -> dict[str, Fields]:
        made = await (await self.connection.execute("SELECT to_regclass(%s)", [f"{self.name}.person"])).fetchone()
        if made == (None,):
            return {}
        found = await self.rows("SELECT _key, name, city, score::float8 FROM {}.person WHERE NOT _deleted")
        return {key: {k: v for k, v in zip(self.columns, values, strict=True) if v is not None} for key, *values in found}

    def throttled(self) -> AbstractAsyncContextManager[None]:
        async def full() -> None:
            await self.run("ALTER ROLE {} CONNECTION LIMIT 0")
            await self._end_backends()

        return always(full, lambda: self.run("ALTER ROLE {} CONNECTION LIMIT -1"))

    def revoked(self) -> AbstractAsyncContextManager[None]:
        async def revoke() -> None:
            await self.run("ALTER ROLE {} PASSWORD 'another'")
            await self._end_backends()

        return always(revoke, lambda: self.run("ALTER ROLE {} PASSWORD 'made-up'"))

    def down(self) -> AbstractAsyncContextManager[None]:
        async def stop() -> None:
            self.proxy.down()

        async def go() -> None:
            self.proxy.up()

        return always(stop, go)

    async def lose_next_answer(self) -> None:
        self.proxy.lose_answer_to(b'"_turn":')

    async def _end_backends(self) -> None:
        await self.connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [self.name])


class TestPostgres(Conformance):
    """The suite against PostgreSQL."""

    @pytest.fixture
    async def rig(self, database_url: str) -> AsyncIterator[PostgresRig]:
        rig = PostgresRig(database_url)
        await rig.start()
        yield rig
        await rig.stop()

    async def test_the_row_says_where_it_comes_from_and_what_it_was(self, rig: PostgresRig, bench: Bench) -> None:
        write = bench.write(
            ANN, {"name": "Ann"}, on_delete="tombstone", position=2**62, committed=1_700_000_000_123, received=1_700_000_001_000
        )
        await bench.give(write)
        await bench.give(bench.write(ANN, None, on_delete="tombstone", position=7))
        [row] = await rig.rows(
            "SELECT _key, _turn, _revision, _source, _route, _deleted, _position, _installation, name, _written_at <= now() FROM {}.person"
        )
        assert row == (ANN, 2, 2, A, "people", True, 7, bench.settings.installation, "Ann", True)

    async def test_delete_empties_the_row_and_keeps_its_turn(self, rig: PostgresRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann", "score": 1}))
        await bench.give(bench.write(ANN, None, on_delete="delete"))
        assert await rig.rows("SELECT _turn, _deleted, name, score FROM {}.person") == [(2, True, None, None)]

    async def test_every_type_keeps_its_value_and_names_the_field_that_cannot(self, rig: PostgresRig) -> None:
        columns: Columns = {"t": "text", "n": "number", "b": "boolean", "d": "date", "z": "datetime", "j": "json", 'ö"; DROP': "text"}
        rig.columns = columns
        bench = Bench(rig)
        good = {
            "t": "\U0001f600 ' \" \\",
            "n": 2**63 - 1,
            "b": False,
            "d": "2024-02-29",
            "z": "2024-02-29T12:00:00.000+0000",
            "j": [1, {"a": None}],
        }
        plain = bench.write(ANN, {})
        bad: dict[str, Any] = {"t": "nul \0", "n": "1,000", "b": "maybe", "d": "2023-02-29", "z": "noon", "j": {"a": "\0"}}
        writes = [replace(plain, body={**good, 'ö"; DROP': "x"})]
        writes += [
            replace(plain, key=f"{name}@x.y", source=f"acme/Contact/{name}", body={**good, name: value}) for name, value in bad.items()
        ]
        await bench.give(*writes)
        [row] = await rig.rows("SELECT t, n::text, b, d::text, extract(epoch FROM z)::int, j::text FROM {}.person")
        assert row == ("\U0001f600 ' \" \\", str(2**63 - 1), False, "2024-02-29", 1709208000, '[1, {"a": null}]')
        assert [letter.field for letter in bench.dead] == list(bad)
        await bench.target.close()

    async def test_a_table_whose_columns_have_other_types_than_the_map_goes_on_working(self, rig: PostgresRig) -> None:
        """As of a table from before the map said a type: what was written once as text or JSON goes on being that."""
        values: dict[ColumnType, Any] = {
            "text": "7",
            "number": 7.5,
            "boolean": False,
            "date": "2024-02-29",
            "datetime": "2024-02-29T12:00:00.000Z",
        }
        before_it: tuple[ColumnType, ...] = ("text", "json")
        names = {f"{old}_{new}": (old, new) for old in before_it for new in values}
        rig.columns = {name: old for name, (old, _) in names.items()}
        before = Bench(rig)
        await before.give(before.write(ANN, dict.fromkeys(names, "x")))
        rig.columns = {name: new for name, (_, new) in names.items()}
        target: Any = rig.target("again", before.settings.installation)
        body = {name: values[new] for name, (_, new) in names.items()}
        await target.start({"person": rig.columns})
        await target.write([effect("person", BOB, body)])
        columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
        [row] = await (
            await rig.connection.execute(
                sql.SQL("SELECT {} FROM {}.person WHERE _key = {}").format(columns, sql.Identifier(rig.name), sql.Literal(BOB))
            )
        ).fetchall()
        plain = {"text": "7", "number": "7.5", "boolean": "false", "date": "2024-02-29", "datetime": "2024-02-29T12:00:00.000Z"}
        as_json = plain | {name: f'"{plain[name]}"' for name in ("text", "date", "datetime")}
        assert dict(zip(names, row, strict=True)) == {
            name: (plain if old == "text" else as_json)[new] for name, (old, new) in names.items()
        }
        assert await target.differing("person", {BOB: body}) == {}
        [*_, (count, total)] = await target.hashes("person", [BOB])
        assert (count, total) == (1, target.hash_of("person", BOB, body)), "verify takes it for equal too"
        await target.close()
        await before.target.close()

    async def test_where_the_column_cannot_hold_what_the_map_makes_now_the_dead_letter_says_what_to_type(self, rig: PostgresRig) -> None:
        rig.columns = {"size": "number"}
        before = Bench(rig)
        await before.give(before.write(ANN, {"size": 7}))
        target: Any = rig.target("again", before.settings.installation)
        await target.start({"person": {"size": "text"}})
        with pytest.raises(PermanentError, match="it is numeric, the map makes it text") as refused:
            await target.write([effect("person", BOB, {"size": "XL"})])
        remedy = str(refused.value).partition("makes it text: ")[2].partition(", then redrive)")[0]
        assert remedy.startswith("ALTER TABLE")
        await rig.connection.execute(remedy.encode())
        await target.write([effect("person", BOB, {"size": "XL"})])
        assert sorted(await rig.rows("SELECT _key, size FROM {}.person")) == sorted([(ANN, "7"), (BOB, "XL")])
        await target.close()
        await before.target.close()

    async def test_a_huge_value_is_kept(self, rig: PostgresRig, bench: Bench) -> None:
        for sign in "xyz":
            await bench.give(bench.write(ANN, {"name": sign * 400_000}))
        assert await rig.rows("SELECT length(name), left(name, 1) FROM {}.person") == [(400_000, "z")]

    async def test_a_key_that_outgrows_its_state_is_a_dead_letter_and_stays_as_it_was(self, rig: PostgresRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "x" * 500_000}))
        await bench.give(bench.write(ANN, {"name": "y" * 500_000}, B))
        assert [letter.source for letter in bench.dead] == [B]
        assert await rig.rows("SELECT left(name, 1), _turn FROM {}.person") == [("x", 1)]

    async def test_a_new_field_of_the_map_becomes_a_column(self, rig: PostgresRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        target = rig.target("again", bench.settings.installation)
        await target.start({"person": {**rig.columns, "phone": "text"}})
        assert await rig.rows("SELECT name, phone FROM {}.person") == [("Ann", None)]
        await target.close()

    async def test_a_dropped_table_is_made_again(self, rig: PostgresRig, bench: Bench) -> None:
        await bench.give(bench.write(ANN, {"name": "Ann"}))
        await rig.run("DROP TABLE {}.person")
        await bench.give(bench.write(BOB, {"name": "Bob"}))
        assert await rig.held() == {BOB: {"name": "Bob"}}

    async def test_lost_rights_pause_until_they_are_back(self, rig: PostgresRig, bench: Bench) -> None:
        await bench.give(bench.write(CAT, {"name": "Cat"}))

        async def take() -> None:
            await rig.run("ALTER TABLE {0}.person OWNER TO CURRENT_USER")

        async def give() -> None:
            await rig.run("ALTER TABLE {0}.person OWNER TO {0}")

        await self._interrupted(bench, lambda: always(take, give), "paused")

    async def test_rows_of_another_installation_are_refused_until_adopted(self, rig: PostgresRig, bench: Bench) -> None:
        await bench.give(bench.write(BOB, {"name": "Old Bob"}), bench.write(BOB, {"name": "Bob"}), bench.write(ANN, {"name": "Ann"}))
        other = Bench(rig)
        work = asyncio.create_task(other.give(other.write(BOB, {"name": "New Bob"})))
        await asyncio.wait({work, asyncio.create_task(other.heard("adopt"))}, return_when=asyncio.FIRST_COMPLETED)
        assert not work.done()
        assert (await rig.held())[BOB] == {"name": "Bob"}
        target: Any = rig.target(other.name, other.settings.installation)
        assert await target.adopt() == ["person"]
        await work
        assert (await rig.held()) == {BOB: {"name": "New Bob"}, ANN: {"name": "Ann"}}
        await target.close()
        await other.target.close()

    async def test_a_table_that_is_not_ours_is_left_alone(self, rig: PostgresRig, bench: Bench) -> None:
        await rig.run("CREATE TABLE {0}.person (name text)")
        await rig.run("ALTER TABLE {0}.person OWNER TO {0}")
        with pytest.raises(PausedError, match="not made by Headrace"):
            await bench.target.start({"person": rig.columns})

    @pytest.mark.parametrize("name", ["x" * 64, "", "nul\0", "_turn"])
    async def test_names_postgresql_cannot_hold_are_refused(self, bench: Bench, name: str) -> None:
        with pytest.raises(PausedError):
            await bench.target.start({"person": {name: "text"}})

    async def test_workers_that_start_at_once_make_one_table(self, rig: PostgresRig) -> None:
        targets = [rig.target("t", "c-one") for _ in range(5)]
        await asyncio.gather(*(target.start({"person": rig.columns}) for target in targets))
        assert await rig.rows("SELECT count(*) FROM {}.person") == [(0,)]
        for target in targets:
            await target.close()

    async def test_no_error_shows_the_password(self, rig: PostgresRig, bench: Bench) -> None:
        async with rig.revoked():
            with pytest.raises(PausedError) as caught:
                await bench.target.probe()
        assert "made-up" not in f"{caught.value!r} {bench.target!r} {vars(bench.target)}"


async def test_what_differs_is_named_by_key_and_what_stands_is_listed_in_order(database_url: str) -> None:
    rig = PostgresRig(database_url)
    await rig.start()
    try:
        target = rig.target("warehouse", "one")
        assert isinstance(target, Comparing) and isinstance(target, Listing) and isinstance(target, Hashing)
        await target.start({"person": rig.columns})
        bodies: dict[str, Body] = {f"k{n}": {"name": f"N{n}", "city": None, "score": 1.5} for n in range(6)}
        await target.write([effect("person", key, body) for key, body in bodies.items()])
        assert await target.differing("person", bodies) == {}
        hashes = {key: target.hash_of("person", key, body) for key, body in bodies.items()}
        expected = [(count, sum(hashes[f"k{n}"] for n in numbers)) for count, numbers in ((1, [0]), (2, [1, 2]), (3, [3, 4, 5]))]
        assert list(await target.hashes("person", ["k1", "k3"])) == expected
        assert list(await target.hashes("person", [])) == [(6, sum(hashes.values()))]
        assert await target.differing("person", {"k1": {"name": "N1", "score": "1.50"}}) == {}, "converted as it is written"
        await rig.run("DELETE FROM {}.person WHERE _key = 'k0'")
        await rig.run("UPDATE {}.person SET city = 'X' WHERE _key = 'k1'")
        await rig.run("UPDATE {}.person SET score = NULL WHERE _key = 'k2'")
        await rig.run("UPDATE {}.person SET _deleted = true WHERE _key = 'k3'")
        assert [found == wanted for found, wanted in zip(await target.hashes("person", ["k1", "k3"]), expected, strict=True)] == [False] * 3
        wrong = {"k0": "missing", "k1": "changed", "k2": "changed", "k3": "deleted"}
        assert await target.differing("person", bodies) == wrong
        assert await target.standing("person", "") == ["k1", "k2", "k4", "k5"]
        assert await target.standing("person", "k4") == ["k5"]
        assert await target.standing("person", "k5") == []
        assert await target.standing("person", "", "k4") == ["k1", "k2"]
        with pytest.raises(PermanentError):
            await target.differing("person", {"k4": {"name": "N4", "score": "a lot"}})
        await target.close()
    finally:
        await rig.stop()


async def test_the_hash_of_a_body_is_the_one_postgresql_computes_of_its_row_whatever_its_values(database_url: str) -> None:
    rig = PostgresRig(database_url)
    await rig.start()
    try:
        target = rig.target("warehouse", "one")
        columns: Columns = {"a": "text", "b": "number", "c": "boolean", "d": "date", "e": "datetime", "f": "json"}
        assert isinstance(target, Hashing)
        await target.start({"odd": columns})
        values: list[Body] = [
            {},
            {"a": "", "b": 0, "c": False, "d": "2026-02-28", "e": "2026-02-28T23:59:59.123456+02:00", "f": {}},
            {"a": "Zoë \U0001f600 'quoted' \\ \t\n\x1f", "b": -0.0, "c": True, "d": "1969-12-31", "e": "1969-12-31T23:59:59.999Z", "f": []},
            {"a": 12, "b": "1.500", "f": {"bb": 1.0, "a": None, "é": "\u2028 \x01 \x7f /", "ab": [1, 2.5, {"z": True}]}},
            {"a": True, "b": 1e20, "e": "2026-01-02T03:04:05.000+0000", "f": 1e-7},
            {"a": {"x": [1, "y"]}, "b": 123456789012345678, "d": "0099-01-01", "f": "text"},
            {"a": "x" * 10_000, "b": "0.10", "d": "2026-01-02", "f": False},
        ]
        bodies = {f"k{n}": body for n, body in enumerate(values)}
        await target.write([effect("odd", key, body) for key, body in bodies.items()])
        found = await target.hashes("odd", list(bodies)[1:])
        expected = [(1, target.hash_of("odd", key, body)) for key, body in bodies.items()]
        assert [key for key, ours, theirs in zip(bodies, expected, found, strict=True) if ours != theirs] == []
        target.hash_of("odd", "k", {"b": "a lot", "d": "never", "e": 7, "c": []})  # what cannot be converted differs, without an error
        await target.close()
    finally:
        await rig.stop()
