"""`headrace login`: a person grants a connection access in the browser, and the refresh token that comes of it is kept, sealed.

The web-server flow with PKCE. The code comes back to a loopback address of this machine, or is pasted where the browser runs elsewhere.
Nothing it prints is worth anything to who reads over the shoulder: the code is spent, tokens are never shown.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from aiohttp import web

from deploy.context import choose_connection, read_all
from models.errors import SettingsError, TemporaryError
from models.flow import Salesforce
from models.scrub import scrub
from streams.log import set_up_logging
from streams.salesforce.oauth import ask, client
from streams.salesforce.tokens import Vault, need_vault, print_of

PATIENCE = 300.0
SCOPE = "api refresh_token"
DONE = "Access is granted; this window can be closed."
REFUSED = "That was not the answer Headrace waits for; see the command."


class Grant:
    """One request for access: what is sent to the browser, what must come back."""

    def __init__(self, config: Salesforce) -> None:
        self.config = config
        self.state, self.verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)

    def url(self) -> str:
        """Where the person says yes."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self.config.auth.client_id,
            "redirect_uri": self.config.auth.callback,
            "scope": SCOPE,
            "state": self.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{self.config.url.rstrip('/')}/services/oauth2/authorize?{urlencode(query)}"

    def code(self, answer: str) -> str:
        """The code in the address that the browser was sent to. Raises SettingsError: denied, cut off, or of another request."""
        found = {name: values[0] for name, values in parse_qs(urlsplit(answer.strip()).query).items()}
        if "error" in found:
            said = scrub(f"{found['error']} ({found.get('error_description', '')})", 200)
            raise SettingsError(f"Salesforce did not grant access: {said}; allow it, or check the callback and the scopes of the app")
        if not hmac.compare_digest(found.get("state", "").encode(), self.state.encode()):
            raise SettingsError("this is no answer to this request: copy the whole address, of the page that was opened last")
        if not found.get("code"):
            raise SettingsError("the address holds no code: copy the whole address")
        return found["code"]

    def form(self, code: str) -> dict[str, str]:
        """What buys the tokens."""
        return {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.config.auth.callback,
            "code_verifier": self.verifier,
            **client(self.config),
        }


def run_login(flow_path: Path | None, name: str | None, paste: bool) -> int:
    """0 when the token is kept."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    connection = choose_connection(flow, name)
    config = flow.connections[connection]
    if not isinstance(config, Salesforce) or config.auth.flow != "web_server":
        raise SettingsError(f"connection {connection} logs in by itself: only `flow: web_server` needs this command")
    vault, grant = need_vault(Vault.of(settings), connection), Grant(config)
    print(f"Open this address in a browser, and allow access as the integration user of {connection}:\n\n{grant.url()}\n", flush=True)
    answer = pasted() if paste else asyncio.run(called_back(grant))
    token = asyncio.run(ask(connection, config, grant.form(grant.code(answer))))
    if token.refresh is None:
        raise SettingsError("Salesforce gave no refresh token: add the scope refresh_token (perform requests at any time) to the app")
    seed = config.auth.refresh_token
    with vault.held(connection) as held:
        held.keep(token.refresh, print_of(seed.get_secret_value()) if seed else "")
    who = f", user {token.user}" if token.user else ""
    print(f"{connection}: access to org {token.org}{who} is kept in {vault.path(connection)}; what waits for it goes on within a minute.")
    return 0


def pasted() -> str:
    """The address that a person pastes."""
    print("Then paste the address that the browser ends at (the page itself need not load), and press Enter:", flush=True)
    line = sys.stdin.readline()
    if not line.strip():
        raise SettingsError("nothing was pasted")
    return line


async def called_back(grant: Grant, patience: float = PATIENCE) -> str:
    """The address that the browser of this machine was sent to, of this request only. Raises SettingsError, TemporaryError."""
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    place = urlsplit(grant.config.auth.callback)

    async def take(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        if not hmac.compare_digest(request.query.get("state", "").encode(), grant.state.encode()):
            return web.Response(status=400, text=REFUSED, headers=headers)
        if not found.done():
            found.set_result(str(request.rel_url))
        return web.Response(text=DONE if request.query.get("code") else REFUSED, headers=headers)

    app = web.Application()
    app.router.add_get(place.path, take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", place.port).start()
        except OSError as error:
            raise TemporaryError(
                f"the callback {grant.config.auth.callback} cannot be served here ({error.strerror}): free the port, or use --paste"
            ) from None
        print(f"Waiting for the browser at {grant.config.auth.callback} (is it on another machine? Ctrl-C, and use --paste) …", flush=True)
        async with asyncio.timeout(patience):
            return await found
    except TimeoutError:
        raise SettingsError(f"nobody granted access within {patience:.0f} s: run the command again") from None
    finally:
        await runner.cleanup()
