"""The limits guard over real HTTP: no call is made beyond a limit, and the day's end is waited for by everybody."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from models.flow import Salesforce
from streams import metrics
from streams.salesforce.auth import Login
from streams.salesforce.limits import DAILY_CALLS, LimitReachedError, Step
from streams.salesforce.rest import Answer, Rest
from tests.support.salesforce import Desk, org


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        yield found


def rest(desk: Desk, share: float = 1.0) -> tuple[Rest, Login]:
    auth = {"flow": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    config = Salesforce.model_validate({"type": "salesforce", "url": desk.url, "auth": auth, "api_share": share})
    login = Login("acme", config)
    return Rest("acme", config, login), login


async def spend(client: Rest, purpose: str, calls: int) -> int:
    """How many of so many calls, side by side, were made."""
    done = await asyncio.gather(*(client.count("Contact", purpose) for _ in range(calls)), return_exceptions=True)
    assert all(isinstance(one, Answer | LimitReachedError) for one in done), done
    return sum(isinstance(one, Answer) for one in done)


async def test_floods_of_every_purpose_end_below_the_orgs_limit_and_live_calls_are_left(desk: Desk) -> None:
    await desk.call("POST", "settings", daily_requests=100)
    client, login = rest(desk)
    other, _ = rest(desk)
    await client.limits()
    made = {purpose: await spend(client, purpose, 60) + await spend(other, purpose, 60) for purpose in ("verify", "snapshot", "fetch")}
    assert list(made.values()) == [49, 20, 25]  # half, seven and nine and a half tenths of a hundred, less the look
    assert login.budget.step == Step.STOP
    assert metrics.LIMIT_LEFT.labels("acme", DAILY_CALLS)._value.get() == login.budget.left == 5
    assert metrics.API_HELD.labels("acme", "verify")._value.get() >= 71
    assert not [purpose for purpose in made if metrics.API_CALLS.labels("acme", purpose, "limit")._value.get()]
    assert await client.describe("Contact")


async def test_a_share_of_the_day_is_kept_by_all_clients_of_the_process(desk: Desk) -> None:
    await desk.call("POST", "settings", daily_requests=100)
    clients = [rest(desk, 0.2)[0] for _ in range(3)]
    await clients[0].limits()
    assert (
        sum(await asyncio.gather(*(spend(client, "fetch", 30) for client in clients))) == 18
    )  # of twenty, less one in twenty and the look
    assert (await clients[0].limits())[DAILY_CALLS]["Remaining"] == 100 - 20


async def test_after_salesforces_own_refusal_nobody_asks_again(desk: Desk) -> None:
    client, login = rest(desk)
    await desk.fault("rest-limit")
    for _ in range(5):
        with pytest.raises(LimitReachedError) as refused:
            await client.count("Contact", "fetch")
        assert refused.value.retry_after
    assert client.calls["fetch"] == 1
    assert login.budget.step == Step.STOP


async def test_a_day_that_is_used_up_stops_every_purpose_and_is_told_from_lost_rights(desk: Desk) -> None:
    client, _ = rest(desk)
    await client.limits()
    await desk.fault("daily-limit", variant="api")
    for purpose in ("verify", "fetch", "repair"):
        with pytest.raises(LimitReachedError):
            await client.count("Contact", purpose)
    assert (await desk.state())["counts"]["refused by DailyApiRequests"] == 1
