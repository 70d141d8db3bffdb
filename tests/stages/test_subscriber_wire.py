"""Every fault of the wire: each event of the org is in the in-topics exactly once, in order per record."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.settings import Settings
from streams.topics import Topics, ensure
from tests.support.broker import settings_for, topics
from tests.support.salesforce import Desk, arrived, connected, flow_for, order_of, org, subscribed, until

pytestmark = pytest.mark.kafka


@pytest.fixture
async def settings(kafka: str, tmp_path: Path) -> AsyncIterator[Settings]:
    found = settings_for(kafka, tmp_path)
    async with topics(found, []):
        await ensure(found, Topics(found.installation).all(flow_for("http://localhost"), found))
        yield found


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        yield found


async def all_there(settings: Settings, desk: Desk, task: "asyncio.Task[None]") -> None:
    """Everything published is there; a marker made afterwards has passed, so nothing more is on its way."""
    await desk.create("Marker")
    wanted = await desk.published("Contact")
    found = await until(lambda: arrived(settings, "Contact"), lambda a: len(a) >= len(wanted) and a[-1:] == wanted[-1:], task=task)
    assert found == wanted
    for positions in (await order_of(settings, "Contact")).values():
        assert positions == sorted(positions)


async def test_events_come_in_with_their_position(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        for name in ("Ames", "Bell"):
            await desk.create(name)
        await all_there(settings, desk, task)
