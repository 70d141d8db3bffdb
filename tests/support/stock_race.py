"""The loss cases, run: stock Faust (six processes) and our worker (two) side by side on one Kafka, since most of their time is waiting.

Every control batches what one process with Faust's defaults can lose; a case that needs a setting or a death of its own has a process of
its own. What differs from the defaults: commits every 0.3 s (2.8) and a session of 6 s (60), to be fast.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from streams.consume import read_all
from tests.support import stock_ours as ours
from tests.support.stock_lives import DEAD, Fate, Lives, lives
from tests.support.stock_plan import EVENTS, GUILTY, HEAD, REFUSES

DEFAULTS = ("L1", "L2", "L3", "L6", "L7", "L8", "L10", "L13", "L14")
ENVIRONMENT = {"PROCESSING_GUARANTEE": "exactly_once", "PRODUCER_THREADED": "1", "STREAM_WAIT_EMPTY": "0"}
"""What an operator's environment may say; ours runs under it, and under a BROKER_URL that names Faust's own transport."""
CRASH, KILLED = 70, -signal.SIGKILL


@dataclass(frozen=True)
class Told:
    """Fates by case (stock) or stage (ours); exit codes of our lives in order; what we had committed while something was held or refused;
    offsets of our dead letters by stage; and why a run could not be brought to its end, with the log of its process.
    """

    stock: dict[str, Fate]
    ours: dict[str, Fate]
    codes: list[list[int]]
    committed: dict[str, int]
    letters: dict[str, list[int]]
    errors: list[BaseException]


def run(kafka: str, folder: Path) -> Told:
    """Everything at once."""
    for name in ("defaults", "stopped", "crashed", "threaded", "deduped", "exactly-once", "raising", "holding"):
        (folder / name).mkdir()
    return asyncio.run(_race(kafka, folder))


async def _race(kafka: str, folder: Path) -> Told:
    told = Told({}, {}, [], {}, {}, [])

    async def control(one: Callable[[str, Path], Awaitable[dict[str, Fate]]]) -> None:
        told.stock.update(await one(kafka, folder))

    everyone = [control(one) for one in (defaults, stopped, crashed, threaded, deduped, exactly_once)]
    mine = [one(kafka, folder, told) for one in (raising, holding)]
    found = await asyncio.gather(*everyone, *mine, return_exceptions=True)
    told.errors.extend(error for error in found if error is not None)
    return told


async def defaults(kafka: str, folder: Path) -> dict[str, Fate]:
    """Killed when everything is committed."""
    async with _stock(kafka, folder / "defaults", *DEFAULTS) as one:
        await one.refuse("L10", REFUSES)
        await one.feed(0)
        await one.start()
        await one.reach(HEAD)
        await one.feed(1)
        await one.reach(EVENTS)
        await one.ends(signal.SIGKILL)
        return await one.fates()


async def stopped(kafka: str, folder: Path) -> dict[str, Fate]:
    """SIGTERM within a batch, and with outputs that are not sent."""
    async with _stock(kafka, folder / "stopped", "L5", "L9", stream_wait_empty=False) as one:
        await one.feed(0)
        await one.start()
        await one.reach(HEAD)
        await one.feed(1)
        await one.reach(EVENTS, "L9")
        await one.strikes("L5")
        await one.ends(signal.SIGTERM)
        return await one.fates()


async def crashed(kafka: str, folder: Path) -> dict[str, Fate]:
    """Ends by itself."""
    async with _stock(kafka, folder / "crashed", "L4") as one:
        await one.feed(0)
        await one.start()
        await one.ends()
        return await one.fates()


async def threaded(kafka: str, folder: Path) -> dict[str, Fate]:
    """Killed while the producer waits for more to send; without producer_threaded a commit waits for it."""
    async with _stock(kafka, folder / "threaded", "L11", producer_threaded=True, producer_linger=60.0) as one:
        await one.feed(0)
        await one.start()
        await one.reach(HEAD)
        await one.ends(signal.SIGKILL)
        return await one.fates()


async def deduped(kafka: str, folder: Path) -> dict[str, Fate]:
    """Kills itself between table and output; the next one takes the redelivery for a repetition."""
    async with _stock(kafka, folder / "deduped", "L12") as one:
        await one.feed(0)
        await one.start()
        await one.ends()
        await one.start()
        await one.reach(GUILTY + 1)
        await one.ends(signal.SIGKILL)
        return await one.fates()


async def exactly_once(kafka: str, folder: Path) -> dict[str, Fate]:
    """Kills itself between output and commit."""
    async with _stock(kafka, folder / "exactly-once", "L15", processing_guarantee="exactly_once") as one:
        await one.feed(0)
        await one.start()
        await one.ends()
        await one.start()
        await one.reach(HEAD)
        await one.ends(signal.SIGKILL)
        return await one.fates()


async def raising(kafka: str, folder: Path, told: Told) -> None:
    """Ours: an error out of the handler, twice; then death between state and output."""
    async with _ours(kafka, folder / "raising", ours.RAISES, ours.TOO_LARGE, ours.POISONED, ours.DEDUPES) as one:
        for half in (0, 1):
            await one.feed(half, ours.RAISES, ours.TOO_LARGE, ours.POISONED)
        await one.start()
        await one.ends()
        await one.start()
        await one.ends()
        for half in (0, 1):
            await one.feed(half, ours.DEDUPES)
        await one.start()
        await one.ends()
        await one.start()
        await one.reach(EVENTS)
        await _tell(one, told)


async def holding(kafka: str, folder: Path, told: Told) -> None:
    """Ours: Kafka refuses an output; then SIGTERM while handlers are held, after all the others are done."""
    async with _ours(kafka, folder / "holding", ours.HOLDS, ours.HOLES, ours.REFUSED) as one:
        (held := folder / "holding" / ours.HELD).touch()
        await one.refuse(ours.REFUSED, REFUSES)
        for half in (0, 1):
            await one.feed(half)
        await one.start()
        await one.ends()
        told.committed[ours.REFUSED] = (await one.committed()).get(ours.REFUSED, 0)
        await one.refuse(ours.REFUSED, 1_000_000)
        before = one.plan.struck(ours.HELD)
        await one.start()
        await one.reach(EVENTS, ours.REFUSED)
        await one.strikes(ours.HELD, before + 2)
        await one.ends(signal.SIGTERM)
        held.unlink()
        told.committed.update({case: at for case, at in (await one.committed()).items() if case != ours.REFUSED})
        await one.start()
        await one.reach(EVENTS)
        await _tell(one, told)


async def _tell(one: Lives, told: Told) -> None:
    """At the end of ours."""
    await one.ends(signal.SIGTERM)
    told.codes.append(one.codes)
    told.ours.update(await one.fates())
    for record in await read_all(one.settings, f"{one.plan.name}.{DEAD}"):
        letter = orjson.loads(record.value or b"")
        told.letters.setdefault(letter["stage"], []).append(letter["offset"])


@asynccontextmanager
async def _stock(kafka: str, folder: Path, *cases: str, **settings: object) -> AsyncIterator[Lives]:
    async with lives(kafka, folder, cases, "tests.support.stock_worker", settings, {}) as one:
        yield one


@asynccontextmanager
async def _ours(kafka: str, folder: Path, *stages: str) -> AsyncIterator[Lives]:
    async with lives(kafka, folder, stages, ours.__name__, {}, {**ENVIRONMENT, "BROKER_URL": f"kafka://{kafka}"}) as one:
        yield one
