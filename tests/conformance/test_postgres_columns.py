"""What PostgreSQL's catalogue says of columns that somebody changed: told to gates, named in refusals, and no obstacle to a delete."""

from collections.abc import AsyncIterator

import pytest

from agents.rules.takes import Takes
from agents.targets.base import Columns, Describing
from models.errors import PermanentError
from models.write import Body
from tests.conformance.suite import ANN, BOB, CAT, B, Bench
from tests.conformance.test_postgres import PostgresRig
from tests.support.effects import effect

pytestmark = pytest.mark.postgres


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[PostgresRig]:
    made = PostgresRig(database_url)
    await made.start()
    yield made
    await made.stop()


async def test_the_catalogue_says_what_a_column_takes_and_a_refusal_names_column_and_rule(rig: PostgresRig) -> None:
    texts: Columns = dict.fromkeys(("short", "stage", "kind", "wanted", "sole", "few", "pair", "free"), "text")
    rig.columns = {**texts, "n": "number"}
    bench = Bench(rig)
    await bench.give(bench.write(ANN, {"wanted": "x", "sole": "taken"}))
    for change in (
        "ALTER COLUMN short TYPE varchar(5)",
        "ADD CHECK (stage IN ('new', 'it''s'))",
        "ALTER COLUMN kind TYPE {0}.kind USING kind::{0}.kind",
        "ALTER COLUMN wanted SET NOT NULL",
        "ADD UNIQUE (sole)",
        "ADD CHECK (length(few) < 3)",
        "ADD CHECK (pair <> free)",
        "ADD CHECK (n > 0)",
    ):
        if "kind" in change:
            await rig.run("CREATE TYPE {0}.kind AS ENUM ('a', 'b')")
        await rig.run("ALTER TABLE {0}.person " + change)
    target = bench.target
    assert isinstance(target, Describing)
    assert await target.describe("person") == {
        "short": Takes(length=5),
        "stage": Takes(values=frozenset({"new", "it's"})),
        "kind": Takes(values=frozenset("ab")),
        "wanted": Takes(required=True),
        "sole": Takes(unique=True),
        "few": Takes(length=2),
    }
    assert await target.describe("nothing") == {}
    bodies: dict[str, Body] = {
        "short": {"short": "s3cret"},
        "stage": {"stage": "s3cret"},
        "kind": {"kind": "s3cret"},
        "wanted": {"wanted": None},
        "sole": {"sole": "taken"},
        "few": {"few": "s3cret"},
        "n": {"n": -1},
        "": {"pair": "s3cret", "free": "s3cret"},
    }
    meant = [effect("person", f"{name}@x.y", {"wanted": "x", **body}) for name, body in bodies.items()]
    found = {}
    await target.start({"person": rig.columns})
    for name, one in zip(bodies, meant, strict=True):
        with pytest.raises(PermanentError) as caught:
            await target.write([one])
        found[name] = caught.value.field or "", caught.value.rule
        assert "s3cret" not in caught.value.reason
    rules = dict.fromkeys(bodies, "value") | {"short": "length", "kind": "type", "wanted": "required", "sole": "unique", "": None}
    assert found == {name: (name, rule) for name, rule in rules.items()}
    for name, takes in (await target.describe("person")).items():
        assert takes.unique or takes.refuses(bodies[name][name]) is not None, "the gate stops what the table refuses"
        assert takes.unique or takes.refuses({"short": "12345", "stage": "it's", "kind": "b", "wanted": "", "few": "12"}[name]) is None
    await bench.target.close()


async def test_a_column_that_must_not_be_null_does_not_keep_a_deleted_record_alive(rig: PostgresRig) -> None:
    bench = Bench(rig)
    await bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(BOB, {"name": "Bob"}, B))
    await rig.run("ALTER TABLE {}.person ALTER COLUMN name SET NOT NULL")
    again = Bench(rig)
    again.name, again.settings, again.log, again.partition = bench.name, bench.settings, bench.log, bench.partition
    again.revisions, again.topics, again.flow = bench.revisions, bench.topics, bench.flow
    again.target = rig.target(bench.name, bench.settings.installation)
    again.stage = again.fresh_stage()
    await again.give(again.write(ANN, None, on_delete="tombstone"), again.write(CAT, None, on_delete="tombstone"))
    assert await rig.rows("SELECT _key, _deleted, name FROM {}.person ORDER BY _key") == [(ANN, True, "Ann"), (BOB, False, "Bob")]
    assert again.dead == []
    await again.give(again.write(ANN, {"name": "Back"}))
    assert (await rig.held())[ANN] == {"name": "Back"}
    await again.target.close()
