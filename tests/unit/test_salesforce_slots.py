"""Calls under way at a time: never more than there are slots when one begins, however their number changes, and nobody waits for ever."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TemporaryError
from streams.salesforce import slots
from streams.salesforce.limits import AT_ONCE, CEILINGS, Budget, patience
from streams.salesforce.slots import Slots


@given(st.integers(1, 100), st.integers(1, 200))
def test_processes_divide_what_the_org_allows_and_none_is_left_without(most: int, processes: int) -> None:
    part = Budget("acme", at_once=most, processes=processes).slots
    assert 1 <= part <= AT_ONCE
    assert part * processes <= max(most, processes)
    assert part == AT_ONCE or (part + 1) * processes > most, "no more is left unused than cannot be divided"


def test_live_repair_goes_before_a_snapshot_before_verify() -> None:
    asked = ["describe", "fetch", "poll", "snapshot", "verify"]
    assert sorted([*CEILINGS, "describe"], key=patience) == sorted([*CEILINGS, "describe"], key=lambda p: -CEILINGS.get(p, 1.0))
    assert [patience(purpose) for purpose in asked] == sorted(patience(purpose) for purpose in asked)
    assert patience("describe") == 0 < patience("verify") < 60


class Scene:
    """Calls that begin and end as told; `begun` in the order in which they did."""

    def __init__(self, most: int) -> None:
        self.most, self.fails, self.readying = most, 0, False
        self.heard = 0
        self.slots = Slots(lambda: self.heard)
        self.begun: list[int] = []
        self.running: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def ready(self) -> None:
        assert not self.readying, "two at a time"
        self.readying = True
        try:
            await asyncio.sleep(0)
        finally:
            self.readying = False
        if self.fails:
            self.fails -= 1
            raise TemporaryError("Kafka is away")
        self.heard = self.most

    async def _call(self, number: int, patience: float) -> None:
        async with self.slots.slot(self.ready, patience):
            assert len(self.running) < self.most, "one call too many"
            self.begun.append(number)
            self.running[number] = ended = asyncio.Event()
            try:
                await ended.wait()
            finally:
                del self.running[number]

    def come(self, patience: float = 0.0) -> int:
        number = len(self.tasks)
        self.tasks[number] = asyncio.create_task(self._call(number, patience))
        return number

    async def settle(self) -> None:
        for _ in range(40):
            await asyncio.sleep(0)

    async def end_all(self) -> list[BaseException | None]:
        """Let everybody in and end, however long that takes in turns of the loop; what became of each."""
        for _ in range(20 * len(self.tasks) + 20):
            for ended in self.running.values():
                ended.set()
            await self.settle()
            if all(task.done() for task in self.tasks.values()):
                break
        assert all(task.done() for task in self.tasks.values()), "somebody waits for ever"
        return await asyncio.gather(*self.tasks.values(), return_exceptions=True)


ACT = st.one_of(
    st.tuples(st.just("come"), st.integers(1, 5)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("give up"), st.integers(0, 9)),
    st.tuples(st.just("most"), st.integers(1, 5)),
    st.tuples(st.just("fail"), st.integers(1, 2)),
    st.tuples(st.just("step"), st.integers(1, 20)),
)


@given(st.integers(1, 5), st.lists(ACT, max_size=60))
def test_whatever_comes_ends_shrinks_grows_and_is_given_up(most: int, acts: Sequence[tuple[str, int]]) -> None:
    async def play() -> None:
        scene = Scene(most)
        given_up = set()
        for act, number in acts:
            match act:
                case "come":
                    for _ in range(number):
                        scene.come(float(number))
                case "end" if scene.running:
                    list(scene.running.values())[number % len(scene.running)].set()
                case "give up" if scene.tasks:
                    last = len(scene.tasks) - 1 - number % len(scene.tasks)
                    if scene.tasks[last].cancel():
                        given_up.add(last)
                case "most":
                    scene.most = number
                case "fail":
                    scene.fails = number
                case "step":
                    for _ in range(number):
                        await asyncio.sleep(0)
        scene.fails = 0
        await scene.settle()
        waiting = [task for number, task in scene.tasks.items() if number not in scene.running and not task.done()]
        assert not waiting or len(scene.running) >= scene.most, "a slot is free, and somebody waits"
        for number, result in enumerate(await scene.end_all()):
            assert (
                result is None or isinstance(result, TemporaryError) or (isinstance(result, asyncio.CancelledError) and number in given_up)
            )
        assert scene.slots._used == 0 and not scene.slots._busy and not scene.slots._waiting

    with patch.object(slots, "ASK_SECONDS", 0.0):
        asyncio.run(play())


async def test_who_comes_first_goes_first_and_what_can_wait_lets_others_pass_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now))
    scene = Scene(1)
    scene.come()
    await scene.settle()
    scene.come()  # first in the line: it has the turn
    await scene.settle()
    verify = scene.come(15.0)
    for _ in range(3):
        scene.come(1.5)
    await scene.settle()
    now += 20.0
    late = scene.come(1.5)
    await scene.end_all()
    assert scene.begun == [0, 1, 3, 4, 5, verify, late]


async def test_what_fails_in_getting_ready_takes_no_slot_and_holds_up_nobody() -> None:
    scene = Scene(1)
    scene.fails = 2
    for _ in range(3):
        scene.come()
    await scene.settle()
    assert list(scene.running) == [2]
    results = await scene.end_all()
    assert [type(result) for result in results] == [TemporaryError, TemporaryError, type(None)]
