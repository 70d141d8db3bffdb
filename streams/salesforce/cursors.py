"""How far each polled source was read: the compacted topic `cursors`, written in the transaction of the rows themselves."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from models.errors import FatalError
from models.settings import Settings
from streams.consume import read_last
from streams.engine.stage import Output
from streams.topics import Topics

SLACK_SECONDS = 30
"""Differences of two clocks that mean nothing: servers of one org differ, answers take time."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Value of a record of the cursors topic; its key is `source`.

    source    "<connection>/<sObject>"
    second    everything that was visible with a SystemModstamp up to here is in Kafka (epoch s, by the org's stamps)
    full      run id of the full reading that comes first; "" once it is done
    deleted   the org was asked up to here which records were deleted, purged ones among them (epoch s)
    org       first 15 characters of the org's id: in another one it says nothing
    now       the org's clock (epoch s) at the last answer, and at: ours (epoch ms)
    """

    source: str
    second: int
    full: str = ""
    deleted: int = 0
    org: str = ""
    now: int = 0
    at: int = 0

    def output(self, topics: Topics) -> Output:
        """The record that stores it."""
        return Output(topics.cursors, self.source.encode(), orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS))

    def turned_back(self, now: int, at: int) -> int:
        """By how many seconds the org's clock, which says `now` at `at` (epoch ms, ours), was turned back since this was written."""
        if not self.now:
            return 0
        passed = max(0, at - self.at) // 1000
        back = self.now + passed - now
        return back if back > SLACK_SECONDS else 0


def parse_cursor(key: bytes | None, value: bytes) -> Cursor:
    """Raises FatalError: a cursor that cannot be read must not be guessed."""
    try:
        found: dict[str, Any] = orjson.loads(value)
        cursor = Cursor(**{name: found[name] for name in Cursor.__dataclass_fields__ if name in found})
        if not all(isinstance(n, int) for n in (cursor.second, cursor.deleted, cursor.now, cursor.at)):
            raise TypeError("second, deleted, now and at are whole numbers")
        return cursor
    except (ValueError, TypeError, AttributeError) as error:
        raise FatalError(f"the cursor {key!r} is damaged ({error}): delete its record, and the source is read anew") from None


async def read_cursors(settings: Settings) -> dict[str, Cursor]:
    """All stored cursors by source. Raises TemporaryError, FatalError."""
    last = await read_last(settings, Topics(settings.installation).cursors)
    return {(key or b"").decode(errors="replace"): parse_cursor(key, record.value or b"") for key, record in last.items()}
