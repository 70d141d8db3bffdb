"""Processes of one connection share the org's calls, of a day and under way: never more together, whoever starts, dies or waits."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.errors import TemporaryError
from models.settings import Settings
from streams.consume import read_all
from streams.publish import send
from streams.salesforce import leases
from streams.salesforce.auth import Login
from streams.salesforce.leases import Leases, read_leases
from streams.salesforce.limits import Budget, LimitReachedError
from streams.salesforce.rest import Rest
from streams.topics import Topics
from tests.support.salesforce import acme, flow_for, org, until

pytestmark = pytest.mark.kafka
MOST, SHARE = 400, 0.5


class Process:
    """One that calls as fast as it may, while the org counts."""

    made = 0

    def __init__(self, settings: Settings, *, most: int = MOST, connection: str = "acme", at_once: int = 25) -> None:
        self.budget = Budget(connection, SHARE, most=most, at_once=at_once)
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
    await until(lambda: read_leases(settings), lambda used: used["acme"].total() == 30)  # then it is gone, without a word
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


async def test_what_may_be_under_way_is_divided_among_those_that_live(
    settings: Settings, made: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HOLD_SECONDS", 0.0)  # each call asks anew
    made += [Process(settings, at_once=12) for _ in range(3)]

    async def parts(*processes: Process) -> list[int]:
        for process in processes:
            assert await process.call()
        return [process.budget.slots for process in processes]

    assert await parts(*made) == [5, 5, 4], "one that starts takes its part with its first call"
    assert await parts(*made) == [4, 4, 4]
    await made[2].leases.close()
    assert await parts(*made[:2]) == [5, 5], "one that ends gives its part back"
    await parts(*made)
    monkeypatch.setattr(leases, "END_SECONDS", 0.0)
    assert await parts(made[0]) == [5], "the others are gone, without a word"


async def test_a_long_call_is_counted_until_it_ends_though_its_lease_is_over(
    settings: Settings, made: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HOLD_SECONDS", 0.0)
    monkeypatch.setattr(leases, "END_SECONDS", 3.0)
    monkeypatch.setattr(leases, "REPORT_SECONDS", 0.1)
    made += [Process(settings, at_once=2) for _ in range(2)]
    assert await made[1].call()
    await made[0].leases.room()
    made[0].budget.admit("describe")
    later = (time.time() + 3.5) * 1000  # what it told at first is over by then
    await until(lambda: told(settings, made[0]), lambda at: max(at) > later)
    assert await made[1].call()
    assert made[1].budget.slots == 1
    made[0].budget.heard(None, ok=True)
    assert made[0].leases._report is not None
    await made[0].leases._report
    assert await made[1].call()
    assert made[1].budget.slots == 2


async def told(settings: Settings, process: Process) -> list[int]:
    """When that process told of itself, epoch ms."""
    records = await read_all(settings, Topics(settings.installation).limits)
    return [record.timestamp for record in records if record.key == process.leases._key]


async def test_an_org_has_no_more_calls_under_way_than_it_allows_all_processes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HOLD_SECONDS", 0.0)
    async with org() as desk:
        flow = flow_for(desk.url, at_once=4)
        config = acme(flow)
        processes = [Rest("acme", config, Login("acme", config, tmp_path / str(n)), settings) for n in range(3)]
        for _ in range(2):
            for process in processes:
                await process.count("Contact", "fetch")
        await desk.fault("slow", variant="rest", seconds=0.1, times=0)
        counts = desk.sandbox.org.counts
        counts["most rest under way"] = 0
        await asyncio.gather(*(process.count("Contact", "fetch") for process in processes for _ in range(5)))
        assert 1 < counts["most rest under way"] <= 3, "one each: a fourth cannot be divided"
        for process in processes[1:]:
            await process.close()
        await asyncio.gather(*(processes[0].count("Contact", "fetch") for _ in range(12)))
        assert counts["most rest under way"] == 4, "all that the org allows"
        await processes[0].close()


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"used": 1}', b'{"used": {"x": 1}, "lease": 0, "most": 0}', b'{"lease": -5}'])
async def test_what_is_damaged_there_says_nothing(settings: Settings, made: list[Process], value: bytes) -> None:
    process = Process(settings)
    made.append(process)
    from streams.engine.stage import Output

    part = process.leases._part.partition
    await send(settings, [Output(Topics(settings.installation).limits, b"acme|broken", value, partition=part)])
    assert await process.call()


async def test_while_kafka_is_away_no_call_is_made_on_trust(tmp_path: object) -> None:
    Process.made, process = 0, Process(Settings(kafka="127.0.0.1:1", installation="t-none"))
    with pytest.raises(TemporaryError):
        await process.call()
    await process.leases.close()
    assert Process.made == 0
