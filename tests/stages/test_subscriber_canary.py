"""A subscription that is up, answered and deaf: the canary finds it, readiness says so, a new session hears all that was missed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from deploy.sandbox.salesforce.org import USERNAME
from models.settings import Settings
from tests.support.salesforce import Desk, arrived, connected, first_came, flow_for, org, subscribed, until

pytestmark = pytest.mark.kafka
EVENT = "Headrace_Canary__e"
LABELS = {"connection": "acme", "channel": "/data/ChangeEvents"}


class Told:
    """What readiness was said to be, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[bool, str]] = []

    def ready(self, name: str, ok: bool, why: str = "") -> None:
        assert name == "subscription acme|/data/ChangeEvents"
        self.said.append((ok, why))


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(hold=1.0) as found:
        await found.call("POST", "objects", **{EVENT: {}})
        yield found


def canaries(outcome: str) -> float:
    return REGISTRY.get_sample_value("headrace_canaries_total", LABELS | {"outcome": outcome}) or 0.0


async def test_a_deaf_session_is_found_said_and_left_and_nothing_is_lost(settings: Settings, desk: Desk) -> None:
    told, missed, heard = Told(), canaries("missed"), canaries("heard")
    flow = flow_for(desk.url, canary={"event": EVENT, "every": "1s", "budget": "2s"})
    async with subscribed(settings, flow, health=told) as task:
        person = await first_came(settings, desk, task)

        async def sang() -> bool:
            return canaries("heard") > heard

        await until(sang, bool, task=task)
        await desk.fault("silent", variant="session")

        async def deaf() -> bool:
            await desk.update(person, "while deaf")  # the poll that is held now still brings one
            return canaries("missed") > missed

        await until(deaf, bool, task=task)
        wanted = await desk.published("Contact")
        await until(lambda: arrived(settings, "Contact"), lambda a: a == wanted, task=task)
        await until(lambda: _last(told), lambda said: said == (True, ""), task=task)
    assert any(not ok and "connected and deaf" in why for ok, why in told.said)
    assert {key for _, key in await arrived(settings, "Contact")} == {person}, "the canary itself is nobody's record"


async def _last(told: Told) -> tuple[bool, str]:
    return told.said[-1]


async def test_while_the_org_is_silent_to_all_it_stays_unready_and_loses_nothing(settings: Settings, desk: Desk) -> None:
    told = Told()
    flow = flow_for(desk.url, canary={"event": EVENT, "every": 1, "budget": 1})
    async with subscribed(settings, flow, health=told) as task:
        person = await first_came(settings, desk, task)
        await desk.fault("silent", variant="all")
        await desk.update(person, "unheard")
        await until(lambda: _last(told), lambda said: not said[0], task=task)
        handshakes = (await desk.state())["counts"]["handshakes"]
        await until(desk.state, lambda s: s["counts"]["handshakes"] > handshakes, task=task)
        assert not told.said[-1][0], "subscribed anew, but nothing was heard yet"
        assert REGISTRY.get_sample_value("headrace_subscription_up", LABELS) == 0
        assert REGISTRY.get_sample_value("headrace_canary_up", LABELS) == 0
        await desk.call("DELETE", "faults?name=silent")
        wanted = await desk.published("Contact")
        await until(lambda: arrived(settings, "Contact"), lambda a: a == wanted, task=task)
        await until(lambda: _last(told), lambda said: said[0], task=task)


async def made(desk: Desk) -> str:
    """A record that no route reads, to be touched."""
    values = {"LastName": "Canary", "Company": "Headrace"}
    return str((await desk.call("POST", "transaction", changes=[{"op": "create", "type": "Lead", "values": values}]))["ids"][0])


async def test_a_deaf_session_is_found_by_a_record_that_is_touched_and_heard_on_the_channel_itself(settings: Settings, desk: Desk) -> None:
    told, missed, heard, lead = Told(), canaries("missed"), canaries("heard"), await made(desk)
    flow = flow_for(desk.url, canary={"record": f"Lead/{lead}", "field": "Title", "every": "1s", "budget": "2s"})
    async with subscribed(settings, flow, health=told) as task:
        await connected(desk, task)

        async def sang() -> bool:
            return canaries("heard") > heard

        await until(sang, bool, task=task)
        person = await desk.create("Before")
        await until(lambda: arrived(settings, "Contact"), lambda a: len(a) == 1, task=task)
        await desk.fault("silent", variant="session")

        async def deaf() -> bool:
            await desk.update(person, "while deaf")
            return canaries("missed") > missed

        await until(deaf, bool, task=task)
        wanted = await desk.published("Contact")
        await until(lambda: arrived(settings, "Contact"), lambda a: a == wanted, task=task)
        await until(lambda: _last(told), lambda said: said == (True, ""), task=task)
    assert any(not ok and "Title of Lead/" in why and "Change Data Capture" in why for ok, why in told.said)


@pytest.mark.parametrize("how", ["record is gone", "no such event", "no calls left", "not to be read"])
async def test_what_cannot_be_published_proves_nothing(settings: Settings, desk: Desk, how: str) -> None:
    before = canaries("failed"), canaries("held"), canaries("missed")
    singing: dict[str, Any] = {"event": "Nobody_Defined__e" if how == "no such event" else EVENT}
    if how == "record is gone":
        singing = {"record": f"Lead/{(lead := await made(desk))}", "field": "Title"}
        await desk.call("POST", "transaction", changes=[{"op": "delete", "type": "Lead", "id": lead}])
    async with subscribed(settings, flow_for(desk.url, canary=singing | {"every": 1, "budget": 1})) as task:
        await connected(desk, task)
        if how == "no calls left":
            await desk.fault("daily-limit", variant="api")
        elif how == "not to be read":
            await desk.call("POST", "users", username=USERNAME, closed=[EVENT])
            await desk.fault("drop-connections", variant="held")

        async def tried() -> bool:
            return (canaries("failed"), canaries("held")) > before[:2]

        await until(tried, bool, task=task)
        person = await desk.create("Comes")
        await until(lambda: arrived(settings, "Contact"), lambda a: [key for _, key in a] == [person], task=task)
    published = (await desk.state())["published"].get(EVENT, 0)  # before the fault, where the machine is slow; and heard too late there
    assert canaries("missed") - before[2] <= published
