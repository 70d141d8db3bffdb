"""Polling of parents whose changes no event tells: users, and objects that no channel carries. It hands on requests for children, no rows.

The cursor and the requests behind it are one Kafka transaction. Which values a parent had is kept in memory only: after a start the first
change of a parent reads its children, whatever changed.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

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


class ParentPolls:
    """Of one connection, by the process that leads the channel of the first source that has one; `source` is the leader's own first."""

    def __init__(self, context: Context, source: str) -> None:
        self._c, self._rest = context, context.rest
        self._topics = Topics(context.settings.installation)
        self._followed = Followed(context.connection, context.fields, self._topics)
        flow, config = context.flow, context.config
        first = next((s for s in flow.sobjects(context.connection) if s not in config.poll), "")
        mine = f"{context.connection}/{first}" == source
        self._parents = self._followed.polled(config, flow.channels(context.connection)) if mine else []
        self._publisher = TransactionalPublisher(context.settings, f"{context.settings.installation}.parents.{context.connection}")
        self._known: dict[str, bytes] = {}

    async def run(self) -> None:
        """For ever. Raises FatalError."""
        if not self._parents:
            return
        await retried(self._publisher.start, PURPOSE)  # fences first
        try:
            cursors = await retried(lambda: read_cursors(self._c.settings), PURPOSE)  # then reads
            while True:
                for parent in self._parents if not self._c.held() else ():
                    name = f"{self._c.connection}/{parent}/parents"
                    try:
                        cursors[name] = await self._round(parent, cursors.get(name) or await self._first(name))
                    except (TemporaryError, PausedError, PermanentError) as error:
                        log.warning("waiting", what="parents", source=name, reason=scrub(error.reason))
                await asyncio.sleep(EVERY)
        finally:
            await self._publisher.stop()

    async def _first(self, name: str) -> Cursor:
        here = await self._rest.here()
        return await self._store(Cursor(name, here.second + OVERLAP, org=here.org), [])  # what was before, a first snapshot reads

    async def _round(self, parent: str, at: Cursor) -> Cursor:
        """Everything that changed since the last one. Raises the four classes."""
        now, org, _ = await self._rest.here()
        if at.org != org:
            at = await self._first(at.source)
        fields = ["Id", *self._followed.parents[parent]]
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
            await self._store(moved, self._followed.requests(parent, self._followed.parents[parent], changed_ids))
        if len(self._known) > KNOWN:
            self._known.clear()
        self._known |= prints
        return moved

    async def _store(self, cursor: Cursor, outputs: Sequence[Output]) -> Cursor:
        await retried(lambda: self._publisher.send([*outputs, cursor.output(self._topics)]), PURPOSE)
        return cursor
