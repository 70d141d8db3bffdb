"""One login for everybody, renewed ahead of its end, never stormed; and `headrace login`, which begins it."""

import asyncio
import io
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from deploy import login as command
from deploy.check import check_files, login_notes
from deploy.login import Grant, called_back, run_login
from models.errors import HeadraceError, PausedError, SettingsError, TemporaryError
from models.flow import Salesforce
from streams.salesforce import auth
from streams.salesforce.auth import AHEAD, BURST, LOCKOUT, Login
from streams.salesforce.oauth import Token, parse_token, refusal
from streams.salesforce.tokens import Keys, Vault
from tests.support.logs import record_logs

SECRETS = {"client_secret": "s3cr3t-of-the-app", "password": "hunter2", "refresh_token": "5Aep861-seed"}


def config(flow: str = "client_credentials", **given: Any) -> Salesforce:
    known = {"flow": flow, "client_id": "key", "username": "u@example.org", **SECRETS} | given
    return Salesforce.model_validate({"type": "salesforce", "url": "https://acme.my.salesforce.com", "auth": known})


class Endpoint:
    """Stands for the token endpoint: what it was sent, what it says."""

    def __init__(self) -> None:
        self.forms: list[dict[str, str]] = []
        self.error: HeadraceError | None = None
        self.refresh: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, form: dict[str, str]) -> Token:
        self.forms.append(form)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Token(f"t{len(self.forms)}", "https://x", "00D", refresh=self.refresh)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def login(endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, found: Salesforce | None = None, **more: Any) -> Login:
    made = Login("acme", found or config(), clock=clock, **more)
    monkeypatch.setattr(made, "_ask", endpoint)
    return made


