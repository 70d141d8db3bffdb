"""One session of Salesforce's stream: aiosfstream-ng with a fence around it.

The library does the wire: handshake, long polling, ids, cookies. Left to itself it resumes a session after a transport error without replay
(what was in the dead poll is gone), re-handshakes silently and swallows a refused re-subscription, logs in at every 401 and 403, sleeps
an interval of milliseconds as seconds, and stalls at 100 queued messages. So everything that goes out or comes in passes `_Fence`:

- a session that saw any error sends nothing more: no second handshake, no resumed poll, no login of its own accord;
- the messages of a reply are taken out before the library queues them, and handed on as one batch;
- its advice is mended before the library reads it.

A session has one subscription and one life. When it is lost its owner opens a new one, from the stored position.
"""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import orjson
import structlog
from aiocometd_ng import ConnectionType
from aiocometd_ng.constants import TransportState
from aiocometd_ng.exceptions import AiocometdException, TransportError
from aiosfstream_ng import Client, ReplayMarkerStoragePolicy
from aiosfstream_ng.auth import AuthenticatorBase
from aiosfstream_ng.replay import ReplayMarker, ReplayMarkerStorage

from models.errors import HeadraceError, PausedError, TemporaryError
from models.flow import Salesforce
from models.scrub import scrub
from streams.salesforce.auth import Login
from streams.salesforce.oauth import Token

log = structlog.get_logger()

NEW, RETAINED = -1, -2
OPEN_SECONDS = 45.0
CLOSE_SECONDS = 3.0
SLACK_MS = 15_000
"""Added to the time the server says it may hold a poll; the library adds a fifth."""
WAITING_EVENTS = 5_000
"""Above so many events not yet taken the next poll waits; what Salesforce then drops is read again from the stored position."""
LIMIT_SECONDS = 60.0

LIMITS = ("limit exceeded", "too busy", "simultaneous connections", "handshake denied")
GONE = ("unknown client", "cookie present", "does not match the session", "not completed handshake")
DENIED = {
    "doesn't exist": "select the object for Change Data Capture, or mend `channels`",
    "does not exist": "select the object for Change Data Capture, or mend `channels`",
    "not allowed": "give the integration user View All Data",
    "not have access": "give the integration user View All Records on the object",
    "restricted": "mend `channels`",
    "cannot create": "mend `channels`",
    "not enabled": "give the integration user the right to streaming",
    "api version": "mend `version` of the connection",
}


class SessionLostError(TemporaryError):
    """The session is over; open a new one from the stored position. `cause` is of a closed set: it is a metric label."""

    def __init__(self, cause: str, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason, retry_after=retry_after)
        self.cause = cause


class AllocationUsedError(SessionLostError):
    """The events that the org delivers in a day are used up."""

    def __init__(self, reason: str) -> None:
        super().__init__("allocation", reason, retry_after=LIMIT_SECONDS)


class PositionRefusedError(HeadraceError):
    """Salesforce does not know the position any more: what lies between must be read again."""


def verdict(error: str, failure: str, replay: int) -> HeadraceError:
    """What an unsuccessful reply means. `failure` is ext.sfdc.failureReason, the real cause where there is one."""
    text = f"{failure} {error}".strip().lower()
    shown = scrub(failure or error or "no reason given", 200)
    if "replayid" in text and "invalid" in text and replay >= 0:
        return PositionRefusedError(f"Salesforce refused position {replay}: {shown}")
    if "401::" in text and "too busy" not in text:
        return SessionLostError("unauthorized", f"the token is over: {shown}")
    if any(words in text for words in GONE) or text.startswith("402::"):
        return SessionLostError("unknown_client", f"Salesforce forgot the session: {shown}")
    if "daily limit exceeded" in text:
        return AllocationUsedError(f"the org's event allocation is used up: {shown}")
    if any(words in text for words in LIMITS):
        return SessionLostError("limit", f"a limit of Salesforce is reached: {shown}", retry_after=LIMIT_SECONDS)
    for words, remedy in DENIED.items():
        if words in text:
            return PausedError(f"Salesforce refuses the subscription: {shown}; {remedy}")
    return SessionLostError("server", f"Salesforce answered with an error: {shown}")


Aside = tuple[str, Callable[[Any], None]]


class _TokenAuth(AuthenticatorBase):  # type: ignore[misc]  # the library is untyped
    """Hands the connection's token to the library, and never logs in for it: a 401 ends the session."""

    def __init__(self, token: Token) -> None:
        super().__init__()
        self._taken = token

    def __repr__(self) -> str:
        return "_TokenAuth()"

    async def _authenticate(self) -> tuple[int, dict[str, str]]:
        return 200, {"access_token": self._taken.value, "token_type": "Bearer", "instance_url": self._taken.instance_url}


