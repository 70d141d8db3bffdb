"""The canary: a connection that is up and answered can be deaf all the same, for weeks. So an event that we cause must be heard.

It is a platform event that we publish, heard beside the changes by the very session that brings them, or the change of a record that we
touch, heard among them. It decides only that this session is over; who subscribes anew, from the stored position, is the subscriber.
Nothing is concluded from an event that could not be caused.
"""

import asyncio
import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from models.change_event import ChangeEventError
from models.errors import PausedError, PermanentError, TemporaryError
from models.flow import Canary as Config
from models.flow import sobject_channel
from models.platform_event import parse_platform_event
from models.scrub import scrub
from streams import metrics
from streams.salesforce.cometd import Aside, Session, SessionLostError
from streams.salesforce.limits import LimitReachedError
from streams.salesforce.rest import Rest

log = structlog.get_logger()

PURPOSE = "canary"
LENGTH = 12
"""Characters that are written to a field."""


class Canary:
    """Of one channel that is led. `well` is called when one is heard in time after some were not.

    deaf   the last one that was published here was not heard in time
    """

    def __init__(self, config: Config, rest: Rest, labels: tuple[str, str], well: Callable[[], None]) -> None:
        self._config, self._rest, self._labels, self._well = config, rest, labels, well
        self.aside: Aside = sobject_channel(config.event) if config.event else "", self.hear
        self._news = asyncio.Event()
        self._uuids: set[str] = set()
        self.deaf = False

    def hear(self, message: Any) -> None:
        """One that came, whichever channel of the connection published it; of a touched record's channel anything: it is not deaf."""
        if self._config.record:
            self._uuids.add("")
            self._news.set()
            return
        with suppress(ChangeEventError):
            self._uuids.add(parse_platform_event(message).uuid)
            self._news.set()

    async def watch(self, session: Session) -> None:
        """Beside a session, which it ends when it is deaf. One that follows a deaf one is tried at once.

        A channel publishes when none of its connection's was heard for some time, and not always the same one: each must hear its own now
        and then, within the budget. A record is touched when nothing was heard. (No clock but the monotonic one is asked.)
        """
        if self._config.event and not session.hears_aside:  # refused: that proves nothing of what matters
            self._count("failed")
            return
        while True:
            wait = 0.0 if self.deaf else self._config.every * random.uniform(1.0, 1.5)
            self._uuids.clear()
            if not await self._hears(None, wait) and not await self._sound():
                reason = f"connected and deaf: {self._done} and not heard within {self._config.budget:g} s"
                session.end(SessionLostError("deaf", reason))
                return

    async def _sound(self) -> bool:
        """Publish one and listen. False: it was not heard."""
        self._uuids.clear()
        try:
            name = await self._sing()
        except LimitReachedError:
            self._count("held")
        except (TemporaryError, PausedError, PermanentError) as error:
            self._count("failed")
            alert = isinstance(error, PermanentError)
            log.warning("no canary", alert=alert, connection=self._labels[0], canary=self._config.sobject, reason=scrub(error.reason))
        else:
            if not await self._hears(name, self._config.budget):
                self._count("missed")
                metrics.CANARY.labels(*self._labels).set(0)
                self.deaf = True
                return False
            self._count("heard")
            metrics.CANARY.labels(*self._labels).set(1)
            was, self.deaf = self.deaf, False
            if was:
                self._well()
            return True
        await asyncio.sleep(self._config.every)
        return True

    async def _sing(self) -> str | None:
        """Cause one; the UUID by which it is known, None: any will do. Raises what calls raise."""
        one = self._config
        if one.event:
            return await self._rest.publish(one.event, {}, PURPOSE)
        path, value = f"sobjects/{one.sobject}/{one.record_id}", {str(one.field): uuid.uuid4().hex[:LENGTH]}
        await self._rest.send(path, PURPOSE, lambda _: None, method="PATCH", json=value)
        return None

    @property
    def _done(self) -> str:
        """In words."""
        one = self._config
        if one.event:
            return f"{one.event} was published"
        return f"{one.field} of {one.record} was changed (is {one.sobject} selected for Change Data Capture?)"

    async def _hears(self, name: str | None, seconds: float) -> bool:
        """Whether this one comes within so many seconds; None: any."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._uuids & {name, ""} if name else self._uuids):
                    self._news.clear()
                    await self._news.wait()
                return True
        return False

    def _count(self, outcome: str) -> None:
        metrics.CANARIES.labels(*self._labels, outcome).inc()
