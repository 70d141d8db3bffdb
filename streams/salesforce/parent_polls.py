"""Polling of parents whose changes no event tells: users, objects that are polled or that no channel carries, and, while the org's event
allocation is used up, those that the channel carries. It hands on requests for children, no rows.

The cursor and the requests behind it are one Kafka transaction. Which values a parent had is kept in memory only: after a start the first
change of a parent reads its children, whatever changed.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import structlog

from models.errors import PausedError, PermanentError, TemporaryError
from models.record_id import id18
from models.scrub import scrub
from streams.engine.stage import Output
from streams.publish import TransactionalPublisher
from streams.salesforce.changed import changed, print_of, second_of_stamp
from streams.salesforce.context import Context
from streams.salesforce.cursors import Cursor, read_cursors
from streams.salesforce.renames import Followed
from streams.salesforce.retry import retried
from streams.topics import Topics

log = structlog.get_logger()

PURPOSE = "poll"
EVERY = 60.0
OVERLAP = 300
"""Seconds before the cursor that are read again: stamps are set before a transaction commits."""
KNOWN = 200_000
"""Values of so many parents are kept."""
MARGIN = 60
"""Seconds before a first start that count as after it: the org's clock is known to a second or two, and commits take their time."""
LOOK_SECONDS = 1.0
"""So often is looked whether somebody is to be asked for: a map may show another parent by now."""


class Ask(NamedTuple):
    """How often a parent is asked for, in seconds, and from which epoch second on: what was before others see to."""

    every: float
    since: int = 0


Asks = Mapping[str, Ask]


class ParentPolls:
    """Of who leads a channel, or what is polled. `asks`: the parents to ask for now, by name."""

    def __init__(self, context: Context, name: str, asks: Callable[[Followed], Asks]) -> None:
        self._c, self._rest = context, context.rest
        self._topics = Topics(context.settings.installation)
        self._followed = Followed(context.connection, context.fields, self._topics)
        self._asks = asks
        self._publisher = TransactionalPublisher(context.settings, f"{context.settings.installation}.parents.{name}")
        self._known: dict[str, bytes] = {}

    async def run(self) -> None:
        """For ever. Raises FatalError."""
        cursors: dict[str, Cursor] | None = None
        due: dict[str, float] = {}
        try:
            while True:
                asks = {} if self._c.held() else self._asks(self._followed)
                if asks and cursors is None:
                    await retried(self._publisher.start, PURPOSE)  # fences first
                    cursors = await retried(lambda: read_cursors(self._c.settings), PURPOSE)  # then reads
                for parent, ask in asks.items():
                    if cursors is None or time.monotonic() < due.get(parent, 0.0):
                        continue
                    due[parent] = time.monotonic() + ask.every
                    name = f"{self._c.connection}/{parent}/parents"
                    try:
                        at = cursors.get(name) or await self._first(name, ask.since)
                        cursors[name] = await self._round(parent, replace(at, second=max(at.second, ask.since + OVERLAP)))
                    except (TemporaryError, PausedError, PermanentError) as error:
                        log.warning("waiting", what="parents", source=name, reason=scrub(error.reason))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self._publisher.stop()

    async def _first(self, name: str, since: int = 0) -> Cursor:
        here = await self._rest.here()
        begin = since or here.second - MARGIN  # what was before, a first snapshot reads
        return await self._store(Cursor(name, begin + OVERLAP, org=here.org), [])

    async def _round(self, parent: str, at: Cursor) -> Cursor:
        """Everything that changed since the last one. Raises the four classes."""
        now, org, _ = await self._rest.here()
        if at.org != org:
            at = await self._first(at.source)
        fields = ["Id", *self._followed.parents.get(parent, ())]
        after: tuple[str, str] | None = None
        newest, changed_ids, prints = at.second, list[str](), dict[str, bytes]()
        while True:
            answer = await changed(self._rest, parent, fields, at.second - OVERLAP, after, PURPOSE)
            for row in answer.rows:
                name = id18(str(row.get("Id")))
                newest = max(newest, min(second_of_stamp(row.get("SystemModstamp")) or 0, now))
                prints[name] = print_of([row.get(field) for field in fields])
                if self._known.get(name) != prints[name]:
                    changed_ids.append(name)
            if len(answer.rows) < self._rest.page_size:
                break
            after = (str(answer.rows[-1]["SystemModstamp"]), str(answer.rows[-1]["Id"]))
        moved = replace(at, second=newest, now=now, at=int(time.time() * 1000))
        if changed_ids or newest > at.second:
            await self._store(moved, self._followed.of_ids(parent, changed_ids))
        if len(self._known) > KNOWN:
            self._known.clear()
        self._known |= prints
        return moved

    async def _store(self, cursor: Cursor, outputs: Sequence[Output]) -> Cursor:
        await retried(lambda: self._publisher.send([*outputs, cursor.output(self._topics)]), PURPOSE)
        return cursor
