"""The token endpoint: client credentials and JWT bearer, and what a token is good for. Tokens carry no `expires_in`, as in Salesforce."""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from aiohttp import BasicAuth, web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, PASSWORD, USERNAME, Org

_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_AUDIENCES = ("https://login.salesforce.com", "https://test.salesforce.com")
_JWT_AHEAD = 300  # seconds that `exp` may lie ahead; the published three minutes and some difference of clocks


@dataclass(slots=True)
class App:
    """A connected app: its secret, the user it runs as, the users it may speak for, its public keys."""

    client_id: str
    secret: str | None
    username: str = USERNAME
    usernames: set[str] = field(default_factory=set)
    keys: list[RSAPublicKey] = field(default_factory=list)


@dataclass(slots=True)
class Token:
    user_id: str
    client_id: str


class _DeniedError(Exception):
    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description


def public_key(pem: str | bytes) -> RSAPublicKey:
    """The RSA key of a public key or certificate in PEM form. Errors: ValueError."""
    data = pem.encode() if isinstance(pem, str) else pem
    key = x509.load_pem_x509_certificate(data).public_key() if b"BEGIN CERTIFICATE" in data else load_pem_public_key(data)
    if not isinstance(key, RSAPublicKey):
        raise ValueError("not an RSA key: JWT bearer tokens are signed with RS256")
    return key