async def settled() -> None:
    """Until every other task has gone as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_logins_of_one_connection_are_one(endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = [login(endpoint, clock, monkeypatch) for _ in range(100)]
    assert len({(await token).value for token in [asyncio.ensure_future(one.token()) for one in callers]}) == 1
    old = await callers[0].token()
    for one in callers:
        one.reject(old)
    assert len({token.value for token in await asyncio.gather(*(one.token() for one in callers))}) == 1
    assert len(endpoint.forms) == 2
    other = login(endpoint, clock, monkeypatch, config(client_id="another"))
    assert (await other.token()).value == "t3"


async def test_over_three_hours_nobody_waits_or_is_refused_and_the_token_is_never_old(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, born = login(endpoint, clock, monkeypatch), dict[str, float]()
    for _ in range(180):
        token = await one.token()
        assert clock.now - born.setdefault(token.value, clock.now) < 7200
        await settled()
        clock.now += 60
    assert len(endpoint.forms) == 2


async def test_a_renewal_that_fails_is_tried_again_while_the_old_token_serves(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = login(endpoint, clock, monkeypatch)
    first = await one.token()
    endpoint.error = TemporaryError("away")
    clock.now += AHEAD * 7200 + 1
    for _ in range(100):
        assert await one.token() is first
        await settled()
        clock.now += 1
    assert len(endpoint.forms) == 3
    endpoint.error = None
    clock.now += 60
    assert await one.token() is first
    await settled()
    assert await one.token() is not first


async def test_a_token_that_ended_is_not_handed_out_when_there_is_no_other(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = login(endpoint, clock, monkeypatch)
    await one.token()
    endpoint.error = TemporaryError("away")
    clock.now += 7200
    with pytest.raises(TemporaryError, match="away"):
        await one.token()


async def test_who_gives_up_waiting_does_not_end_the_login_for_the_others(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = login(endpoint, clock, monkeypatch)
    endpoint.gate.clear()
    first, second = asyncio.create_task(one.token()), asyncio.create_task(one.token())
    await settled()
    first.cancel()
    await settled()
    endpoint.gate.set()
    assert (await second).value == "t1"
    assert len(endpoint.forms) == 1


async def test_a_refused_login_stays_refused_for_whoever_asks_too_often(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = login(endpoint, clock, monkeypatch)
    endpoint.error = PausedError("revoked")
    for _ in range(50):
        with pytest.raises(PausedError, match="revoked"):
            await one.token()
    assert len(endpoint.forms) == BURST
    endpoint.error = None
    clock.now += 5
    assert await one.token()


async def test_a_key_file_that_goes_away_ends_the_start_and_later_only_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Login, "_ask", Endpoint())
    monkeypatch.setattr("jwt.encode", lambda *_, **__: "assertion")
    one = Login("acme", config("jwt", key_file="acme.pem"), tmp_path)
    with pytest.raises(SettingsError, match=r"acme\.pem"):
        await one.token()
    (tmp_path / "acme.pem").write_text("key")
    token = await one.token()
    one.reject(token)
    (tmp_path / "acme.pem").unlink()
    with pytest.raises(PausedError, match=r"acme\.pem"):
        await one.token()
    (tmp_path / "acme.pem").write_text("key")
    one._state.recent.clear()
    assert await one.token() is not token


async def test_a_wrong_password_is_tried_once_a_minute_so_that_it_locks_nobody_out(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = login(endpoint, clock, monkeypatch, config("password"))
    endpoint.error = PausedError("authentication failure")
    for _ in range(int(2 * LOCKOUT)):
        with pytest.raises(PausedError):
            await one.token()
        clock.now += 1
    assert len(endpoint.forms) == 2
    assert endpoint.forms[0] == {
        "grant_type": "password",
        "client_id": "key",
        "client_secret": SECRETS["client_secret"],
        "username": "u@example.org",
        "password": "hunter2",
    }


@pytest.mark.parametrize(("flow", "missing"), [("password", "password"), ("password", "username"), ("client_credentials", "client_secret")])
async def test_what_a_flow_needs_is_named_when_it_is_missing(flow: str, missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        await Login("acme", config(flow, **{missing: None})).token()


def test_a_kept_login_without_a_key_stops_the_start_with_the_name_of_the_variable() -> None:
    with pytest.raises(SettingsError, match="HEADRACE_TOKEN_KEYS"):
        Login("acme", config("web_server"))


def kept(store: Vault) -> str | None:
    with store.held("acme") as held:
        return held.grant.refresh_token if held.grant else None


async def test_a_rotating_refresh_token_is_kept_before_the_access_token_is_used(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Vault(tmp_path, "t", Keys(b"k" * 32))
    one = login(endpoint, clock, monkeypatch, config("web_server"), vault=store)
    endpoint.refresh = "second"
    token = await one.token()
    assert endpoint.forms[0]["refresh_token"] == SECRETS["refresh_token"]
    assert (kept(store), token.refresh) == ("second", None)
    one.reject(token)
    endpoint.refresh = "third"
    token = await one.token()
    assert (endpoint.forms[1]["refresh_token"], kept(store)) == ("second", "third")
    one.reject(token)
    endpoint.refresh = None
    await one.token()
    assert (endpoint.forms[2]["refresh_token"], kept(store)) == ("third", "third")


async def test_a_new_refresh_token_in_the_flow_file_wins_over_the_kept_one_and_an_old_one_does_not(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Vault(tmp_path, "t", Keys(b"k" * 32))
    endpoint.refresh = "second"
    await login(endpoint, clock, monkeypatch, config("web_server"), vault=store).token()
    await login(endpoint, clock, monkeypatch, config("web_server", refresh_token="granted-anew"), vault=store).token()
    assert [form["refresh_token"] for form in endpoint.forms] == [SECRETS["refresh_token"], "granted-anew"]
    await login(endpoint, clock, monkeypatch, config("web_server", refresh_token=None), vault=store).token()
    assert endpoint.forms[2]["refresh_token"] == "second"


async def test_one_login_seals_a_kept_token_anew_when_the_key_changed(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = b"o" * 32, b"n" * 32
    with Vault(tmp_path, "t", Keys(old)).held("acme") as held:
        held.keep("granted")
    plain = config("web_server", refresh_token=None)
    await login(endpoint, clock, monkeypatch, plain, vault=Vault(tmp_path, "t", Keys(new, old))).token()
    assert kept(Vault(tmp_path, "t", Keys(new))) == "granted"


async def test_without_any_grant_the_connection_waits_for_headrace_login(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Vault(tmp_path, "t", Keys(b"k" * 32))
    one = login(endpoint, clock, monkeypatch, config("web_server", refresh_token=None), vault=store)
    with pytest.raises(PausedError, match="headrace login acme"):
        await one.token()
    assert not endpoint.forms
    with store.held("acme") as held:
        held.keep("granted")
    assert (await one.token()).value == "t1"


async def test_a_disk_without_room_spends_no_refresh_token(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    one = login(endpoint, clock, monkeypatch, config("web_server"), vault=Vault(tmp_path / "file", "t", Keys(b"k" * 32)))
    with pytest.raises(TemporaryError):
        await one.token()
    assert not endpoint.forms


async def test_no_secret_is_in_a_repr_a_log_or_an_error(
    endpoint: Endpoint, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, logs = Vault(tmp_path, "t", Keys(b"k" * 32)), record_logs(monkeypatch, auth)
    endpoint.refresh = "5Aep861-rotated"
    shown = []
    for flow in ("web_server", "password", "client_credentials"):
        one = login(endpoint, clock, monkeypatch, config(flow), vault=store)
        shown += [repr(one), repr(config(flow)), repr(await one.token())]
    endpoint.error = refusal(400, {"error": "invalid_grant", "error_description": "bad refresh_token=5Aep861-rotated password: hunter2"})
    clock.now += 7200
    with pytest.raises(PausedError) as refused:
        await one.token()
    everything = "".join([*shown, str(refused.value), repr(refused.value), str(logs)])
    assert "login refused" in everything
    assert not [secret for secret in (*SECRETS.values(), "5Aep861-rotated") if secret in everything]


def test_a_token_is_not_sent_to_an_instance_without_https() -> None:
    body = {"access_token": "t", "instance_url": "http://na1.salesforce.com"}
    with pytest.raises(TemporaryError, match="https"):
        parse_token(body, secure=True)
    assert parse_token(body).value == "t"


FLOW = """\
connections:
  acme: {type: salesforce, url: "%s", auth: {flow: %s, client_id: sandbox-consumer-key, client_secret: s, username: u, password: p%s}}
