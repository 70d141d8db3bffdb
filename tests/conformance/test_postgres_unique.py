"""A unique column of PostgreSQL: rows of one value come in any order, and one stands; nobody else's row is touched, nothing is lost."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from msgspec.structs import replace

from agents.targets.base import Effect, TargetLike
from models.errors import PermanentError, TemporaryError
from models.write import Body, OnDelete, Outcome
from tests.conformance.test_postgres import PostgresRig
from tests.support.effects import META, text

pytestmark = pytest.mark.postgres
WRITTEN, STALE, DELETED = Outcome.WRITTEN, Outcome.STALE, Outcome.DELETED


class Table:
    """Of persons with a code; `effects` say by which election of their group they stand."""

    def __init__(self, rig: PostgresRig, target: TargetLike) -> None:
        self.rig, self.target, self.turn = rig, target, 0

    async def tell(self, *effects: Effect) -> list[Outcome]:
        return [result.outcome for result in await self.target.write(effects)]

    def row(self, key: str, body: Body | None, election: int = 0, *, by: str = "code", route: str = "r", **more: Any) -> Effect:
        self.turn += 1
        meta = replace(META, election=election, unique=by, route=route)
        on_delete = cast("OnDelete", more.get("on_delete", "mark"))
        return Effect(object="person", key=key, json=text(body), turn=self.turn, on_delete=on_delete, meta=meta)

    async def rows(self) -> dict[str, list[Any]]:
        return {key: rest for key, *rest in await self.rig.rows("SELECT _key, NOT _deleted, code, name FROM {}.person ORDER BY _key")}


@pytest.fixture
async def table(database_url: str) -> AsyncIterator[Table]:
    rig = PostgresRig(database_url)
    await rig.start()
    rig.columns = {"name": "text", "code": "text", "email": "text"}
    target = rig.target("warehouse", "t")
    await target.start({"person": rig.columns})
    await rig.run("ALTER TABLE {}.person ADD UNIQUE (code), ADD UNIQUE (email)")
    await target.start({"person": rig.columns})
    yield Table(rig, target)
    await target.close()
    await rig.stop()


async def test_who_is_elected_later_takes_the_value_and_who_was_elected_before_comes_too_late(table: Table) -> None:
    assert await table.tell(table.row("a", {"code": "X", "name": "A"}, 4)) == [WRITTEN]
    assert await table.tell(table.row("b", {"code": "X", "name": "B"}, 5)) == [WRITTEN], "the release of the other is on its way"
    assert await table.rows() == {"a": [True, None, "A"], "b": [True, "X", "B"]}
    assert await table.tell(table.row("a", {"code": "X", "name": "late"}, 4)) == [STALE]
    assert await table.rows() == {"a": [True, None, "A"], "b": [True, "X", "B"]}
    assert await table.tell(table.row("a", None, 5)) == [DELETED]
    assert await table.tell(table.row("b", None, 6, on_delete="delete"), table.row("a", {"code": "X", "name": "A"}, 6)) == [
        DELETED,
        WRITTEN,
    ]
    assert await table.rows() == {"a": [True, "X", "A"], "b": [False, None, None]}


async def test_values_are_exchanged_in_one_call(table: Table) -> None:
    await table.tell(table.row("a", {"code": "X"}, 1), table.row("b", {"code": "Y"}, 1), table.row("c", {"code": "Z"}, 1))
    swapped = [table.row("a", {"code": "Y"}, 2), table.row("b", {"code": "X"}, 2), table.row("d", {"code": "Z"}, 1)]
    assert await table.tell(*swapped) == [WRITTEN] * 3
    assert {key: code for key, (_, code, _) in (await table.rows()).items()} == {"a": "Y", "b": "X", "c": None, "d": "Z"}


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"election": 0, "route": "other"}, {"election": 9}),
        ({"election": 1, "route": "other"}, {"election": 9}),
        ({"election": 1}, {"election": 0}),
        ({"election": 1}, {"election": 9, "by": "name"}),
    ],
)
async def test_who_is_in_no_group_with_the_row_that_holds_the_value_is_refused(table: Table, held: Any, told: Any) -> None:
    await table.tell(table.row("a", {"code": "X"}, **held))
    with pytest.raises(PermanentError) as refused:
        await table.tell(table.row("b", {"code": "X"}, **told))
    assert (refused.value.field, refused.value.rule) == ("code", "unique")
    assert await table.rows() == {"a": [True, "X", None]}


async def test_groups_of_mail_addresses_are_others_than_those_of_the_field_email(table: Table) -> None:
    assert await table.tell(table.row("a", {"email": "x"}, 8, by="")) == [WRITTEN]
    assert await table.tell(table.row("b", {"email": "x"}, 9, by="")) == [WRITTEN]
    assert await table.tell(table.row("a", {"email": "x"}, 8, by="")) == [STALE]
    assert await table.tell(table.row("c", {"email": "x"}, 1, by="email")) == [WRITTEN]


@pytest.mark.parametrize("held", [{"election": 0}, {"election": 99, "by": "name"}])
async def test_who_stood_before_the_flow_said_what_is_unique_gives_way(table: Table, held: Any) -> None:
    await table.tell(table.row("a", {"code": "X"}, **held))
    assert await table.tell(table.row("b", {"code": "X"}, 1)) == [WRITTEN]


async def test_what_only_the_column_takes_for_the_same_is_refused(table: Table) -> None:
    await table.rig.run("ALTER TABLE {0}.person ALTER COLUMN code TYPE char(3)")
    await table.target.start({"person": table.rig.columns})
    await table.tell(table.row("a", {"code": "x"}, 1))
    with pytest.raises(PermanentError):
        await table.tell(table.row("b", {"code": "x "}, 2))
    assert await table.rows() == {"a": [True, "x  ", None]}


@pytest.mark.parametrize("on_delete", ["mark", "tombstone", "delete"])
async def test_a_row_that_is_marked_as_deleted_keeps_its_values_but_the_one_that_another_may_need(table: Table, on_delete: str) -> None:
    await table.tell(table.row("a", {"code": "X", "name": "A"}))
    await table.tell(table.row("a", None, on_delete=on_delete))
    assert await table.rows() == {"a": [False, None, None if on_delete == "delete" else "A"]}
    assert await table.tell(table.row("b", {"code": "X"})) == [WRITTEN]


async def test_among_standing_rows_only_a_value_is_kept_and_a_column_that_takes_no_null_is_given_up_with_its_row(table: Table) -> None:
    await table.rig.run("ALTER TABLE {}.person DROP CONSTRAINT person_code_key, ALTER COLUMN code SET NOT NULL")
    await table.rig.run("CREATE UNIQUE INDEX ON {}.person (code) WHERE NOT _deleted")
    await table.target.start({"person": table.rig.columns})
    await table.tell(table.row("a", {"code": "X"}, 1))
    assert await table.tell(table.row("b", {"code": "X"}, 2)) == [WRITTEN]
    assert await table.tell(table.row("a", None, 2)) == [DELETED]
    assert await table.rows() == {"a": [False, "X", None], "b": [True, "X", None]}


async def test_a_row_marked_before_the_column_was_unique_gives_way_and_the_table_is_looked_at_again(table: Table) -> None:
    gone = "DROP CONSTRAINT person_code_key, DROP CONSTRAINT person_email_key, DROP COLUMN _election, DROP COLUMN _elected_by"
    await table.rig.run("ALTER TABLE {}.person " + gone)
    await table.target.start({"person": table.rig.columns})
    await table.tell(table.row("a", {"code": "X"}))
    await table.tell(table.row("a", None))
    await table.rig.run("ALTER TABLE {}.person ADD UNIQUE (code)")
    with pytest.raises(TemporaryError, match="_elected_by"):
        await table.tell(table.row("b", {"code": "X"}))
    assert await table.tell(table.row("b", {"code": "X"})) == [WRITTEN]
    assert await table.rows() == {"a": [False, None, None], "b": [True, "X", None]}


async def test_elections_of_another_installation_do_not_count(table: Table) -> None:
    await table.tell(table.row("a", {"code": "X"}, 99))
    successor: Any = table.rig.target("warehouse", "successor")
    assert await successor.adopt() == ["person"]
    await successor.start({"person": table.rig.columns})
    [result] = await successor.write([table.row("b", {"code": "X"}, 1)])
    assert result.outcome is WRITTEN
    await successor.close()
