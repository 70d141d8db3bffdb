"""One channel: its events into Kafka, with the position after them, in one transaction.

One process leads a channel (leader.py); it fences its predecessor, then reads the position, then subscribes from it. Whatever breaks on
the wire, a new session begins at the stored position: nothing comes twice, nothing is left out. What Salesforce itself leaves out (gap,
overflow, a refused position) is an incident, stored with the position that passes it, which repair.py reads again.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from models.change_event import FIRST_EPOCH
from models.errors import PausedError, SettingsError, TemporaryError
from models.flow import is_event
from models.scrub import scrub
from streams import metrics
from streams.engine.stage import Output
from streams.publish import TransactionalPublisher
from streams.salesforce import cometd
from streams.salesforce.allocation import Allocation
from streams.salesforce.beside import Beside
from streams.salesforce.canary import Canary
from streams.salesforce.cometd import AllocationUsedError, PositionRefusedError, Session, SessionLostError
from streams.salesforce.context import Context
from streams.salesforce.cursors import read_cursors
from streams.salesforce.incidents import Cause, Incident
from streams.salesforce.leader import Leadership
from streams.salesforce.messages import BUFFER_SECONDS, Intake, Plan, parts
from streams.salesforce.oauth import Token
from streams.salesforce.positions import Position, output, position_key, read_positions
from streams.salesforce.renames import Followed
from streams.salesforce.retry import Backoff, retried
from streams.salesforce.runs import first_runs
from streams.salesforce.starts import above, first, left_behind
from streams.topics import Topics

log = structlog.get_logger()

EVENTS = 500
"""Messages of one transaction: after -2 a reply can be long."""
GRACE_SECONDS = 60
"""A commit so much before the first start still counts as after it: clocks and slow commits."""
SOUND_SECONDS = 20.0
"""A session that lived so long says nothing about the next: the backoff starts anew."""
UNROUTED = "(no route)"
HELD_SECONDS = 1.0


class Channel:
    """One channel in this process: waits for its turn to lead, then leads until it loses it."""

    def __init__(self, context: Context, channel: str) -> None:
        self._c, self._channel = context, channel
        self._key = position_key(context.connection, channel)
        self._topics = Topics(context.settings.installation)
        self._labels = (context.connection, channel)
        c = context
        mine = [s for s in c.flow.read_from(c.connection) if s not in c.config.poll and c.config.channel_of(s) == channel]
        self._sources = [f"{c.connection}/{s}" for s in mine if not is_event(s)]
        self._events = [f"{c.connection}/{s}" for s in mine if is_event(s)]
        self._routed = mine
        name = f"{context.connection}.{channel.strip('/').replace('/', '.')}"
        self._leadership = Leadership(context.settings, name, self._key)
        self._name = name
        self._publisher = TransactionalPublisher(context.settings, f"{context.settings.installation}.subscribe.{name}")
        self._backoff = Backoff(pause=context.backoff.pause)
        self._intake: Intake | None = None
        canary = context.config.canary
        self._canary: Canary | None = None
        if canary is not None and (canary.event or context.config.brings(channel, canary.sobject)):
            self._canary = Canary(canary, context.rest, self._labels, self._well)
        self._session_now: Session | None = None
        self._followed = Followed(c.connection, c.fields, self._topics)
        self._allocation = Allocation(context, name, self._sources, self._send, self._children)
        self._beside: Beside | None = None
        self._begun = False

    async def run(self) -> None:
        """Never returns; raises FatalError, SettingsError."""
        for gauge in (metrics.LEADING, metrics.SUBSCRIBED):
            gauge.labels(*self._labels).set(0)
        await self._leadership.whenever_mine(lambda: self._lead(), lambda: self._say(True, "standby"))

    async def _lead(self) -> None:
        metrics.LEADING.labels(*self._labels).set(1)
        self._publisher = TransactionalPublisher(self._c.settings, self._publisher.id)
        try:
            await retried(self._publisher.start, f"producer of {self._key}")  # fences first
            position = await self._place()  # then reads
            self._intake = Intake(self._c.connection, self._channel, self._topics, self._routed, position, self._followed.of_event)
            await self._allocation.recall(position)
            while True:  # then subscribes
                await self._while_held()
                await self._session_until_lost(self._intake)
        finally:
            metrics.LEADING.labels(*self._labels).set(0)
            self._pause(False)
            await self._allocation.stop()
            if self._beside is not None:
                await self._beside.stop()
                self._beside = None
            await self._publisher.stop()

    async def _while_held(self) -> None:
        """Wait as long as people pause the connection: the position stays where it is, and no alert takes that for a fault."""
        while why := self._c.held():
            self._say(True, why)
            for gauge in (metrics.SUBSCRIBED, metrics.LAST_ANSWER):
                gauge.remove(*self._labels)
            await asyncio.sleep(HELD_SECONDS)

    async def _place(self) -> Position:
        """Where it goes on, or begins. Raises FatalError, SettingsError."""
        stored = await retried(lambda: read_positions(self._c.settings), "positions")
        left = left_behind(stored, self._c.connection, self._c.flow.channels(self._c.connection))
        if (at := stored.get(self._key)) is None:
            return await self._first_start(left)
        if (position := above(at, left)) != at:
            await self._send([output(self._topics, *self._labels, position)])
        return position

    async def _first_start(self, left: Sequence[Position]) -> Position:
        """Store when this began, and the snapshots it asks for, before anything is subscribed."""
        start = self._c.start_from
        if start is None:
            raise SettingsError(f"no position is stored for {self._key}: say `--from new` or `--from retained`")
        token = await self._token()
        began = int((time.time() + token.skew) * 1000)
        position = Position(FIRST_EPOCH, None, None, token.org, token.instance_url, began, start)
        cursors = await retried(lambda: read_cursors(self._c.settings), "cursors")
        position, incidents = first(self._key, position, self._sources, left, cursors)
        fresh = [s for s in self._sources if s not in {i.source for i in incidents}] if self._c.snapshot else []  # else a repair reads it
        runs = first_runs({f"first-{source.replace('/', '-')}-{began}": source for source in fresh})
        await self._send(
            [
                output(self._topics, *self._labels, position),
                *(r.output(self._topics) for r in runs),
                *(i.output(self._topics) for i in incidents),
            ]
        )
        self._opened(incidents)
        self._begun = True
        log.info("first start", connection=self._c.connection, channel=self._channel, start=start)
        return position

    async def _session_until_lost(self, intake: Intake) -> None:
        """One session, and what its end asks for. Raises FatalError, SettingsError."""
        began = time.monotonic()
        try:
            await self._session(intake)
        except PositionRefusedError as error:
            await self._refused(intake, str(error))
        except AllocationUsedError as error:
            await self._poll_instead(intake, error)
        except (TemporaryError, PausedError) as error:
            cause = error.cause if isinstance(error, SessionLostError) else "paused" if isinstance(error, PausedError) else "login"
            if time.monotonic() - began > SOUND_SECONDS:
                self._backoff.reset()
            seconds = self._backoff.after(error)
            if isinstance(error, PausedError):
                self._pause(True)
            self._say(False, error.reason)
            log.warning("subscription lost", key=self._key, cause=cause, reason=scrub(error.reason), seconds=round(seconds, 2))
            metrics.RESUBSCRIBED.labels(*self._labels, cause).inc()
            await asyncio.sleep(seconds)

    async def _poll_instead(self, intake: Intake, error: AllocationUsedError) -> None:
        """What changes comes by polling, until events are delivered again. Raises FatalError."""
        metrics.RESUBSCRIBED.labels(*self._labels, error.cause).inc()
        await self._allocation.used_up(intake.position, scrub(error.reason, 200))
        self._begin_beside(intake)
        self._say(True, "polling: the org's event allocation is used up")
        await self._allocation.until_delivered()

    async def _session(self, intake: Intake) -> None:
        token = await self._c.login.token()
        await self._same_org(intake, token)
        at = intake.position
        replay = at.position if at.position is not None and not at.refused else cometd.RETAINED
        intake.not_before = None
        if at.position is None and at.start == "new":
            replay = cometd.NEW if self._begun else cometd.RETAINED
            if replay == cometd.RETAINED:  # what Salesforce kept from before the first start was never asked for
                intake.not_before = at.started // 1000 - GRACE_SECONDS
        if self._allocation.too_much():
            replay = cometd.NEW
        canary = self._canary
        session = Session(self._c.config, self._c.login, self._channel, replay, aside=canary.aside if canary is not None else None)
        listening: asyncio.Task[None] | None = None
        try:
            await session.open()
            self._session_now = session
            self._begun = False
            self._pause(False)
            if canary is None or not canary.deaf:
                self._well()
            listening = asyncio.create_task(canary.watch(session)) if canary is not None else None
            log.info("subscribed", key=self._key, replay=replay, epoch=at.epoch)
            self._allocation.delivered()
            if self._beside is not None:
                await self._beside.subscribed()
            self._begin_beside(intake)
            while True:
                batch = await self._next(session)
                for part in parts(batch, EVENTS):
                    await self._take(intake, part)
                self._backoff.reset()
        finally:
            self._allocation.lost()
            metrics.SUBSCRIBED.labels(*self._labels).set(0)
            self._session_now = None
            if listening is not None:
                listening.cancel()
                await asyncio.wait([listening])
            await session.close()

    def _renew(self, why: str) -> None:
        """Leave the session of now: the next one is another subscription."""
        if self._session_now is not None:
            self._session_now.end(SessionLostError("rights", why))

    def _well(self) -> None:
        """Subscribed, and not deaf as far as is known."""
        metrics.SUBSCRIBED.labels(*self._labels).set(1)
        self._say(True)

    async def _next(self, session: Session) -> list[Any]:
        """The next batch; keeps the gauge of the last answer."""
        waiting = asyncio.create_task(session.batch())
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=HELD_SECONDS)
                if why := self._c.held():
                    raise SessionLostError("held", why)
                metrics.LAST_ANSWER.labels(*self._labels).set(time.time() - (time.monotonic() - session.answered))
                self._allocation.check()
                if self._beside is not None:
                    self._beside.raise_if_ended()
            return waiting.result()
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError, TemporaryError, PausedError):
                await waiting

    async def _take(self, intake: Intake, messages: list[Any]) -> None:
        """One transaction. When it fails for good the intake is of no use any more: the leader starts anew from what is stored."""
        before = intake.position
        plan = intake.plan(messages, int(time.time() * 1000))
        if plan.outputs or intake.position != before:
            await self._send([*plan.outputs, output(self._topics, *self._labels, intake.position)])
        if plan.epoch_rose:
            log.error("positions started anew", alert=True, key=self._key, epoch=intake.position.epoch)
        if plan.reshaped:
            self._c.rest.forget()
        self._opened(plan.incidents)
        self._count(plan)

    async def _send(self, outputs: Sequence[Output]) -> None:
        """All or nothing, in this process's turn; while Kafka is away, again and again."""
        while True:
            try:
                async with self._leadership.turn():
                    await self._publisher.send(outputs)
                    return
            except TemporaryError as error:
                self._say(False, error.reason)
                await asyncio.sleep(self._backoff.after(error))

    async def _refused(self, intake: Intake, reason: str) -> None:
        """The position is lost: what changed since it is read again, and everything retained is subscribed to."""
        await self._lost_position(intake, replace(intake.position, refused=True), "position refused", reason)

    async def _same_org(self, intake: Intake, token: Token) -> None:
        """Another org or instance: positions mean something else there."""
        at = intake.position
        if (at.org, at.instance) == (token.org, token.instance_url):
            return
        fresh = replace(at.risen(None, None), org=token.org, instance=token.instance_url)
        if at.position is None and at.org == token.org:  # nothing was missed; in another org what a snapshot read is not there
            await self._send([output(self._topics, *self._labels, fresh)])
            intake.position = fresh
        else:
            await self._lost_position(intake, fresh, "org changed", f"the org or its instance is now {token.instance_url}")

    async def _lost_position(self, intake: Intake, position: Position, cause: Cause, reason: str) -> None:
        at, now = intake.position, int(time.time() * 1000)
        since = 0 if cause == "org changed" else max(0, (at.second or 0) - BUFFER_SECONDS)
        where = f"{self._c.connection}{self._channel}@{at.epoch}/{at.position}"
        incidents = [
            Incident(f"{where}/{source}/{cause}", source, cause, scrub(reason, 200), since=since, opened=now) for source in self._sources
        ]
        for source in self._events:
            lost = Incident(f"{where}/{source}/{cause}", source, cause, scrub(reason, 200), since=since, opened=now)
            incidents.append(lost.ended("failed", "Salesforce keeps no records of a platform event: ask its publisher for what was missed"))
        children = self._children(since) if since else []  # else all is read again
        await self._send([*(i.output(self._topics) for i in incidents), *children, output(self._topics, *self._labels, position)])
        intake.position = position
        metrics.RESUBSCRIBED.labels(*self._labels, "refused").inc()
        log.error("position refused", alert=True, key=self._key, position=at.position, reason=scrub(reason))
        self._opened(incidents)

    def _children(self, since: int) -> list[Output]:
        """Requests for the children of every parent of whom this channel may not have told since then."""
        parents = self._followed.carried(self._c.config, self._channel)
        return [request for parent in parents for request in self._followed.since(parent, since)]

    def _opened(self, incidents: Sequence[Incident]) -> None:
        """Count them and wake who repairs."""
        for i in incidents:
            metrics.INCIDENTS.labels(*i.source.split("/"), i.cause, i.state).inc()
            log.warning("incident", id=i.id, source=i.source, cause=i.cause, state=i.state, ids=len(i.ids), since=i.since, why=i.detail)
        if incidents and self._beside is not None:
            self._beside.wake()

    def _begin_beside(self, intake: Intake) -> None:
        if self._beside is None and self._sources:
            self._beside = Beside(self._c, self._name, self._channel, self._sources, self._allocation)
            self._beside.start(intake, self._renew)

    async def _token(self) -> Token:
        while True:
            try:
                return await self._c.login.token()
            except (TemporaryError, PausedError) as error:
                if isinstance(error, PausedError):
                    self._pause(True)
                self._say(False, error.reason)
                log.warning("no login", connection=self._c.connection, reason=scrub(error.reason))
                await asyncio.sleep(self._backoff.after(error))

    def _count(self, plan: Plan) -> None:
        for sobject, number in plan.received.items():
            metrics.RECEIVED.labels(self._c.connection, sobject, "live").inc(number)
        if plan.unrouted:
            metrics.RECEIVED.labels(self._c.connection, UNROUTED, "live").inc(plan.unrouted)
        for error, number in plan.dead.items():
            metrics.DEAD.labels("subscribe", "", error).inc(number)
            log.warning("dead letters", key=self._key, error=error, number=number)
        if plan.last_millis:
            metrics.LAST_EVENT.labels(*self._labels).set(plan.last_millis / 1000)
        if plan.repeats or plan.old:
            log.info("dropped", key=self._key, repeats=plan.repeats, before_start=plan.old)

    def _pause(self, paused: bool) -> None:
        """One gauge for the connection: one refused channel is enough."""
        (self._c.paused.add if paused else self._c.paused.discard)(self._channel)
        metrics.PAUSED.labels(self._c.connection).set(bool(self._c.paused))

    def _say(self, ok: bool, why: str = "") -> None:
        if self._c.health is not None:
            self._c.health.ready(f"subscription {self._key}", ok, scrub(why))
