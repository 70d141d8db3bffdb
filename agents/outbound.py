"""The one outbound HTTP client of targets. Retry, rate and pause are the guard's and the writer's; here is one request and its answer."""

# Layers, from the caller inwards:
#   1. the caller's own headers (keys live here and nowhere else; no error repeats them)
#   2. a session made at first use, in the loop that uses it; no cookies, no redirects followed, no proxy or .netrc from the environment
#   3. time limits: connecting, silence, the whole; below the writer's own limit for a call
#   4. the answer read to its end, up to `LARGEST` bytes: a cut-off body is an unknown outcome, hence TemporaryError
#   5. transport errors become TemporaryError, their text scrubbed; every status is an Answer, never an exception

import contextlib
import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from models.errors import PermanentError, TemporaryError
from models.scrub import scrub

LARGEST = 8_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers, body as received. Header names are compared without case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; None when it is something else (HTML, plain text, cut off)."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def text(self) -> str:
        """The beginning of the body, scrubbed, for messages."""
        return scrub(self.body[:4000].decode(errors="replace"), 300)

    @property
    def retry_after(self) -> float | None:
        """Seconds asked for by Retry-After (a number or an HTTP date), never below 0; None where it is missing or unreadable."""
        raw = self.headers.get("Retry-After", "").strip()
        if raw.isascii() and raw.isdigit():
            return float(raw[:9])
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return max(0.0, email.utils.parsedate_to_datetime(raw).timestamp() - time.time())
        return None


class Outbound:
    """Requests to one remote at `base_url`. `name` is for messages."""

    def __init__(self, name: str, base_url: str, headers: Mapping[str, str], *, seconds: float = 30.0) -> None:
        self.name, self._base, self._headers = name, base_url.rstrip("/"), dict(headers)
        self._limits = aiohttp.ClientTimeout(total=seconds, sock_connect=min(5.0, seconds))
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        """Without the headers."""
        return f"Outbound({self.name})"

    async def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request; `path` is already quoted. Raises TemporaryError when no whole answer came."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._limits, cookie_jar=aiohttp.DummyCookieJar())
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            async with self._session.request(method, f"{self._base}{path}", data=body, headers=headers, allow_redirects=False) as reply:
                received = await reply.content.read(LARGEST + 1)
                while not reply.content.at_eof() and len(received) <= LARGEST:
                    received += await reply.content.read(LARGEST + 1 - len(received))
                if len(received) > LARGEST:
                    raise PermanentError(f"{self.name} answered with more than {LARGEST} bytes")
                return Answer(reply.status, reply.headers, received)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise TemporaryError(f"{self.name} did not answer: {type(error).__name__} {scrub(str(error), 200)}".rstrip()) from None

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None
