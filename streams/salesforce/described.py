"""Describes kept below the state folder, for commands: each is a process of its own. Whoever learns of a change forgets them."""

import time
from contextlib import suppress
from pathlib import Path

import orjson

from models.settings import Settings
from streams.salesforce.rest import DESCRIBED_SECONDS, Row


def kept(settings: Settings, connection: str, sobject: str, url: str) -> Row | None:
    """What that org said within the hour."""
    try:
        found = orjson.loads(_file(settings, connection, sobject).read_bytes())
        fresh = 0 <= time.time() - found["at"] < DESCRIBED_SECONDS and found["url"] == url
        return dict(found["described"]) if fresh else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(settings: Settings, connection: str, sobject: str, url: str, described: Row) -> None:
    """Where it cannot be kept it is asked for again."""
    file = _file(settings, connection, sobject)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_bytes(orjson.dumps({"at": time.time(), "url": url, "described": described}))
        fresh.replace(file)


def forget(settings: Settings, connection: str) -> None:
    """The fields of the org are others."""
    with suppress(OSError):
        for file in _file(settings, connection, "x").parent.glob(f"{connection}.*.json"):
            file.unlink(missing_ok=True)


def _file(settings: Settings, connection: str, sobject: str) -> Path:
    return settings.state / "describes" / f"{connection}.{sobject}.json"
