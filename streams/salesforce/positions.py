"""Where each channel stands: the compacted topic `positions`, its reader and what is written to it.

The only writer is the subscriber that leads the channel, in the transaction of the events themselves; of a channel of which everything is
polled, who leads the polling, for the epoch. A position that was read here is durable: its events are in Kafka. Positions are Salesforce's
replay ids, never computed, only received.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import orjson

from models.change_event import FIRST_EPOCH, Place
from models.errors import FatalError
from models.flow import Salesforce
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output
from streams.follow import Followed
from streams.topics import Topics

Start = Literal["new", "retained"]


@dataclass(frozen=True, slots=True)
class Position:
    """Value of a record of the positions topic.

    epoch       rises when positions start anew; from 1
    position    last replay id whose events are in Kafka; None until there was one
    second      highest commit second seen in this epoch
    org         first 15 characters of the org's id; instance: its address
    started     epoch ms of the first start, by Salesforce's clock; start: how it began
    proven      epoch s, by Salesforce's clock, at which the user was last shown to see all that routes read; 0: never
    user        id of the user who was shown to
    refused     Salesforce refused the position: the next subscription is at -2
    at          epoch ms of writing
    """

    epoch: int
    position: int | None
    second: int | None
    org: str
    instance: str
    started: int
    start: Start
    proven: int = 0
    user: str = ""
    refused: bool = False
    at: int = 0

    @property
    def place(self) -> Place:
        """As the epoch's rule takes it."""
        return Place(self.epoch, self.position, self.second, self.org, self.instance)

    def value(self) -> bytes:
        """As kept in Kafka; `start` is called "from" there."""
        fields = asdict(self)
        fields["from"] = fields.pop("start")
        fields["at"] = int(time.time() * 1000)
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def parse(cls, key: str, raw: bytes) -> "Position":
        """Raises FatalError: a damaged position must be looked at by a person."""
        try:
            found = orjson.loads(raw)
            start: Start = "retained" if found.pop("from") == "retained" else "new"
            whole = {n: found.get(n) for n in ("position", "second")}
            if not all(v is None or isinstance(v, int) for v in whole.values()):
                raise TypeError("position and second are whole numbers")
            return cls(
                epoch=int(found["epoch"]),
                **whole,
                org=str(found.get("org", "")),
                instance=str(found.get("instance", "")),
                started=int(found["started"]),
                start=start,
                proven=int(found.get("proven", 0)),
                user=str(found.get("user", "")),
                refused=bool(found.get("refused", False)),
                at=int(found.get("at", 0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FatalError(
                f"the stored position of {key} is damaged ({type(error).__name__}: {error}); write a good one or delete it"
            ) from None

    def moved(self, event: int, second: int) -> "Position":
        """After an event of the same epoch. The second is the highest seen: commits of neighbours may differ by one."""
        return replace(self, position=event, second=max(second, self.second or second), refused=False)

    def risen(self, event: int | None, second: int | None) -> "Position":
        """A new epoch, beginning at this event, or before any."""
        return replace(self, epoch=self.epoch + 1, position=event, second=second, refused=False)


class Durable(NamedTuple):
    """What a row that is read now carries: `position` -1 where none is stored."""

    channel: str
    epoch: int
    position: int


def position_key(connection: str, channel: str) -> str:
    """Key in the positions topic."""
    return f"{connection}|{channel}"


def output(topics: Topics, connection: str, channel: str, position: Position) -> Output:
    """The record that stores a position."""
    return Output(topics.positions, position_key(connection, channel).encode(), position.value())


async def read_positions(settings: Settings) -> dict[str, Position]:
    """All stored positions by key, as committed now. Raises TemporaryError, FatalError."""
    last = await read_last(settings, Topics(settings.installation).positions)
    named = {(key or b"").decode(errors="replace"): record.value or b"" for key, record in last.items()}
    return {key: Position.parse(key, value) for key, value in named.items()}


class Positions:
    """Follows the positions topic, for readers of rows. Started by the first question."""

    def __init__(self, settings: Settings) -> None:
        self._followed = Followed(settings, Topics(settings.installation).positions)

    async def durable(self, connection: str, config: Salesforce, sobject: str) -> Durable:
        """The position committed when this was called: read it before the row. Raises TemporaryError when Kafka is away, FatalError."""
        channel = config.channel_of(sobject)
        if (found := await self.stored(connection, channel)) is None:
            return Durable(channel, FIRST_EPOCH, -1)
        return Durable(channel, found.epoch, -1 if found.position is None else found.position)

    async def stored(self, connection: str, channel: str) -> Position | None:
        """The whole of it; None where none is stored. Raises TemporaryError when Kafka is away, FatalError."""
        key = position_key(connection, channel)
        raw = await self._followed.get(key)
        return None if raw is None else Position.parse(key, raw)

    async def stop(self) -> None:
        """Close."""
        await self._followed.stop()
