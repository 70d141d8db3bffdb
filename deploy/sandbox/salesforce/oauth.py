"""The login endpoints: every grant Salesforce knows, and what a token is good for. Tokens carry no `expires_in`, as in Salesforce."""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
from aiohttp import BasicAuth, web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.grants import DeniedError, Grant, Grants
from deploy.sandbox.salesforce.limits import Meter
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
    used: float = 0.0


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
        self.grants = Grants()
        self._logins: dict[str, Meter] = {}

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
        found = self.tokens.get(value.strip()) if word in ("Bearer", "OAuth") else None
        life, now = self.org.settings.token_seconds, self.org.now()
        if found is not None and life and now - found.used > life:
            del self.tokens[value.strip()]
            return None
        if found is not None:
            found.used = now
        return found

    def end_user(self, user_id: str) -> None:
        """End every access token of a user, as when he is frozen."""
        self.tokens = {value: t for value, t in self.tokens.items() if t.user_id != user_id}

    def end_grant(self, grant: Grant) -> None:
        """Revoke what an app was granted: its refresh token and the access tokens under it."""
        self.grants.end(grant)
        for value in grant.access:
            self.tokens.pop(value, None)

    def grant(self, client_id: str, username: str) -> Grant:
        """What a user gives an app by logging in: at most five live, the oldest is ended."""
        made, out = self.grants.make(client_id, username)
        for old in out:
            self.end_grant(old)
        return made

    def expire_all(self) -> None:
        self.tokens.clear()

    async def token(self, request: web.Request) -> web.Response:
        """`POST /services/oauth2/token`."""
        self.org.counts["logins"] += 1
        form = await request.post()
        given = {name: value for name, value in form.items() if isinstance(value, str)}
        try:
            if self.org.faults.take("token-endpoint-down", "rate"):
                raise DeniedError("rate_limit_exceeded", "login rate exceeded")
            if self.org.faults.peek("revoke"):
                self.org.faults.note("revoke")
                raise DeniedError("invalid_grant", "expired access/refresh token")
            self._rated(given.get("client_id", ""))
            return self._granted(request, given)
        except DeniedError as denied:
            self.org.counts["logins refused"] += 1
            return web.json_response({"error": denied.error, "error_description": denied.description}, status=400, headers=_NO_STORE)

    def _rated(self, name: str) -> None:
        """Count a login of a user or app, before anything of it is used up. Errors: rate_limit_exceeded."""
        most = self.org.settings.logins_per_hour
        logins = self._logins.setdefault(name, Meter(3600))
        if most and logins.used(self.org.now()) >= most:
            raise DeniedError("rate_limit_exceeded", "login rate exceeded")
        logins.add(self.org.now())

    def _granted(self, request: web.Request, given: dict[str, str]) -> web.Response:
        match given.get("grant_type", ""):
            case "client_credentials":
                return self._answer(request, *self._by_secret(request, given), signed=True)
            case kind if kind == _JWT_GRANT:
                return self._answer(request, *self._by_assertion(request, given), signed=False)
            case "password":
                return self._answer(request, *self._by_password(request, given), signed=True)
            case "refresh_token":
                app = self._with_secret(request, given, required=False)
                grant, alive = self.grants.refreshed(
                    app.client_id, given.get("refresh_token", ""), rotate=bool(self.org.settings.rotate_refresh_tokens)
                )
                if not alive:
                    self.end_grant(grant)
                    raise DeniedError("invalid_grant", "expired access/refresh token")
                shown = grant if self.org.settings.rotate_refresh_tokens else None
                return self._answer(request, app, grant.username, signed=True, grant=grant, shown=shown)
            case "authorization_code":
                app = self._with_secret(request, given, required="code_verifier" not in given)
                username = self.grants.exchange(
                    app.client_id, given.get("code", ""), given.get("redirect_uri", ""), given.get("code_verifier", ""), self.org.now()
                )
                grant = self.grant(app.client_id, username)
                return self._answer(request, app, username, signed=True, grant=grant, shown=grant)
        raise DeniedError("unsupported_grant_type", "grant type not supported")

    async def authorize(self, request: web.Request) -> web.Response:
        """`GET /services/oauth2/authorize` of the web-server flow: the user is logged in and agrees at once; `login_hint` names another."""
        asked = request.query
        redirect_uri, state = asked.get("redirect_uri", ""), asked.get("state")
        if not redirect_uri.startswith(("http://", "https://")) or asked.get("client_id", "") not in self.apps:
            error = "invalid_client_id" if redirect_uri else "redirect_uri_missing"
            return web.Response(status=400, text=f"error={error}&error_description=client+identifier+invalid")
        app = self.apps[asked["client_id"]]
        back = {"state": state} if state is not None else {}
        if asked.get("response_type") != "code":
            back |= {"error": "unsupported_response_type", "error_description": "response type not supported"}
        elif asked.get("code_challenge") and asked.get("code_challenge_method", "S256") != "S256":
            back |= {"error": "invalid_request", "error_description": "invalid code challenge method"}
        elif self.org.faults.peek("revoke"):
            back |= {"error": "access_denied", "error_description": "end-user denied authorization"}
        else:
            username = asked.get("login_hint") or app.username
            back["code"] = self.grants.code(app.client_id, username, redirect_uri, asked.get("code_challenge"), self.org.now())
        raise web.HTTPFound(f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode(back)}")

    async def userinfo(self, request: web.Request) -> web.Response:
        """`GET /services/oauth2/userinfo`: whose token this is, and of which org."""
        token = self.token_of(request)
        if token is None:
            return web.Response(status=403, text="Bad_OAuth_Token")
        row = self.org.store.anywhere(token.user_id) or {}
        names = {"preferred_username": row.get("Username"), "name": row.get("Name"), "email": row.get("Email")}
        url = f"{base_url(request)}/id/{self.org.id}/{token.user_id}"
        return web.json_response({"sub": url, "user_id": token.user_id, "organization_id": self.org.id} | names)

    async def revoke(self, request: web.Request) -> web.Response:
        """`POST /services/oauth2/revoke`."""
        token = (await request.post()).get("token") or request.query.get("token")
        if not token:
            return web.json_response({"error": "invalid_request", "error_description": "Token parameter is missing"}, status=400)
        if grant := self.grants.by_token(str(token)):
            self.end_grant(grant)
        self.tokens.pop(str(token), None)
        return web.Response()

    def _with_secret(self, request: web.Request, given: dict[str, str], *, required: bool) -> App:
        """The app that asks; its secret is checked where it is sent or required."""
        client_id, secret = given.get("client_id", ""), given.get("client_secret", "")
        if header := request.headers.get("Authorization"):
            try:
                basic = BasicAuth.decode(header)
            except ValueError:
                raise DeniedError("invalid_client", "invalid client credentials") from None
            client_id, secret = basic.login, basic.password
        app = self._app(client_id)
        if (secret or required) and (app.secret is None or not hmac.compare_digest(app.secret.encode(), secret.encode())):
            raise DeniedError("invalid_client", "invalid client credentials")
        return app

    def _by_secret(self, request: web.Request, given: dict[str, str]) -> tuple[App, str]:
        app = self._with_secret(request, given, required=True)
        return app, app.username

    def _by_password(self, request: web.Request, given: dict[str, str]) -> tuple[App, str]:
        """Username and password, the security token behind the password; retiring in Salesforce."""
        app = self._with_secret(request, given, required=True)
        username = given.get("username", "")
        known = self.passwords.get(username)
        if known is None or not hmac.compare_digest(known.encode(), given.get("password", "").encode()):
            raise DeniedError("invalid_grant", "authentication failure")
        return app, username

    def _by_assertion(self, request: web.Request, given: dict[str, str]) -> tuple[App, str]:
        assertion = given.get("assertion", "")
        try:
            claims: dict[str, Any] = jwt.decode(assertion, options={"verify_signature": False})
        except jwt.PyJWTError:
            raise DeniedError("invalid_grant", "invalid assertion") from None
        app = self._app(str(claims.get("iss", "")))
        audiences = (*_AUDIENCES, base_url(request), f"{base_url(request)}/services/oauth2/token")
        error = DeniedError("invalid_grant", "invalid assertion")
        for key in app.keys:
            try:
                claims = jwt.decode(assertion, key, algorithms=["RS256"], audience=audiences, options={"require": ["exp", "aud", "sub"]})
            except jwt.ExpiredSignatureError:
                error = DeniedError("invalid_grant", "assertion has expired")
            except jwt.InvalidAudienceError:
                error = DeniedError("invalid_grant", "audience is invalid")
            except jwt.PyJWTError:
                continue
            else:
                break
        else:
            raise error
        if claims["exp"] > self.org.now() + _JWT_AHEAD:
            raise DeniedError("invalid_grant", "assertion expires too far in the future")
        username = str(claims["sub"])
        if username not in app.usernames:
            raise DeniedError("invalid_grant", "user hasn't approved this consumer")
        return app, username

    def _app(self, client_id: str) -> App:
        if client_id not in self.apps:
            raise DeniedError("invalid_client_id", "client identifier invalid")
        return self.apps[client_id]

    def _user(self, username: str) -> str | None:
        users = self.org.store.live(self.org.schema.objects["User"])
        return next((u["Id"] for u in users if u["Username"] == username and u["IsActive"]), None)

    def _answer(
        self, request: web.Request, app: App, username: str, *, signed: bool, grant: Grant | None = None, shown: Grant | None = None
    ) -> web.Response:
        """A new access token; `grant` is what it is given under, `shown` the grant whose refresh token the reply tells."""
        user_id = self._user(username)
        if user_id is None:
            raise DeniedError("inactive_user", "user is inactive")
        value = f"{self.org.id[:15]}!{secrets.token_urlsafe(72).replace('-', '.')}"
        self.tokens[value] = Token(user_id, app.client_id, self.org.now())
        if grant is not None:
            grant.access.add(value)
        identity = f"{base_url(request)}/id/{self.org.id}/{user_id}"
        body = {"access_token": value, "scope": "api", "instance_url": base_url(request), "id": identity, "token_type": "Bearer"}
        if grant is not None:
            body["scope"] = "refresh_token api"
        if shown is not None:
            body["refresh_token"] = shown.refresh
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
