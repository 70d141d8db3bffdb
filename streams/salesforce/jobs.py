"""A snapshot run read by Bulk jobs: makes the job, waits for it, hands its rows on chunk by chunk, with where the run is after each.

Id and locator of the job are in the run's state, so whoever goes on with the run goes on with the job. Before one is made its time is
there: what a crash, or a reply that never came, left in Salesforce under no run's name is found by that, and deleted. A job that cannot be
read to its end is made anew, and everything is read again: its rows come in no order, so nothing else tells which are missing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from models.errors import PausedError, PermanentError, TemporaryError
from streams.salesforce.bulk import Bulk, JobLostError, JobsUsedUpError, Part
from streams.salesforce.columns import Encode, encoder, kinds_of
from streams.salesforce.keeper import Keeper
from streams.salesforce.positions import Durable
from streams.salesforce.rest import Rest
from streams.salesforce.retry import ended
from streams.salesforce.runs import Run

log = structlog.get_logger()

CHUNK = 5_000
"""Rows of a result in one transaction: a few MB."""
TRIES = 3
"""Jobs lost one after another before REST takes over, or the run fails."""
LOOK, LOOK_CAP = 0.5, 20.0
"""Seconds between two looks at a job: first, and at most."""

Pair = tuple[bytes, bytes]
Commit = Callable[[Run, Sequence[Pair], Durable, bool], Awaitable[None]]
"""Of the run after the rows, the rows (key, JSON), where the channel stood, and whether they are the last."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is selected; `where` is checked SOQL, "" for all; `deleted`: those in the recycle bin too."""

    sobject: str
    fields: Sequence[str]
    where: str
    deleted: bool


class JobReader:
    """Reads one run."""

    def __init__(
        self, rest: Rest, bulk: Bulk, keeper: Keeper, query: Query, durable: Callable[[], Awaitable[Durable]], commit: Commit
    ) -> None:
        self._rest, self._bulk, self._keeper, self._query = rest, bulk, keeper, query
        self._durable, self._commit = durable, commit

    async def run(self) -> bool:
        """To the end: True; False when Bulk cannot and REST has to begin. Raises PermanentError where only Bulk was asked for."""
        k, query = self._keeper, self._query
        kinds = await k.read(lambda: kinds_of(query.sobject, query.fields, self._rest.describe))
        while k.at.open:
            try:
                if not k.at.job:
                    await self._make()
                await self._completed()
                while k.at.open:
                    await k.read(lambda: self._part(kinds))
            except (JobLostError, _UnfitError) as error:
                lost = isinstance(error, JobLostError) and k.at.tries < TRIES
                log.warning("bulk job lost", run=k.at.run, job=k.at.job, tries=k.at.tries, reason=error.reason)
                await drop(self._bulk, k.at.job)
                if not lost and k.at.via == "bulk":
                    raise PermanentError(f"no Bulk job could be read to its end: {error.reason}") from None
                why = "" if lost else f"read by REST: {error.reason}"
                await k.keep(replace(k.at.anew(), tries=k.at.tries + 1, way="bulk" if lost else "rest", why=why))
                if not lost:
                    return False
        return True

    async def _make(self) -> None:
        k, query = self._keeper, self._query
        only = f" WHERE {query.where}" if query.where else ""
        soql = f"SELECT {','.join(query.fields)} FROM {query.sobject}{only}"  # noqa: S608

        async def make() -> Run:
            await self._drop_orphans()
            durable = await self._durable()
            await k.keep(replace(k.at, making=(await self._rest.here()).second))
            try:
                job = (await self._bulk.make(soql, deleted=query.deleted)).id
            except JobsUsedUpError as error:
                if k.at.via == "bulk":
                    await k.note("held: Salesforce's Bulk jobs of the day are used up")
                    raise
                raise _UnfitError(error.reason) from None
            except PermanentError as error:
                raise _UnfitError(error.reason) from None
            return replace(k.at, job=job, making=0, channel=durable.channel, epoch=durable.epoch, began=durable.position)

        await k.keep(await k.read(make))
        log.info("bulk job", run=k.at.run, source=k.at.source, job=k.at.job)

    async def _drop_orphans(self) -> None:
        """A job that was made for this run, and whose id nobody could keep. (Of two runs of one sObject that begin within minutes one may
        lose its job to this, and makes it anew.)
        """
        at, query = self._keeper.at, self._query
        if at.making and (found := await self._bulk.made(query.sobject, at.making, deleted=query.deleted)):
            for id in found - await self._keeper.jobs():
                log.info("bulk job that nobody kept", run=at.run, job=id)
                await drop(self._bulk, id)

    async def _completed(self) -> None:
        """Until the job is complete."""
        k, wait = self._keeper, LOOK
        while (job := await k.read(lambda: self._bulk.look(k.at.job))).state != "JobComplete":
            if job.state == "Failed":
                raise JobLostError(f"Salesforce's job {job.id} failed: {job.why or 'it does not say why'}")
            if job.state == "Aborted":
                raise PermanentError(f"somebody aborted job {job.id} in Salesforce: the snapshot ends")
            await k.gate()
            await k.note(f"Salesforce works on job {job.id}")
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, LOOK_CAP)

    async def _part(self, kinds: dict[str, str]) -> None:
        """One part of the result, but for what of it is in Kafka; rows are taken while those before go into Kafka."""
        k = self._keeper
        part = await self._bulk.part(k.at.job, k.at.locator)
        coming: asyncio.Task[list[tuple[bytes, bytes]]] | None = None
        try:
            encode, durable = encoder(self._query.sobject, part.header, kinds), Durable(k.at.channel, k.at.epoch, k.at.began)
            await asyncio.to_thread(part.read, min(k.at.taken, part.number))
            while True:
                pairs = await (coming or asyncio.to_thread(_lines, part, encode))
                done = part.done
                coming = None if done else asyncio.create_task(asyncio.to_thread(_lines, part, encode))
                await k.gate()
                at = replace(k.at, rows=k.at.rows + len(pairs), taken=k.at.taken + len(pairs), tries=0)
                if done:
                    at = replace(at, locator=part.locator, taken=at.taken - part.number)  # above 0: this part was smaller than before
                await self._commit(at, pairs, durable, done and not part.locator)
                if done:
                    return
        finally:
            part.close()
            if coming is not None:
                await ended(coming)


class _UnfitError(PermanentError):
    """Bulk cannot run this query, or not today."""


def _lines(part: Part, encode: Encode) -> list[Pair]:
    return [encode(line) for line in part.read(CHUNK)]


async def drop(bulk: Bulk, job: str) -> None:
    """Delete it, so that it is nobody's burden; where that cannot be, Salesforce does after seven days."""
    if job:
        with suppress(TemporaryError, PausedError, PermanentError, TimeoutError):
            async with asyncio.timeout(20.0):
                await bulk.drop(job)
