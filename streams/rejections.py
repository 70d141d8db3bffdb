"""The topic `rejections`: what targets refused, so that it is not tried again and again (agents/rules/takes.py says what follows from it).

All records stand in one partition, so they have one order. Each holds for an hour; the topic keeps them for a day, so it never has to be
cleaned. What cannot be read is nothing learned.
"""

from collections.abc import Iterable

import msgspec

from models.learned import HOLD_MS, Learned
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output
from streams.publish import send
from streams.topics import Topics


def output_of(topics: Topics, learned: Learned) -> Output:
    """The record that stores it."""
    return Output(topics.rejections, learned.key.encode(), msgspec.json.encode(learned), partition=0)


def forgotten(topics: Topics, learned: Learned) -> Output:
    """The record that ends it."""
    return Output(topics.rejections, learned.key.encode(), None, partition=0)


def learned_of(pairs: Iterable[tuple[bytes | None, bytes | None]], now: int) -> dict[str, Learned]:
    """By key what holds at epoch ms `now`."""
    found = {}
    for _, value in pairs:
        try:
            one = msgspec.json.decode(value or b"", type=Learned)
        except msgspec.MsgspecError:
            continue
        if now < one.at + HOLD_MS:
            found[one.key] = one
    return found


async def read_learned(settings: Settings, now: int) -> list[Learned]:
    """All that holds, the last refused first. Raises TemporaryError, FatalError (no such topic)."""
    last = await read_last(settings, Topics(settings.installation).rejections)
    return sorted(learned_of(((key, record.value) for key, record in last.items()), now).values(), key=lambda one: -one.at)


async def forget(settings: Settings, learned: Iterable[Learned]) -> None:
    """Try these again at once. Raises TemporaryError."""
    await send(settings, [forgotten(Topics(settings.installation), one) for one in learned])