class _Fence(ReplayMarkerStorage):  # type: ignore[misc]
    """Extension of the library through which every request and reply passes."""

    def __init__(self, replay: int, aside: Aside | None) -> None:
        super().__init__()
        self.replay, self.aside = replay, aside[0] if aside else ""
        self._ear = aside[1] if aside else None
        self.error: HeadraceError | None = None
        self.closing = False
        self.news, self.room = asyncio.Event(), asyncio.Event()
        self.room.set()
        self.waiting: list[Any] = []
        self.answered = self.delivered = time.monotonic()
        self._handshakes = 0
        self._hold: Any = None

    def fail(self, error: HeadraceError) -> None:
        """The session is over; the first reason stands."""
        self.error = self.error or error
        self.news.set()
        self.room.set()

    async def outgoing(self, payload: list[dict[str, Any]], headers: dict[str, str]) -> None:  # noqa: ARG002
        if self.error is not None and not self.closing:
            raise TransportError("the session is over")
        for message in payload:
            if message["channel"] == "/meta/handshake":
                self._handshakes += 1
                if self._handshakes > 1:
                    self.fail(SessionLostError("unknown_client", "the library wanted a second handshake"))
                    raise TransportError("one handshake a session")
                message["ext"] = {"replay": True}
                message["supportedConnectionTypes"] = ["long-polling"]
            elif message["channel"] == "/meta/subscribe":
                channel = message["subscription"]
                message["ext"] = {"replay": {channel: NEW if channel == self.aside else self.replay}}

    async def incoming(self, payload: Any, headers: Any = None) -> None:  # noqa: ARG002
        if not isinstance(payload, list) or not all(isinstance(m, dict) for m in payload):
            self._broken(SessionLostError("transport", "Salesforce answered with something that is no list of messages"))
            return
        now = time.monotonic()
        self.answered = now
        meta = [m for m in payload if isinstance(c := m.get("channel"), str) and c.startswith("/meta/")]
        nameless = [m for m in payload if "channel" not in m and ("error" in m or "successful" in m)]
        events = [m for m in payload if m not in nameless and not str(m.get("channel", "")).startswith(("/meta/", "/service/"))]
        if events and self._ear is not None:
            heard = events
            if self.aside:
                heard, events = [m for m in events if m.get("channel") == self.aside], [m for m in events if m.get("channel") != self.aside]
            for message in heard:
                self.delivered = now
                self._ear(message)
        if events:
            self.delivered = now
            self.waiting += events
            self.news.set()
        for message in meta:
            self._mend_advice(message)
        payload[:] = [m for m in meta if "successful" in m]
        for message in meta + nameless:
            if self.aside and message.get("subscription") == self.aside:
                continue  # what stands aside must not end what matters
            if not message.get("successful", "error" not in message) and not self.closing:
                ext = message.get("ext")
                sfdc = ext.get("sfdc") if isinstance(ext, dict) else None
                failure = str(sfdc.get("failureReason") or "") if isinstance(sfdc, dict) else ""
                self._broken(verdict(str(message.get("error") or ""), failure, self.replay))
        if len(self.waiting) > WAITING_EVENTS:
            self.room.clear()
            await self.room.wait()

    def take(self) -> list[Any]:
        """Everything that came, in order of arrival."""
        taken, self.waiting = self.waiting, []
        self.room.set()
        if self.error is None:
            self.news.clear()
        return taken

    async def get_replay_marker(self, subscription: str) -> ReplayMarker | None:  # noqa: ARG002
        return None

    async def set_replay_marker(self, subscription: str, replay_marker: ReplayMarker) -> None:
        """The position is stored with the events, elsewhere."""

    def _broken(self, error: HeadraceError) -> None:
        self.fail(error)
        raise TransportError("the session is over")

    def _mend_advice(self, message: dict[str, Any]) -> None:
        """Interval in seconds, as the library sleeps it; a missing time-out keeps the last, so that no request waits for ever."""
        advice = message.get("advice")
        found = advice if isinstance(advice, dict) else {}
        timeout, interval = found.get("timeout"), found.get("interval")
        if isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout >= 0:
            self._hold = timeout + SLACK_MS
        message["advice"] = {"reconnect": found.get("reconnect", "retry"), "timeout": self._hold or 110_000 + SLACK_MS}
        if isinstance(interval, int | float) and not isinstance(interval, bool):
            message["advice"]["interval"] = min(max(interval, 0) / 1000, 30)


