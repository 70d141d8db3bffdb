"""A field is added by editing YAML only: it appears in the target without a restart, whatever happens to the workers meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.sql import SQL

from deploy.rig import Rig
from tests.support.rigs import WAREHOUSE, rig

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]
FLOW = (
    WAREHOUSE
    + """\
routes:
  people: {from: acme/Contact, to: warehouse, map: maps/people.yaml}
"""
)


@pytest.fixture(scope="module")
def made(kafka: str, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("maps")
    (folder / "maps").mkdir()
    (folder / "maps" / "people.yaml").write_text("Email: email\nLastName: last\n")
    (folder / "flow.yaml").write_text(FLOW)
    with rig(folder / "rig", kafka, database_url, records=40, hold=2.0, flow=folder / "flow.yaml") as found:
        found.start_services()
        for role in ("worker", "subscribe"):
            found.run(role)
        found.run("worker", name="second")
        for name in ("worker", "second", "subscribe"):
            found.wait_ready(name)
        yield found


def rows(made: Rig, question: str) -> int:
    with made.database() as database:
        found = database.execute(SQL(question)).fetchone()
    assert found is not None
    return int(found[0])


def column(made: Rig, name: str) -> bool:
    return rows(made, f"SELECT count(*) FROM information_schema.columns WHERE table_name = 'people' AND column_name = '{name}'") == 1


def in_use(made: Rig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.command("status", "--json")[1])["maps"][0]
    return found


def change(made: Rig) -> None:
    made.ask("POST", "/sandbox/change", {"rate": 20, "seconds": 4, "seed": 5, "rename_parents": False})


def test_an_edited_map_is_in_use_without_a_restart_and_a_broken_one_is_not(made: Rig) -> None:
    path = Path(made.flow).parent / "maps" / "people.yaml"
    made.await_("the snapshot", lambda: column(made, "last") and rows(made, "SELECT count(*) FROM crm.people") > 0)
    path.write_text("Email: email\nLastName: last\nTitle: title\n")
    change(made)
    made.await_("the new column", lambda: column(made, "title"))
    made.await_("its values", lambda: rows(made, "SELECT count(*) FROM crm.people WHERE title IS NOT NULL") > 0)
    path.write_text("Email: email\nLastName: [\n")
    made.await_("the mistake in status", lambda: len(in_use(made)["broken"]) == 2)
    assert in_use(made)["version"] == 2
    path.write_text("Email: email\nLastName: last\nTitle: title\nPhone: phone\n")
    made.await_("the third version in the topic", lambda: in_use(made)["version"] == 3)
    made.kill("worker")  # it may have published and not switched: the topic holds what it was about to use
    made.kill("second")
    change(made)
    made.await_("the next column", lambda: column(made, "phone"))
    made.await_("its values", lambda: rows(made, "SELECT count(*) FROM crm.people WHERE phone IS NOT NULL") > 0)
    assert in_use(made)["version"] == 3
    assert json.loads(made.command("dead-letters", "--json")[1]) == []
