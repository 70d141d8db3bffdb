"""Processes of one connection share the org's calls: never more than api_share together, whoever starts, dies or waits."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from models.errors import TemporaryError
from models.settings import Settings
from streams.publish import Publisher
from streams.salesforce import leases
from streams.salesforce.leases import Leases, read_leases
from streams.salesforce.limits import Budget, LimitReachedError
from streams.topics import Topics

pytestmark = pytest.mark.kafka
MOST, SHARE = 400, 0.5


class Process:
    """One that calls as fast as it may, while the org counts."""

    made = 0

    def __init__(self, settings: Settings, *, most: int = MOST, connection: str = "acme") -> None:
        self.budget = Budget(connection, SHARE, most=most)
        self.leases = Leases(settings, connection, self.budget)

    async def call(self, purpose: str = "describe") -> bool:
        """Whether one was let through."""
        await self.leases.room()
        try:
            self.budget.admit(purpose)
        except LimitReachedError:
            return False
        Process.made += 1
        await asyncio.sleep(0)
        self.budget.heard(f"api-usage={Process.made}/{MOST}", ok=True)
        return True

    async def calls(self, number: int, purpose: str = "describe") -> int:
        """How many of so many."""
        return sum([await self.call(purpose) for _ in range(number)])


@pytest.fixture
async def made() -> AsyncIterator[list[Process]]:
    Process.made = 0
    found: list[Process] = []
    yield found
    for process in found:
        await process.leases.close()


async def test_side_by_side_they_use_the_share_and_not_one_call_more(
    settings: Settings, made: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "AGAIN_SECONDS", 0.0)
    made += [Process(settings) for _ in range(3)]
    done = await asyncio.gather(*(process.calls(100) for process in made))
    assert sum(done) <= MOST * SHARE
    for process in made[1:]:  # what they hold and do not use goes back
        await process.leases.close()
    done.append(await made[0].calls(200))
    assert sum(done) == MOST * SHARE
    made += [Process(settings, most=0)]
    assert not await made[-1].call(), "a process that starts knows what was used, before it has heard anything of the org"
    used = await read_leases(settings)
    assert used["acme"].total() == MOST * SHARE


async def test_purposes_step_back_for_what_all_processes_used(settings: Settings, made: list[Process]) -> None:
    made += [Process(settings) for _ in range(2)]
    assert await made[0].calls(105) == 105
    await made[0].leases.close()
    assert await made[1].calls(3, "verify") == 0, "half of the share is used, though not by this process"
    assert await made[1].calls(3, "poll") == 3
    other = Process(settings, connection="other")
    made.append(other)
    assert await other.calls(3, "verify") == 3, "another connection has a share of its own"


async def test_a_dead_process_s_lease_ends_and_what_it_used_stays_counted(
    settings: Settings, made: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEAST", 150)
    monkeypatch.setattr(leases, "MOST_OF", 1.0)
    monkeypatch.setattr(leases, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "AGAIN_SECONDS", 0.0)
    made += [Process(settings) for _ in range(2)]
    assert await made[0].calls(30) == 30
    await asyncio.sleep(0.5)  # it has told of them; then it is gone, without a word
    assert await made[1].calls(60) == 50, "the rest is held by the first"
    monkeypatch.setattr(leases, "END_SECONDS", 0.0)
    assert await made[1].calls(200) == 120
    assert Process.made == MOST * SHARE


async def test_one_that_was_suspended_asks_anew(settings: Settings, made: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HOLD_SECONDS", 0.0)  # each time it comes to itself its lease is over
    monkeypatch.setattr(leases, "AGAIN_SECONDS", 0.0)
    made += [Process(settings) for _ in range(2)]
    chance = random.Random(3)
    done = sum([await chance.choice(made).call() for _ in range(230)])
    assert MOST * SHARE - 2 * leases.LEAST <= done <= MOST * SHARE


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"used": 1}', b'{"used": {"x": 1}, "lease": 0, "most": 0}', b'{"lease": -5}'])
async def test_what_is_damaged_there_says_nothing(settings: Settings, made: list[Process], value: bytes) -> None:
    publisher, process = Publisher(settings), Process(settings)
    made.append(process)
    from streams.engine.stage import Output

    part = process.leases._part.partition
    await publisher.send([Output(Topics(settings.installation).limits, b"acme|broken", value, partition=part)])
    await publisher.stop()
    assert await process.call()


async def test_while_kafka_is_away_no_call_is_made_on_trust(tmp_path: object) -> None:
    Process.made, process = 0, Process(Settings(kafka="127.0.0.1:1", installation="t-none"))
    with pytest.raises(TemporaryError):
        await process.call()
    await process.leases.close()
    assert Process.made == 0
