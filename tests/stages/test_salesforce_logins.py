"""Every login flow over real HTTP, revoked access that comes back, refresh tokens that rotate under several processes."""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer
from pydantic import SecretStr
from rich.console import Console

from deploy import login as command
from deploy.check import check_files, check_online
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, PASSWORD, USERNAME
from deploy.status_view import render
from models.errors import PausedError, TemporaryError
from models.flow import Salesforce
from models.settings import Settings
from streams import metrics
from streams.consume import read_all
from streams.kafka import client_options
from streams.salesforce import auth as auth_module
from streams.salesforce import cometd, retry, subscriber
from streams.salesforce.auth import Login
from streams.salesforce.rest import Rest
from streams.salesforce.tokens import Keys, Vault
from streams.status import collect
from tests.support.logs import record_logs
from tests.support.salesforce import Desk, arrived, connected, flow_for, inbound, installation, org, subscribed, until

KEY = "a1" * 32


def auth(flow: str, **more: Any) -> dict[str, Any]:
    return {"flow": flow, "client_id": CLIENT_ID} | more


def salesforce(url: str, given: dict[str, Any]) -> Salesforce:
    return Salesforce.model_validate({"type": "salesforce", "url": url, "auth": given})


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        await found.call("POST", "settings", rotate_refresh_tokens=1)
        yield found


@pytest.fixture
async def config(desk: Desk) -> Salesforce:
    """A connection that begins with a refresh token."""
    return salesforce(desk.url, auth("web_server", refresh_token=await granted(desk)))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(KEY)))


async def granted(desk: Desk) -> str:
    return str((await desk.call("POST", "grants"))["refresh_token"])


async def logins(desk: Desk) -> tuple[int, int]:
    """How many were asked for, how many refused."""
    counts = (await desk.state())["counts"]
    return counts.get("logins", 0), counts.get("logins refused", 0)


def kept(store: Vault) -> str | None:
    with store.held("acme") as held:
        return held.grant.refresh_token if held.grant else None


async def test_each_flow_logs_in_and_reads(desk: Desk, config: Salesforce, vault: Vault) -> None:
    for found in (
        salesforce(desk.url, auth("client_credentials", client_secret=CLIENT_SECRET)),
        config,
        salesforce(desk.url, auth("password", client_secret=CLIENT_SECRET, username=USERNAME, password=PASSWORD)),
    ):
        login = Login("acme", found, vault=vault)
        assert (await login.token()).instance_url == desk.url
        assert (await Rest("acme", found, login).count("Contact", "count")).total == 0
    assert await logins(desk) == (3, 0)


async def test_a_hundred_calls_that_are_refused_at_once_cause_one_login(desk: Desk, config: Salesforce, vault: Vault) -> None:
    rest = Rest("acme", config, Login("acme", config, vault=vault))
    await rest.limits()
    await desk.fault("expire-token")
    await asyncio.gather(*(rest.limits() for _ in range(100)))
    assert await logins(desk) == (2, 0)


async def test_a_refresh_token_that_rotates_is_never_used_twice_by_several_processes(desk: Desk, config: Salesforce, vault: Vault) -> None:
    """Each thread has a loop, a login and a vault of its own, as a process has; the lock is of the file."""

    async def renew_often() -> None:
        login = Login("acme", config, vault=Vault(vault.folder, vault.installation, Keys(bytes.fromhex(KEY))))
        for _ in range(3):
            login.reject(await login.token())

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, renew_often()) for _ in range(4)))
    assert await logins(desk) == (12, 0)
    assert await Login("acme", config, vault=vault).token()


async def test_a_renewal_given_up_by_its_caller_still_keeps_the_new_refresh_token(desk: Desk, config: Salesforce, vault: Vault) -> None:
    await desk.fault("slow", variant="token", seconds=1)

    async def ended_while_asking() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Login("acme", config, vault=vault).token(), 0.1)

    await asyncio.to_thread(asyncio.run, ended_while_asking())  # its loop ends with the renewal under way
    assert kept(vault) is not None
    assert await Login("acme", config, vault=vault).token()
    assert await logins(desk) == (2, 0)


async def test_access_that_is_ended_needs_a_new_grant_and_nothing_kept_is_lost_meanwhile(
    desk: Desk, config: Salesforce, vault: Vault
) -> None:
    login = Login("acme", config, vault=vault)
    login.reject(await login.token())
    before = kept(vault)
    await desk.call("DELETE", "grants")
    with pytest.raises(PausedError, match="headrace login"):
        await login.token()
    assert kept(vault) == before
    with vault.held("acme") as held:
        held.keep(await granted(desk), held.grant.seed if held.grant else "")
    assert await login.token()


@pytest.mark.parametrize("variant", ["html", "cut", "rate"])
async def test_a_token_endpoint_that_is_down_is_waited_for_and_no_refusal(desk: Desk, variant: str) -> None:
    login = Login("acme", salesforce(desk.url, auth("client_credentials", client_secret=CLIENT_SECRET)))
    await desk.fault("token-endpoint-down", variant=variant)
    with pytest.raises(TemporaryError) as down:
        await login.token()
    assert (down.value.retry_after is not None) == (variant == "rate")
    await desk.call("DELETE", "faults?name=token-endpoint-down")
    assert await login.token()