class OAuth:
    def __init__(self, org: Org) -> None:
        self.org = org
        self.apps = {CLIENT_ID: App(CLIENT_ID, CLIENT_SECRET)}
        self.tokens: dict[str, Token] = {}
        self.passwords = {USERNAME: PASSWORD}

    def register(self, client_id: str, secret: str | None = None, pem: str | None = None, username: str = USERNAME) -> None:
        """Add an app, or give a known one another secret, key or user. Errors: ValueError on a bad key or an unknown user."""
        if self._user(username) is None:
            raise ValueError(f"no active user named {username!r} in this org")
        keys = [public_key(pem)] if pem else []
        app = self.apps.setdefault(client_id, App(client_id, None))
        app.secret = secret or app.secret
        app.username = username
        app.usernames.add(username)
        app.keys += keys

    def register_file(self, path: Path) -> None:
        self.register(CLIENT_ID, pem=path.read_text())

    def user_of(self, request: web.Request) -> str:
        """The user behind the request's token. Errors: 401 INVALID_SESSION_ID."""
        token = self.token_of(request)
        if token is None:
            raise SalesforceError(401, "INVALID_SESSION_ID", "Session expired or invalid")
        return token.user_id

    def token_of(self, request: web.Request) -> Token | None:
        word, _, value = request.headers.get("Authorization", "").partition(" ")
        return self.tokens.get(value.strip()) if word in ("Bearer", "OAuth") else None

    def expire_all(self) -> None:
        self.tokens.clear()

    async def token(self, request: web.Request) -> web.Response:
        """`POST /services/oauth2/token`."""
        self.org.counts["logins"] += 1
        form = await request.post()
        given = {name: value for name, value in form.items() if isinstance(value, str)}
        try:
            if self.org.faults.take("token-endpoint-down", "rate"):
                raise _DeniedError("rate_limit_exceeded", "login rate exceeded")
            if self.org.faults.peek("revoke"):
                self.org.faults.note("revoke")
                raise _DeniedError("invalid_grant", "expired access/refresh token")
            grant = given.get("grant_type", "")
            if grant == "client_credentials":
                return self._answer(request, *self._by_secret(request, given), signed=True)
            if grant == _JWT_GRANT:
                return self._answer(request, *self._by_assertion(request, given), signed=False)
            raise _DeniedError("unsupported_grant_type", "grant type not supported")
        except _DeniedError as denied:
            self.org.counts["logins refused"] += 1
            return web.json_response({"error": denied.error, "error_description": denied.description}, status=400, headers=_NO_STORE)

    async def revoke(self, request: web.Request) -> web.Response:
        """`POST /services/oauth2/revoke`."""
        token = (await request.post()).get("token") or request.query.get("token")
        if not token:
            return web.json_response({"error": "invalid_request", "error_description": "Token parameter is missing"}, status=400)
        self.tokens.pop(str(token), None)
        return web.Response()

    def _by_secret(self, request: web.Request, given: dict[str, str]) -> tuple[App, str]:
        client_id, secret = given.get("client_id", ""), given.get("client_secret", "")
        if header := request.headers.get("Authorization"):
            try:
                basic = BasicAuth.decode(header)
            except ValueError:
                raise _DeniedError("invalid_client", "invalid client credentials") from None
            client_id, secret = basic.login, basic.password
        app = self._app(client_id)
        if app.secret is None or not hmac.compare_digest(app.secret.encode(), secret.encode()):
            raise _DeniedError("invalid_client", "invalid client credentials")
        return app, app.username

    def _by_assertion(self, request: web.Request, given: dict[str, str]) -> tuple[App, str]:
        assertion = given.get("assertion", "")
        try:
            claims: dict[str, Any] = jwt.decode(assertion, options={"verify_signature": False})
        except jwt.PyJWTError:
            raise _DeniedError("invalid_grant", "invalid assertion") from None
        app = self._app(str(claims.get("iss", "")))
        audiences = (*_AUDIENCES, base_url(request), f"{base_url(request)}/services/oauth2/token")
        error = _DeniedError("invalid_grant", "invalid assertion")
        for key in app.keys:
            try:
                claims = jwt.decode(assertion, key, algorithms=["RS256"], audience=audiences, options={"require": ["exp", "aud", "sub"]})
            except jwt.ExpiredSignatureError:
                error = _DeniedError("invalid_grant", "assertion has expired")
            except jwt.InvalidAudienceError:
                error = _DeniedError("invalid_grant", "audience is invalid")
            except jwt.PyJWTError:
                continue
            else:
                break
        else:
            raise error
        if claims["exp"] > self.org.now() + _JWT_AHEAD:
            raise _DeniedError("invalid_grant", "assertion expires too far in the future")
        username = str(claims["sub"])
        if username not in app.usernames:
            raise _DeniedError("invalid_grant", "user hasn't approved this consumer")
        return app, username

    def _app(self, client_id: str) -> App:
        if client_id not in self.apps:
            raise _DeniedError("invalid_client_id", "client identifier invalid")
        return self.apps[client_id]

    def _user(self, username: str) -> str | None:
        users = self.org.store.live(self.org.schema.objects["User"])
        return next((u["Id"] for u in users if u["Username"] == username and u["IsActive"]), None)

    def _answer(self, request: web.Request, app: App, username: str, *, signed: bool) -> web.Response:
        user_id = self._user(username)
        if user_id is None:
            raise _DeniedError("inactive_user", "user is inactive")
        value = f"{self.org.id[:15]}!{secrets.token_urlsafe(72).replace('-', '.')}"
        self.tokens[value] = Token(user_id, app.client_id)
        identity = f"{base_url(request)}/id/{self.org.id}/{user_id}"
        body = {"access_token": value, "scope": "api", "instance_url": base_url(request), "id": identity, "token_type": "Bearer"}
        if signed:
            body["issued_at"] = str(int(self.org.now() * 1000))
            digest = hmac.new((app.secret or "").encode(), (identity + body["issued_at"]).encode(), hashlib.sha256).digest()
            body["signature"] = base64.b64encode(digest).decode()
        return web.json_response(body, headers=_NO_STORE)


_NO_STORE = {"Cache-Control": "no-cache, no-store"}


def base_url(request: web.Request) -> str:
    """The address that the caller used, under a host name: cookies of an IP literal are dropped by many clients."""
    host = request.host
    return f"http://{'localhost' + host[len('127.0.0.1') :] if host.startswith('127.0.0.1') else host}"
