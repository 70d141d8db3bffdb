"""Calls to a target whose rate is limited: what several partitions have ready goes into one, and nobody answers for another's record."""

import asyncio
from collections.abc import Sequence

import pytest

from agents.calls import Calls
from agents.guard import Guard
from agents.targets.base import Effect
from models.errors import CodeError, PausedError, PermanentError, TemporaryError
from models.write import Outcome, WriteResult
from streams.engine.stage import Abandoned
from tests.support.effects import effect
from tests.support.memory import MemoryPartition
from tests.support.toy_target import Target, ToyOptions


class Slow(Target):
    """Two records a call, so many calls a second. A record named poison raises `error`; `gate`: calls wait for it."""

    batch_records = 4

    def __init__(self, rate: float = 50.0) -> None:
        super().__init__("toy", ToyOptions(), "t")
        self.requests_per_second: float | None = rate
        self.error: Exception = PermanentError("poison")
        self.gate, self.called = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def write(self, effects: Sequence[Effect]) -> list[WriteResult]:
        self.called.set()
        await self.gate.wait()
        results = await super().write(effects)
        if any(effect.key.startswith("poison") for effect in effects):
            raise self.error
        return results

    def keys(self) -> list[list[str]]:
        return [[effect.key for effect in batch] for batch in self.batches]


def effects(*keys: str) -> list[Effect]:
    return [effect("things", key, {"name": key}) for key in keys]


def calls(target: Target) -> Calls:
    return Calls("toy", target, dict, Guard("write", "toy", attempts=2, base=0.001, cap=0.002, probe_seconds=0.001), 5.0)


async def test_partitions_share_a_call_live_before_bulk_and_each_gets_its_own_results() -> None:
    target = Slow()
    target.answers = {"c": WriteResult(Outcome.UNCHANGED)}
    made = calls(target)
    given = [("a1", "a2", False), ("b1", "b2", False), ("c", "d", True)]
    answers = await asyncio.gather(
        *(made.write(effects(one, two), MemoryPartition(n), bytes=10, live=live) for n, (one, two, live) in enumerate(given))
    )
    assert target.keys() == [["c", "d", "a1", "a2"], ["b1", "b2"]]
    assert [[result.outcome for result in one] for one in answers] == [
        [Outcome.WRITTEN] * 2,
        [Outcome.WRITTEN] * 2,
        [Outcome.UNCHANGED, Outcome.WRITTEN],
    ]


async def test_a_call_holds_no_more_bytes_than_the_target_takes() -> None:
    target = Slow()
    made = calls(target)
    await asyncio.gather(*(made.write(effects(f"k{n}"), MemoryPartition(n), bytes=60_000) for n in range(3)))
    assert target.keys() == [["k0"], ["k1"], ["k2"]]


@pytest.mark.parametrize("error", [PermanentError("poison"), TemporaryError("poison", whole=False), KeyError("poison")])
async def test_only_the_partition_with_the_guilty_record_is_refused(error: Exception) -> None:
    target = Slow()
    target.error = error
    made = calls(target)
    tasks = [made.write(effects(key), MemoryPartition(n), bytes=10) for n, key in enumerate(("a", "poison", "b"))]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, list) for one in found] == [True, False, True]
    assert isinstance(found[1], CodeError if isinstance(error, KeyError) else type(error))
    assert target.keys()[:4] == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]


@pytest.mark.parametrize("error", [TemporaryError("away"), PausedError("revoked")])
async def test_a_target_that_is_away_is_waited_for_by_all_and_costs_no_call_each(error: Exception) -> None:
    target = Slow()
    target.errors = [error]
    made = calls(target)
    found = await asyncio.gather(*(made.write(effects(key), MemoryPartition(n), bytes=10) for n, key in enumerate("ab")))
    assert [len(one) for one in found] == [1, 1]
    assert target.keys()[0] == ["a", "b"]
    assert target.held.keys() == {"a", "b"}


async def test_a_partition_that_was_taken_away_or_cancelled_while_it_waited_is_not_in_the_call() -> None:
    target = Slow(rate=5.0)
    made = calls(target)
    await made.write(effects("first"), MemoryPartition(0), bytes=10)
    lost = MemoryPartition(1)
    gone, cancelled, kept = (
        asyncio.create_task(made.write(effects(key), partition, bytes=10))
        for key, partition in (("lost", lost), ("cancelled", MemoryPartition(2)), ("kept", MemoryPartition(3)))
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    lost.owned = False
    cancelled.cancel()
    assert len(await kept) == 1
    with pytest.raises(Abandoned):
        await gone
    assert target.keys() == [["first"], ["kept"]]


async def test_one_that_is_cancelled_during_a_call_takes_nothing_from_the_others() -> None:
    target = Slow()
    target.gate.clear()
    made = calls(target)
    cancelled, kept = (asyncio.create_task(made.write(effects(key), MemoryPartition(n), bytes=10)) for n, key in enumerate(("no", "yes")))
    await target.called.wait()
    cancelled.cancel()
    target.gate.set()
    assert len(await kept) == 1
    assert target.keys() == [["no", "yes"]]
    await made.close()


async def test_closing_gives_up_what_is_under_way() -> None:
    target = Slow()
    target.gate.clear()
    made = calls(target)
    waiting = asyncio.create_task(made.write(effects("a"), MemoryPartition(0), bytes=10))
    await target.called.wait()
    await made.close()
    assert not target.held
    waiting.cancel()
