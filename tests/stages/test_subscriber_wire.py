"""Every fault of the wire: each event of the org is in the in-topics exactly once, in order per record."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from models.settings import Settings
from tests.support.salesforce import Desk, arrived, connected, first_came, flow_for, order_of, org, subscribed, until

pytestmark = pytest.mark.kafka


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


FAULTS = [
    ("drop-connections", {"variant": "held"}),
    ("drop-connections", {"variant": "reply"}),
    ("drop-connections", {"variant": "request", "times": 2}),
    ("unknown-client", {"variant": "handshake"}),
    ("unknown-client", {"variant": "none"}),
    ("server-restart", {"seconds": 1}),
    ("refuse-resubscribe", {}),
    ("silent", {"variant": "session"}),
    ("duplicate", {"times": 3}),
    ("reorder", {"times": 3}),
    ("expire-token", {}),
    ("html-503", {"times": 3}),
    ("html-200", {"variant": "cometd", "times": 2}),
    ("empty-body", {"variant": "cometd", "times": 2}),
    ("slow", {"times": 3, "seconds": 1}),
    ("invalid-replay", {}),
]
NEEDS_NEW_SESSION = {"refuse-resubscribe", "invalid-replay"}


@pytest.mark.parametrize(("name", "options"), FAULTS, ids=lambda v: v if isinstance(v, str) else v.get("variant", ""))
async def test_a_fault_of_the_wire_loses_nothing_and_doubles_nothing(
    settings: Settings, desk: Desk, name: str, options: dict[str, object]
) -> None:
    async with subscribed(settings, flow_for(desk.url, silence=2.5)) as task:
        await connected(desk, task)
        people = [await desk.create(f"Before {n}") for n in range(3)]
        await until(lambda: arrived(settings, "Contact"), lambda a: len(a) == 3, task=task)
        await desk.fault(name, **options)
        if name in NEEDS_NEW_SESSION:
            await desk.fault("drop-connections", variant="held")
        for turn in range(4):
            for person in people:
                await desk.update(person, f"Title {turn}")
            await asyncio.sleep(0.15)
        await all_there(settings, desk, task)


async def test_a_server_that_is_silent_to_everybody_is_read_again_once_it_speaks(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url, silence=2)) as task:
        person = await first_came(settings, desk, task)
        await desk.fault("silent", variant="all")
        await desk.update(person, "unheard")
        handshakes = (await desk.state())["counts"]["handshakes"]
        await until(desk.state, lambda s: s["counts"]["handshakes"] > handshakes, task=task)
        await desk.call("DELETE", "faults?name=silent")
        await all_there(settings, desk, task)


async def test_a_revoked_login_pauses_and_goes_on_by_itself(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        person = await desk.create("Before")
        await desk.fault("revoke")
        await desk.update(person, "while locked out")
        refused = await until(desk.state, lambda s: s["counts"].get("logins refused", 0) >= 2, task=task)
        assert refused["counts"]["logins"] < 10
        await desk.call("DELETE", "faults?name=revoke")
        await all_there(settings, desk, task)