targets: {warehouse: {type: postgres, dsn: x}}
routes: {people: {from: acme/Contact, to: warehouse, map: person}}
"""


def flow_file(folder: Path, flow: str, url: str = "https://acme.my.salesforce.com", more: str = "") -> Path:
    path = folder / "flow.yaml"
    path.write_text(FLOW % (url, flow, more))
    return path


def test_check_warns_of_the_flow_that_retires_and_of_no_other(tmp_path: Path) -> None:
    assert "retires" in login_notes(check_files(flow_file(tmp_path, "password"), {}))[0]
    assert login_notes(check_files(flow_file(tmp_path, "client_credentials"), {})) == []


def test_check_names_the_missing_key_of_a_kept_login(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = flow_file(tmp_path, "web_server")
    assert command_check(path, {}) == 1
    assert "HEADRACE_TOKEN_KEYS" in capsys.readouterr().out
    assert command_check(path, {"HEADRACE_TOKEN_KEYS": "a" * 64}) == 0


def command_check(path: Path, environ: dict[str, str]) -> int:
    from deploy.check import run_check

    return run_check(path, offline=True, as_json=True, environ=environ)


def test_the_address_asks_for_a_code_that_only_this_request_can_use() -> None:
    one, other = Grant(config("web_server")), Grant(config("web_server"))
    asked = {name: values[0] for name, values in parse_qs(urlsplit(one.url()).query).items()}
    assert asked["code_challenge_method"] == "S256" and asked["state"] == one.state and asked["redirect_uri"] == one.config.auth.callback
    assert one.verifier not in one.url() and SECRETS["client_secret"] not in one.url()
    assert one.code(f"http://localhost:1717/OauthRedirect?code=abc&state={one.state}\n") == "abc"
    for wrong in (
        "",
        "abc",
        "http://localhost:1717/OauthRedirect?code=abc",
        f"http://localhost:1717/OauthRedirect?code=abc&state={other.state}",
        f"http://localhost:1717/OauthRedirect?state={one.state}",
        f"http://localhost:1717/OauthRedirect?code=&state={one.state}",
        "?error=access_denied&error_description=end-user+denied+authorization",
    ):
        with pytest.raises(SettingsError):
            one.code(wrong)


async def test_only_the_answer_to_this_request_ends_the_wait(unused_tcp_port: int) -> None:
    grant = Grant(config("web_server", callback=f"http://127.0.0.1:{unused_tcp_port}/back"))
    waiting = asyncio.create_task(called_back(grant, patience=30))
    async with aiohttp.ClientSession() as browser:
        statuses = []
        for query in ("?code=forged&state=x", "", f"?code=good&state={grant.state}"):
            while not waiting.done():
                try:
                    async with browser.get(f"{grant.config.auth.callback}{query}") as page:
                        statuses.append(page.status)
                        break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.01)
    assert statuses == [400, 400, 200]
    assert grant.code(await waiting) == "good"


async def test_nobody_who_grants_and_a_port_in_use_are_told(unused_tcp_port: int) -> None:
    grant = Grant(config("web_server", callback=f"http://127.0.0.1:{unused_tcp_port}/back"))
    with pytest.raises(SettingsError, match="nobody granted"):
        await called_back(grant, patience=0.01)
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", unused_tcp_port)
    async with taken:
        with pytest.raises(TemporaryError, match="--paste"):
            await called_back(grant, patience=0.01)


def test_only_connections_that_need_it_are_logged_in_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="by itself"):
        run_login(flow_file(tmp_path, "client_credentials"), "acme", paste=True)
    monkeypatch.delenv("HEADRACE_TOKEN_KEYS", raising=False)
    with pytest.raises(SettingsError, match="HEADRACE_TOKEN_KEYS"):
        run_login(flow_file(tmp_path, "web_server"), "acme", paste=True)


def test_an_empty_paste_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(SettingsError, match="nothing was pasted"):
        command.pasted()
