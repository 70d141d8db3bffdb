"""Processes that die: another takes over, or the same starts again, and nothing is lost or doubled."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.settings import Settings
from streams.salesforce.positions import read_positions
from tests.support.salesforce import Desk, arrived, change, connected, flow_for, order_of, org, until
from tests.support.subscriber_process import end, start

pytestmark = pytest.mark.kafka


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        yield found


async def test_when_the_leader_is_killed_a_second_process_takes_over_within_30_seconds(
    settings: Settings, desk: Desk, tmp_path: Path
) -> None:
    flow = flow_for(desk.url)
    first = await start(settings, flow, "subscribe", log=tmp_path / "first.log", start_from="new", snapshot=False)
    second = None
    try:
        await connected(desk)
        people = [await desk.create(f"Person {n}") for n in range(5)]
        await until(lambda: arrived(settings, "Contact"), lambda a: len(a) == 5)
        second = await start(settings, flow, "subscribe", log=tmp_path / "second.log", start_from=None, snapshot=False)
        await until(lambda: lines(tmp_path / "second.log"), lambda text: "channel led" in text)  # it has joined
        assert ("led here" in await lines(tmp_path / "second.log")) is False, (
            "a second process must not take a channel from a healthy first"
        )
        await desk.call("POST", "change", rate=30, seconds=3)
        await asyncio.sleep(1)
        assert await end(first, kill=True) == -9
        killed = time.monotonic()
        for person in people:
            await desk.update(person, "after the kill")
        await until(lambda: lines(tmp_path / "second.log"), lambda text: "subscribed" in text)
        assert time.monotonic() - killed < 30
        await desk.create("Marker")
        wanted = await desk.published("Contact", "Account")
        found = await until(lambda: arrived(settings, "Contact", "Account"), lambda a: len(a) >= len(wanted) and a[-1:] == wanted[-1:])
        assert found == wanted
        assert all(p == sorted(p) for p in (await order_of(settings, "Contact", "Account")).values())
    finally:
        for process in (first, second):
            if process is not None:
                await end(process)
    assert second.returncode == 0


async def test_a_crash_before_the_first_event_of_a_first_start_loses_nothing(settings: Settings, desk: Desk, tmp_path: Path) -> None:
    flow = flow_for(desk.url)
    old = "003Qx00000Ke4RtIAJ"
    await desk.emit(change(old, second=int(time.time()) - 3600))
    first = await start(settings, flow, "subscribe", log=tmp_path / "log", start_from="new", snapshot=False)
    await connected(desk)
    assert await end(first, kill=True) == -9
    assert (await read_positions(settings))["acme|/data/ChangeEvents"].position is None
    person = await desk.create("While it was down")
    again = await start(settings, flow, "subscribe", log=tmp_path / "log", start_from=None, snapshot=False)
    try:
        found = await until(lambda: arrived(settings, "Contact"), lambda a: any(key == person for _, key in a))
    finally:
        await end(again)
    assert [key for _, key in found] == [person]


async def lines(path: Path) -> str:
    return await asyncio.to_thread(path.read_text) if await asyncio.to_thread(path.exists) else ""
