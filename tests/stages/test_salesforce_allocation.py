"""The event allocation is used up: what changes comes by polling, and by events again when it returns, with no hole at either seam."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.settings import Settings
from streams import metrics
from streams.salesforce.incidents import read_incidents
from tests.support import subscriber_process
from tests.support.salesforce import Desk, arrived, connected, envelope_of, flow_for, inbound, repaired, subscribed, until

pytestmark = pytest.mark.kafka


async def missing(settings: Settings, desk: Desk, made: list[str]) -> list[str]:
    """Of these Contacts, those whose deletion or creation has come neither by an event nor by a row."""
    deleted: dict[str, bool] = {}
    for bulk in (False, True):
        for record in await inbound(settings, "Contact", bulk=bulk):
            value, id = orjson.loads(record.value or b""), (record.key or b"").decode()
            gone = value["IsDeleted"] if bulk else value["data"]["payload"]["ChangeEventHeader"]["changeType"] == "DELETE"
            deleted[id] = deleted.get(id, False) or gone
    rows = {r["Id"]: r["IsDeleted"] for r in (await desk.call("GET", "records?type=Contact"))["records"]}
    return [id for id in made if deleted.get(id) is not rows[id]]


async def by_events(settings: Settings, id: str) -> bool:
    return id in [key for _, key in await arrived(settings, "Contact")]


async def again(value: int, task: "asyncio.Task[None]") -> None:
    """Until the channel is subscribed (1) or not (0)."""
    gauge = metrics.SUBSCRIBED.labels("acme", "/data/ChangeEvents")
    await until(lambda: asyncio.sleep(0, gauge._value.get()), lambda found: found == value, task=task)


async def changes(desk: Desk, number: int) -> list[str]:
    """So many new Contacts, every third deleted again."""
    made = [await desk.create(f"P{n}") for n in range(number)]
    for id in made[::3]:
        await desk.delete(id)
    return made


async def refused(desk: Desk) -> dict[str, int]:
    found: dict[str, int] = (await desk.call("GET", "limits"))["refused"]
    return found


@pytest.mark.parametrize("room", [40, 1000])
async def test_everything_arrives_by_polling_and_by_events_again_when_there_is_room(settings: Settings, desk: Desk, room: int) -> None:
    """With little room the events of what was polled are not asked for again, with much they are."""
    await desk.call("POST", "settings", daily_events=20)
    async with subscribed(settings, flow_for(desk.url, poll_instead=1)) as task:
        await connected(desk, task)
        made = await changes(desk, 40)
        await until(lambda: missing(settings, desk, made), lambda found: not found, task=task)
        opened = await until(lambda: read_incidents(settings), lambda found: len(found) == 2, task=task)
        assert {(i.cause, i.state) for i in opened.values()} == {("allocation", "open")}
        assert metrics.POLLED.labels("acme", "Contact")._value.get() == 2
        made += await changes(desk, 10)
        await until(lambda: missing(settings, desk, made), lambda found: not found, task=task)
        assert len(await arrived(settings, "Contact")) == 20
        assert await refused(desk) == {"DailyDeliveredPlatformEvents": 1}, "it asks what is left, it does not try"
        between = [await desk.create("At the seam")]
        await desk.call("POST", "settings", daily_events=20 + room)
        await again(1, task)
        made += [*between, await desk.create("By an event")]
        closed = await repaired(settings, 2, task)
        await until(lambda: by_events(settings, made[-1]), bool, task=task)
        assert await missing(settings, desk, made) == []
        await until(lambda: asyncio.sleep(0, metrics.POLLED.labels("acme", "Contact")._value.get()), lambda found: found == 0, task=task)
    assert await by_events(settings, made[20]) is (room > 40), "events of the outage"
    [contacts] = [i for i in closed if i.source == "acme/Contact"]
    assert contacts.rows >= len(made) - 20 and contacts.calls > 0 and "after events were delivered again" in contacts.proof
    reasons = {envelope_of(r).reason for r in await inbound(settings, "Contact", bulk=True)}
    assert reasons == {"poll"}


@pytest.mark.slow
async def test_a_kill_9_amid_the_outage_and_a_session_lost_at_the_seam_leave_nothing_out(
    settings: Settings, desk: Desk, tmp_path: Path
) -> None:
    await desk.call("POST", "settings", daily_events=20)
    flow = flow_for(desk.url, poll_instead=1)
    options: dict[str, Any] = {"start_from": "new", "snapshot": False, "pause_seconds": 0.3}
    process = await subscriber_process.start(settings, flow, "subscribe", log=tmp_path / "log", **options)
    await connected(desk)
    made = await changes(desk, 30)
    await until(lambda: missing(settings, desk, made), lambda found: not found)
    await subscriber_process.end(process, kill=True)
    made += await changes(desk, 9)
    await desk.call("POST", "settings", daily_events=30)
    async with subscribed(settings, flow, start_from=None) as task:  # its allocation is over again before its first round may be
        await until(lambda: missing(settings, desk, made), lambda found: not found, task=task)
        await desk.fault("unknown-client", times=3)
        await desk.call("POST", "settings", daily_events=10_000)
        made += await changes(desk, 9)
        await until(lambda: missing(settings, desk, made), lambda found: not found, task=task)
        await until(lambda: read_incidents(settings), lambda found: all(i.state == "closed" for i in found.values()), task=task)
        last = await desk.create("Last")
        await until(lambda: by_events(settings, last), bool, task=task)
