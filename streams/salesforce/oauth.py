"""The token endpoint of Salesforce: what is sent for each login flow, and what the answers mean.

It keeps nothing. No secret, key or token is ever in a repr, a log line or an error.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import orjson
from pydantic import SecretStr

from models.errors import HeadraceError, PausedError, SettingsError, TemporaryError
from models.flow import Salesforce
from models.scrub import scrub

JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
JWT_SECONDS = 170
"""Salesforce accepts an `exp` about three minutes ahead."""
TOKEN_SECONDS = 30.0
TOKEN_BYTES = 200_000
WORTH_RETRY = frozenset({"rate_limit_exceeded", "server_error", "temporarily_unavailable", "unknown_error"})

REMEDIES = {
    "invalid_client_id": "the consumer key is unknown there (a new app takes minutes to spread): check client_id and url",
    "invalid_client": "the consumer secret is wrong: set the new one",
    "inactive_user": "activate the integration user",
    "inactive_org": "the org is closed or locked",
    "unsupported_grant_type": "enable this flow in the connected app",
    "invalid_scope": "give the connected app the scopes api and refresh_token",
}
GRANT_REMEDY = (
    "check the user (active, allowed for the app, login hours and addresses), the certificate and `audience`, or grant access anew"
)
FLOW_REMEDIES = {
    "web_server": "access was revoked or pushed out: grant it again, or run `headrace login`",
    "password": "check user, password and security token; Salesforce blocks this flow in newer orgs: use jwt or client_credentials",
}


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. `skew`: seconds that the source's clock is ahead of ours; `org` is "" where the reply did not say.

    `refresh` is the refresh token that came with it, for the vault alone; `user` the id of the user.
    """

    value: str = field(repr=False)
    instance_url: str
    org: str
    skew: float = 0.0
    user: str = ""
    refresh: str | None = field(default=None, repr=False)


def refusal(status: int, body: Any, flow: str = "") -> HeadraceError:
    """What an answer of the token endpoint other than a token means."""
    if not isinstance(body, dict) or "error" not in body:
        return TemporaryError(f"the token endpoint of Salesforce answered {status} with no token (maintenance page?)")
    error, text = scrub(str(body["error"]), 60), scrub(str(body.get("error_description", "")), 200)
    if status >= 500 or status == 429 or error in WORTH_RETRY:
        return TemporaryError(
            f"Salesforce gives no token now: {error} ({text})", retry_after=60.0 if error == "rate_limit_exceeded" else None
        )
    remedy = REMEDIES.get(error) or FLOW_REMEDIES.get(flow, GRANT_REMEDY)
    return PausedError(f"Salesforce refuses the login: {error} ({text}); {remedy}")


def parse_token(body: Any, skew: float = 0.0, *, secure: bool = False) -> Token:
    """The token of a reply; only access_token and instance_url are sure to be in one. `secure`: the instance must be https.

    Raises TemporaryError.
    """
    if not isinstance(body, dict):
        raise TemporaryError("the token endpoint of Salesforce answered something that is no token (maintenance page?)")
    value, url, refresh = body.get("access_token"), body.get("instance_url"), body.get("refresh_token")
    if not (isinstance(value, str) and value and isinstance(url, str) and url.startswith(("https://", "http://"))):
        raise TemporaryError("the token endpoint of Salesforce answered without access_token and instance_url")
    if secure and not url.startswith("https://"):
        raise TemporaryError("the token endpoint of Salesforce named an instance without https: the token is not sent there")
    parts = str(body.get("id", "")).rstrip("/").split("/")
    named = len(parts) >= 3 and parts[-3] == "id"
    org = parts[-2] if named else value.partition("!")[0] if "!" in value else ""
    return Token(
        value,
        url.rstrip("/"),
        org[:15],
        skew,
        user=parts[-1][:18] if named else "",
        refresh=refresh if isinstance(refresh, str) and refresh else None,
    )


def form_of(connection: str, config: Salesforce, folder: Path) -> dict[str, str]:
    """What to send where no refresh token is needed. Raises SettingsError (something is missing, or the key file is no key)."""
    auth = config.auth
    match auth.flow:
        case "client_credentials":
            return {"grant_type": "client_credentials", "client_id": auth.client_id, **_needed(connection, config, "client_secret")}
        case "password":
            needed = _needed(connection, config, "client_secret", "username", "password")
            return {"grant_type": "password", "client_id": auth.client_id, **needed}
        case "jwt":
            return {"grant_type": JWT_GRANT, "assertion": _assertion(connection, config, folder)}
        case "web_server":
            raise SettingsError(f"connection {connection}: web_server logs in with a kept refresh token")


def refresh_form(config: Salesforce, refresh_token: str) -> dict[str, str]:
    """What to send with a refresh token."""
    return {"grant_type": "refresh_token", "refresh_token": refresh_token, **client(config)}


def client(config: Salesforce) -> dict[str, str]:
    """The connected app, with its secret where it has one."""
    secret = config.auth.client_secret
    return {"client_id": config.auth.client_id} | ({} if secret is None else {"client_secret": secret.get_secret_value()})


async def ask(connection: str, config: Salesforce, form: Mapping[str, str]) -> Token:
    """One request to the token endpoint. Raises TemporaryError (network, maintenance, rate), PausedError (refused)."""
    url = f"{config.url.rstrip('/')}/services/oauth2/token"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TOKEN_SECONDS)) as session,
            session.post(url, data=dict(form), headers={"Accept": "application/json"}, allow_redirects=False) as reply,
        ):
            raw = b""
            async for piece in reply.content.iter_chunked(16_384):
                raw += piece
                if len(raw) > TOKEN_BYTES:
                    break
            status, date = reply.status, reply.headers.get("Date")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise TemporaryError(f"the token endpoint of {connection} is not to be reached ({type(error).__name__})") from None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if status != 200:
        raise refusal(status, body, config.auth.flow)
    return parse_token(body, skew_of(date), secure=config.url.startswith("https://"))


def _needed(connection: str, config: Salesforce, *names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        value = getattr(config.auth, name)
        if not value:
            raise SettingsError(f"connection {connection}: {config.auth.flow} needs {name}")
        found[name] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return found


def _assertion(connection: str, config: Salesforce, folder: Path) -> str:
    auth = config.auth
    if not auth.username or not auth.key_file:
        raise SettingsError(f"connection {connection}: jwt needs username and key_file")
    path = folder / auth.key_file
    claims = {
        "iss": auth.client_id,
        "sub": auth.username,
        "aud": auth.audience or config.url.rstrip("/"),
        "exp": int(time.time()) + JWT_SECONDS,
    }
    try:
        return jwt.encode(claims, path.read_bytes(), algorithm="RS256")
    except OSError as error:
        raise SettingsError(f"connection {connection}: key_file {path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, jwt.PyJWTError) as error:
        raise SettingsError(f"connection {connection}: key_file {path} is no RSA key in PEM form ({type(error).__name__})") from None


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
