"""Between two bulk chunks the loop belongs to what is live, for a moment; nobody starves."""

import asyncio
from types import SimpleNamespace

import pytest

from streams.engine import turns
from streams.engine.turns import Turns


class Scene:
    """Bulk chunks that all want to be worked on, and what is live beside them; `order` says who got the loop."""

    def __init__(self) -> None:
        self.live = 0
        self.order: list[str] = []
        self.turns = Turns(lambda: self.live > 0)

    async def bulk(self, name: str, *, hurry: bool = False) -> None:
        await self.turns.bulk(lambda: hurry)
        self.order.append(name)

    async def change(self, name: str, steps: int) -> None:
        self.live += 1
        for _ in range(steps):
            await asyncio.sleep(0)
        self.live -= 1
        self.order.append(name)


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_live_chunk_of_many_steps_is_through_before_the_bulk_chunks_that_wait_with_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LIVE_SECONDS", 60.0)
    await asyncio.gather(*(scene.bulk(f"bulk {n}") for n in range(5)), scene.change("live", 200))
    assert scene.order == ["live", *(f"bulk {n}" for n in range(5))]


async def test_bulk_chunks_are_worked_on_though_something_live_never_ends(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LIVE_SECONDS", 0.005)
    scene.live = 1
    await asyncio.wait_for(asyncio.gather(*(scene.bulk(str(n)) for n in range(5))), 30)
    assert scene.order == ["0", "1", "2", "3", "4"]


async def test_after_a_bulk_chunk_that_took_long_live_work_has_half_as_long(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.0)
    clock = 1000.0
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: clock))
    scene.live = 1
    await scene.turns.bulk(lambda: False)
    clock += 6.0  # so long it kept the loop
    waiting = asyncio.create_task(scene.bulk("next"))
    for seconds, expected in ((2.9, []), (0.2, ["next"])):
        for _ in range(5):
            await asyncio.sleep(0)
        clock += seconds
        for _ in range(5):
            await asyncio.sleep(0)
        assert scene.order == expected
    await waiting


async def test_who_has_something_live_behind_it_does_not_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LIVE_SECONDS", 3600.0)
    scene.live = 1
    await asyncio.wait_for(scene.bulk("first", hurry=True), 30)


async def test_one_that_is_given_up_while_it_waits_holds_nobody_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LIVE_SECONDS", 3600.0)
    scene.live = 1
    waiting = asyncio.create_task(scene.bulk("given up"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    scene.live = 0
    await asyncio.wait_for(scene.bulk("next"), 30)
    assert scene.order == ["next"]
