"""Logging in to Salesforce: one token per connection, shared by the stream and REST, asked for no more often than a person would.

A login storm locks a user out, so logins are single-flight and rate-limited here, whoever asks. No secret, key or token is ever in a repr,
a log line or an error.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import orjson
import structlog

from models.errors import HeadraceError, PausedError, SettingsError, TemporaryError
from models.flow import Salesforce
from models.scrub import scrub
from streams import metrics

log = structlog.get_logger()

JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
JWT_SECONDS = 170
"""Salesforce accepts an `exp` about three minutes ahead."""
TOKEN_SECONDS = 30.0
BURST, EVERY = 3, 5.0
"""Three logins at once, then one per five seconds."""
WORTH_RETRY = frozenset({"rate_limit_exceeded", "server_error", "temporarily_unavailable", "unknown_error"})

REMEDIES = {
    "invalid_client_id": "the consumer key is unknown there (a new app takes minutes to spread): check client_id and url",
    "invalid_client": "the consumer secret is wrong: set the new one",
    "inactive_user": "activate the integration user",
    "inactive_org": "the org is closed or locked",
    "unsupported_grant_type": "enable this flow in the connected app",
}
GRANT_REMEDY = (
    "check the user (active, allowed for the app, login hours and addresses), the certificate and `audience`, or grant access anew"
)


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. `skew`: seconds that the source's clock is ahead of ours; `org` is "" where the reply did not say."""

    value: str = field(repr=False)
    instance_url: str
    org: str
    skew: float = 0.0


def refusal(status: int, body: Any) -> HeadraceError:
    """What an answer of the token endpoint other than a token means."""
    if not isinstance(body, dict) or "error" not in body:
        return TemporaryError(f"the token endpoint of Salesforce answered {status} with no token (maintenance page?)")
    error, text = scrub(str(body["error"]), 60), scrub(str(body.get("error_description", "")), 200)
    if status >= 500 or status == 429 or error in WORTH_RETRY:
        return TemporaryError(
            f"Salesforce gives no token now: {error} ({text})", retry_after=60.0 if error == "rate_limit_exceeded" else None
        )
    return PausedError(f"Salesforce refuses the login: {error} ({text}); {REMEDIES.get(error, GRANT_REMEDY)}")


def parse_token(body: Any, skew: float = 0.0) -> Token:
    """The token of a reply; only access_token and instance_url are sure to be in one. Raises TemporaryError."""
    if not isinstance(body, dict):
        raise TemporaryError("the token endpoint of Salesforce answered something that is no token (maintenance page?)")
    value, url = body.get("access_token"), body.get("instance_url")
    if not (isinstance(value, str) and value and isinstance(url, str) and url.startswith(("https://", "http://"))):
        raise TemporaryError("the token endpoint of Salesforce answered without access_token and instance_url")
    parts = str(body.get("id", "")).rstrip("/").split("/")
    org = parts[-2] if len(parts) >= 3 and parts[-3] == "id" else value.partition("!")[0] if "!" in value else ""
    return Token(value, url.rstrip("/"), org[:15], skew)


class Login:
    """The login of one connection. `folder` is where `key_file` is relative to."""

    def __init__(
        self, connection: str, config: Salesforce, folder: str | Path = ".", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.connection, self._config, self._folder, self._clock = connection, config, Path(folder), clock
        self._token: Token | None = None
        self._lock = asyncio.Lock()
        self._recent: deque[float] = deque(maxlen=BURST)

    def __repr__(self) -> str:
        return f"Login({self.connection!r}, flow={self._config.auth.flow!r})"

    async def token(self) -> Token:
        """The cached token, or a new one. Raises TemporaryError (network, rate limit), PausedError (refused), SettingsError (key file)."""
        async with self._lock:
            if self._token is None:
                self._token = await self._login()
            return self._token

    def reject(self, token: Token) -> None:
        """Salesforce said 401 to this token: the next call logs in, unless somebody already did."""
        if self._token is token:
            self._token = None

    async def _login(self) -> Token:
        outcome = "failed"
        try:
            self._admit()
            token = await self._ask(self._form())
            outcome = "ok"
        except PausedError:
            outcome = "refused"
            raise
        finally:
            metrics.LOGINS.labels(self.connection, outcome).inc()
        log.info("logged in", connection=self.connection, instance=token.instance_url, org=token.org)
        return token

    def _admit(self) -> None:
        now = self._clock()
        if len(self._recent) == BURST and (wait := self._recent[-1] + EVERY - now) > 0 and now - self._recent[0] < BURST * EVERY:
            raise TemporaryError(f"too many logins of {self.connection} in a short time: the next in {wait:.1f} s", retry_after=wait)
        self._recent.append(now)

    def _form(self) -> dict[str, str]:
        auth = self._config.auth
        if auth.flow == "client_credentials":
            if auth.client_secret is None:
                raise SettingsError(f"connection {self.connection}: client_credentials needs client_secret")
            secret = auth.client_secret.get_secret_value()
            return {"grant_type": "client_credentials", "client_id": auth.client_id, "client_secret": secret}
        if not auth.username or not auth.key_file:
            raise SettingsError(f"connection {self.connection}: jwt needs username and key_file")
        path = self._folder / auth.key_file
        claims = {
            "iss": auth.client_id,
            "sub": auth.username,
            "aud": auth.audience or self._config.url.rstrip("/"),
            "exp": int(time.time()) + JWT_SECONDS,
        }
        try:
            assertion = jwt.encode(claims, path.read_bytes(), algorithm="RS256")
        except OSError as error:
            raise SettingsError(f"connection {self.connection}: key_file {path} cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, jwt.PyJWTError) as error:
            raise SettingsError(
                f"connection {self.connection}: key_file {path} is no RSA key in PEM form ({type(error).__name__})"
            ) from None
        return {"grant_type": JWT_GRANT, "assertion": assertion}

    async def _ask(self, form: dict[str, str]) -> Token:
        url = f"{self._config.url.rstrip('/')}/services/oauth2/token"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TOKEN_SECONDS)) as session,
                session.post(url, data=form, headers={"Accept": "application/json"}, allow_redirects=False) as reply,
            ):
                status, raw, date = reply.status, await reply.read(), reply.headers.get("Date")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TemporaryError(f"the token endpoint of {self.connection} is not to be reached ({type(error).__name__})") from None
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if status != 200:
            raise refusal(status, body)
        return parse_token(body, skew_of(date))


def skew_of(date: str | None) -> float:
    """Seconds the source's clock is ahead of ours, from a Date header; below its grain of two seconds, and without one, 0."""
    second = second_of(date)
    skew = 0.0 if second is None else second - time.time()
    return 0.0 if abs(skew) < 2 else skew


def second_of(date: str | None) -> int | None:
    """Epoch second of a Date header; None for none or a broken one."""
    try:
        return int(parsedate_to_datetime(date).timestamp()) if date else None
    except (TypeError, ValueError, OverflowError):
        return None
