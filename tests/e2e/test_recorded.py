"""Every recorded change event of the sample files, published as it stands, ends as a row or as a dead letter with a reason."""

import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.local.process import LocalServiceError
from deploy.rig import Rig
from tests.support.rigs import rig

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = ("cometd-emp-connector", "cometd-clients", "cometd-documentation", "cometd-platform-events")
TABLES = ("person", "account", "case", "employee", "distributor", "expense")

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.timeout(240)]


def recorded() -> list[dict[str, Any]]:
    """The `data` part of every recorded message."""
    lines = [line for name in FILES for line in (DATA / "sandbox" / f"{name}.jsonl").read_text().splitlines() if line.strip()]
    messages = [json.loads(line)["message"] for line in lines]
    return [message.get("data", message) for message in messages]


def _letters(made: Rig) -> list[dict[str, Any]]:
    code, printed = made.command("dead-letters", "--json")
    assert code == 0, printed
    found: list[dict[str, Any]] = json.loads(printed)
    return found


def _incidents(made: Rig) -> list[dict[str, Any]]:
    code, printed = made.command("incidents", "--json")
    assert code == 0, printed
    found: list[dict[str, Any]] = json.loads(printed)
    return found


def test_every_recorded_event_ends_as_a_row_a_dead_letter_or_a_repaired_incident(kafka: str, database_url: str, tmp_path: Path) -> None:
    events = recorded()
    assert len(events) > 20
    with rig(tmp_path, kafka, database_url, records=0, flow=DATA / "recorded.yaml", fields=DATA / "custom-objects.yaml") as made:
        made.start()
        lines = tmp_path / "recorded.jsonl"
        lines.write_text("\n".join(json.dumps(event) for event in events))
        published = made.ask("POST", "/sandbox/emit", lines.read_bytes())
        assert published["published"] == len(events)
        wanted = {}
        for replay_id, event in zip(published["replayIds"], events, strict=True):
            header = (event.get("payload") or {}).get("ChangeEventHeader") or {}
            for record_id in header.get("recordIds") or ["-"]:
                wanted[replay_id, record_id] = header.get("entityName")

        def missing() -> dict[tuple[int, str], str | None]:
            with made.database() as database:
                rows = {str(row[0]).rpartition("/")[2] for table in TABLES for row in _keys(database, table)}
            letters = _letters(made)
            dead = {base64.b64decode(letter.get("key") or "").decode() for letter in letters}
            positions = {
                base64.b64decode(value).decode() for letter in letters for name, value in letter.get("headers", []) if name == "position"
            }
            positions |= {incident["id"].split("/")[3] for incident in _incidents(made) if incident["state"] == "closed"}
            assert all(letter["reason"] for letter in letters)
            return {
                (position, record_id): name
                for (position, record_id), name in wanted.items()
                if record_id not in rows and record_id not in dead and str(position) not in positions
            }

        with suppress(LocalServiceError):
            made.await_("every recorded event", lambda: not missing())
        assert missing() == {}


def _keys(database: Any, table: str) -> list[Any]:
    if not database.execute("SELECT to_regclass(%s)", [f'crm."{table}"']).fetchone()[0]:
        return []
    found: list[Any] = database.execute(f'SELECT _key FROM crm."{table}"').fetchall()
    return found