async def test_access_is_granted_in_a_browser_and_kept_for_the_processes_that_wait(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unused_tcp_port: int
) -> None:
    given = auth("web_server", callback=f"http://localhost:{unused_tcp_port}/OauthRedirect")
    flow = flow_file(tmp_path, desk.url, f"{{flow: web_server, client_id: {CLIENT_ID}, callback: '{given['callback']}'}}")
    for name, value in (("TOKEN_KEYS", KEY), ("TOKENS_DIR", str(tmp_path / "tokens")), ("INSTALLATION", "t")):
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    store = Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(KEY)))
    waiting = Login("acme", salesforce(desk.url, given), vault=store)
    with pytest.raises(PausedError, match="headrace login acme"):
        await waiting.token()
    running = asyncio.create_task(asyncio.to_thread(command.run_login, flow, "acme", False))
    shown = await until(lambda: asyncio.sleep(0, capsys.readouterr().out), lambda out: "Waiting for the browser" in out)
    address = next(line for line in shown.splitlines() if line.startswith(desk.url))
    async with aiohttp.ClientSession() as browser, browser.get(address) as page:
        assert page.status == 200, await page.text()
    assert await running == 0
    assert (await waiting.token()).instance_url == desk.url
    said = capsys.readouterr()
    assert "acme: access to org" in said.out
    assert not [secret for secret in (kept(store) or "", KEY) if secret in shown + said.out + said.err]


def flow_file(folder: Path, url: str, given: str) -> Path:
    path = folder / "flow.yaml"
    path.write_text(
        f"connections:\n  acme: {{type: salesforce, url: '{url}', auth: {given}}}\n"
        "targets: {warehouse: {type: postgres, dsn: 'postgresql://127.0.0.1:9/x'}}\n"
        "routes: {people: {from: acme/Contact, to: warehouse, map: person}}\n"
    )
    return path


async def test_check_logs_in_with_what_is_kept_and_seals_it_with_the_first_key(desk: Desk, tmp_path: Path) -> None:
    flow, old = flow_file(tmp_path, desk.url, f"{{flow: web_server, client_id: {CLIENT_ID}}}"), "b2" * 32
    await desk.call("POST", "settings", rotate_refresh_tokens=0)
    settings = Settings(token_keys=SecretStr(f"{KEY},{old}"), tokens=tmp_path / "tokens", installation="t", flow=flow)
    wrong = [m for m in await checked(flow, settings) if "connection acme" in m]
    assert len(wrong) == 1 and "headrace login acme" in wrong[0]
    with Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(old))).held("acme") as held:
        held.keep(token := await granted(desk))
    assert not [m for m in await checked(flow, settings) if "acme" in m]
    assert kept(Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(KEY)))) == token


async def checked(flow: Path, settings: Settings) -> list[str]:
    found = check_files(flow, {})
    await check_online(found, settings)
    return [str(mistake) for mistake in found.document.mistakes]


@pytest.mark.kafka
async def test_access_that_is_revoked_and_given_back_loses_nothing_and_shows_that_it_is_paused(
    kafka: str, tmp_path: Path, desk: Desk, config: Salesforce, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge, logs = metrics.PAUSED.labels("acme"), record_logs(monkeypatch, auth_module, cometd, retry, subscriber)
    async with installation(kafka, tmp_path) as made:
        settings = made.model_copy(update={"token_keys": SecretStr(KEY), "tokens": tmp_path / "tokens"})
        flow = flow_for(desk.url, auth=config.auth.model_dump())
        async with subscribed(settings, flow) as task:
            await connected(desk, task)
            person, sent = await desk.create("Before"), 0
            for access in (True, False, True):
                if access:
                    await desk.call("DELETE", "faults?name=revoke")
                else:
                    await desk.fault("revoke")
                for _ in range(20):
                    sent += 1
                    await desk.update(person, f"sequence {sent}")
                if access:
                    wanted = await desk.published("Contact")
                    await until(lambda: arrived(settings, "Contact"), wanted.__eq__, task=task)
                await until(lambda: asyncio.sleep(0, gauge._value.get()), float(not access).__eq__, task=task)
                if not access:
                    status = await collect(settings, flow)
                    assert [channel.loss is not None for channel in status.channels] == [True]  # hours until the backlog is lost
            assert not task.done()
        assert sequence(await inbound(settings, "Contact")) == list(range(1, sent + 1))
        assert [entry["event"] for entry in logs if entry.get("alert")] == ["login refused"]
        assert "access is back" in [entry["event"] for entry in logs]
        with Vault(settings.tokens, settings.installation, Keys(bytes.fromhex(KEY))).held("acme") as held:
            token = held.grant.refresh_token if held.grant else ""
        seed = config.auth.refresh_token.get_secret_value() if config.auth.refresh_token else ""
        assert token and token != seed
        assert not [secret for secret in (token, seed, KEY) if secret in str(logs)]
        assert not [secret for secret in (token, seed, KEY) if secret.encode() in await everything(settings)]


def sequence(records: list[Any]) -> list[int]:
    """The numbers that events carry, in the order of the topic; doubled ones are there twice."""
    return [int(raw.split(b"sequence ")[1].split(b'"')[0]) for r in records if b"sequence " in (raw := r.value or b"")]


async def everything(settings: Settings) -> bytes:
    """All that stands in the installation's topics."""
    consumer = AIOKafkaConsumer(**client_options(settings))
    await consumer.start()
    try:
        names = [name for name in await consumer.topics() if name.startswith(f"{settings.installation}.")]
    finally:
        await consumer.stop()
    assert names
    return repr([await read_all(settings, name) for name in names]).encode()


@pytest.mark.kafka
async def test_status_names_a_paused_connection_and_what_to_do(kafka: str, tmp_path: Path) -> None:
    async with installation(kafka, tmp_path) as settings:
        found = replace(await collect(settings, flow_for("http://localhost")), paused=["acme", "warehouse"])
    out = io.StringIO()
    Console(file=out, width=400).print(render(found))
    text = out.getvalue()
    assert "connection acme is paused, because Salesforce refuses it" in text
    assert "target warehouse is paused" in text