class _Client(Client):  # type: ignore[misc]
    """The library's client at our API version, with a cookie jar for every host and HTTP statuses looked at."""

    _http_session: aiohttp.ClientSession | None

    def __init__(self, version: str, auth: AuthenticatorBase, fence: _Fence) -> None:
        super().__init__(
            auth,
            replay=fence,
            replay_storage_policy=ReplayMarkerStoragePolicy.MANUAL,
            connection_timeout=0,
            max_pending_count=0,
            json_loads=loads,
        )
        self._connection_types = [ConnectionType.LONG_POLLING]
        self._version, self._fence = version, fence

    def get_cometd_url(self, instance_url: str) -> str:  # the library's is a static method; it is called on the object
        return f"{instance_url}/cometd/{self._version}"

    async def _get_http_session(self) -> aiohttp.ClientSession:
        if self._http_session is None:
            self._http_session = aiohttp.ClientSession(
                cookie_jar=aiohttp.CookieJar(unsafe=True), raise_for_status=self._look, timeout=aiohttp.ClientTimeout(total=OPEN_SECONDS)
            )
        return self._http_session

    async def _look(self, reply: aiohttp.ClientResponse) -> None:
        if reply.status == 401 and "json" not in reply.content_type:
            self._fence.fail(SessionLostError("unauthorized", "Salesforce answered 401"))
        if reply.status >= 500 or reply.status in (404, 410):
            self._fence.fail(SessionLostError("transport", f"Salesforce answered with HTTP {reply.status}"))
            reply.raise_for_status()

    async def end(self) -> None:
        """Stop the library's own task and close the sockets, whatever state it is in; says goodbye when the session is sound."""
        self._fence.closing = self._fence.error is None
        transport, session = self._transport, self._http_session
        if transport is not None:
            if (task := transport._connect_task) is not None:
                task.remove_done_callback(transport._connect_done)  # else the library logs a traceback of the cancellation
            with suppress(AiocometdException, aiohttp.ClientError, TimeoutError, OSError, ValueError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await transport.disconnect()
        if session is not None:
            await session.close()
        self._closed = True


def loads(raw: str) -> Any:
    """JSON with what orjson refuses (half a surrogate pair) read the slow way: one odd field must not stop a channel."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            return json.loads(raw)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class Session:
    """One subscription to one channel, from `replay` (a position, -1 or -2). Open it, take batches, close it; it is never reopened.

    aside     a second channel, from now on, and who takes its messages; a refusal of it is logged. "": none, and who hears the first
    silence   seconds without any reply after which the session is given up; after twice as many without an event a new one looks
              whether the subscription still stands (Salesforce can withhold events from a session that it answers)
    """

    def __init__(self, config: Salesforce, login: Login, channel: str, replay: int, *, aside: Aside | None = None) -> None:
        self._config, self._login, self._channel, self._replay, self._aside = config, login, channel, replay, aside
        self._fence = _Fence(replay, aside)
        self._client: _Client | None = None
        self._watch: asyncio.Task[None] | None = None
        self._token: Token | None = None

    @property
    def hears_aside(self) -> bool:
        """The second channel is subscribed to."""
        return self._client is not None and self._aside is not None and self._aside[0] in self._client.subscriptions

    @property
    def answered(self) -> float:
        """time.monotonic() of the last reply."""
        return self._fence.answered

    async def open(self) -> Token:
        """Handshake, connect, subscribe; it stands when this returns. Raises SessionLostError, PositionRefusedError, PausedError."""
        self._token = token = await self._login.token()
        self._client = client = _Client(self._config.version, _TokenAuth(token), self._fence)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await client.open()
                await client.subscribe(self._channel)
        except (AiocometdException, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._fence.fail(SessionLostError("transport", f"no session with Salesforce: {type(error).__name__}: {scrub(str(error), 200)}"))
        if self._fence.error is None and self._channel not in client.subscriptions:
            self._fence.fail(SessionLostError("unsubscribed", f"{self._channel} was not confirmed by Salesforce"))
        self._raise_if_lost()
        if self._aside is not None and self._aside[0]:
            await self._listen_aside(client, self._aside[0])
        self._raise_if_lost()
        self._watch = asyncio.create_task(self._watch_transport(client))
        return token

    async def _listen_aside(self, client: _Client, channel: str) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await client.subscribe(channel)
        except (AiocometdException, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.warning("not subscribed", alert=True, channel=channel, reason=scrub(str(error), 200))

    async def batch(self) -> list[Any]:
        """All messages that came since the last call, at least one. Raises SessionLostError, PausedError when the session is over."""
        fence = self._fence
        while not fence.waiting:
            self._raise_if_lost()
            if self._client is None or self._channel not in self._client.subscriptions:
                fence.fail(SessionLostError("unsubscribed", f"{self._channel} is no longer subscribed"))
                continue
            quiet = min(fence.answered + self._config.silence, fence.delivered + 2 * self._config.silence) - time.monotonic()
            if quiet <= 0:
                fence.fail(SessionLostError("silence", "Salesforce says nothing any more"))
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(quiet):
                    await fence.news.wait()
        return fence.take()

    def end(self, error: HeadraceError) -> None:
        """Whoever waits for a batch gets this error."""
        self._fence.fail(error)

    async def close(self) -> None:
        """End it; never raises for the wire's sake."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._client is not None:
            await self._client.end()

    def _raise_if_lost(self) -> None:
        if (error := self._fence.error) is None:
            return
        if isinstance(error, SessionLostError) and error.cause == "unauthorized" and self._token is not None:
            self._login.reject(self._token)
        raise error

    async def _watch_transport(self, client: _Client) -> None:
        """The library leaves CONNECTED at its first error and would try again in a second: by then the session is over."""
        waits = [
            asyncio.create_task(client._transport.wait_for_state(s))
            for s in (TransportState.CONNECTING, TransportState.SERVER_DISCONNECTED)
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            self._fence.fail(SessionLostError("transport", "the connection to Salesforce broke"))
        finally:
            for wait in waits:
                wait.cancel()
