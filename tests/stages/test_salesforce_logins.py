"""Every login flow over real HTTP, revoked access that comes back, refresh tokens that rotate under several processes."""

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiokafka import AIOKafkaConsumer
from pydantic import SecretStr
from rich.console import Console

from deploy import login as command
from deploy.check import check_files, check_online
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from deploy.status_view import render
from models.errors import HeadraceError, PausedError, TemporaryError
from models.flow import Salesforce
from models.settings import Settings
from streams import metrics
from streams.kafka import client_options
from streams.publish import read_all
from streams.salesforce.auth import Login
from streams.salesforce.rest import Rest
from streams.salesforce.tokens import Keys, Vault
from streams.status import collect
from tests.support.salesforce import Desk, arrived, connected, flow_for, inbound, installation, org, subscribed, until
from tests.support.token_endpoint import PASSWORD, TokenEndpoint

KEY = "a1" * 32
SEED = "seed-refresh-token"


def auth(flow: str, **more: Any) -> dict[str, Any]:
    return {"flow": flow, "client_id": CLIENT_ID} | more


def salesforce(url: str, given: dict[str, Any]) -> Salesforce:
    return Salesforce.model_validate({"type": "salesforce", "url": url, "auth": given})


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        yield found


@pytest.fixture
async def endpoint(desk: Desk) -> AsyncIterator[TokenEndpoint]:
    async with TokenEndpoint(desk.url) as found:
        yield found


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(KEY)))


def kept(store: Vault) -> str | None:
    with store.held("acme") as held:
        return held.grant.refresh_token if held.grant else None


async def test_each_flow_logs_in_and_reads(endpoint: TokenEndpoint, desk: Desk, vault: Vault) -> None:
    for at, given in (
        (desk.url, auth("client_credentials", client_secret=CLIENT_SECRET)),
        (endpoint.url, auth("web_server", refresh_token=SEED)),
        (endpoint.url, auth("password", client_secret=CLIENT_SECRET, username="u@example.org", password=PASSWORD)),
    ):
        login = Login("acme", salesforce(at, given), vault=vault)
        assert (await login.token()).instance_url == desk.url
        assert await Rest("acme", salesforce(at, given), login).count("Contact") == 0


async def test_a_hundred_calls_that_are_refused_at_once_cause_one_login(endpoint: TokenEndpoint, desk: Desk, vault: Vault) -> None:
    config = salesforce(endpoint.url, auth("web_server", refresh_token=SEED))
    rest = Rest("acme", config, Login("acme", config, vault=vault))
    await rest.limits()
    await desk.fault("expire-token")
    await asyncio.gather(*(rest.limits() for _ in range(100)))
    assert endpoint.counts["refresh_token"] == 2
    assert endpoint.counts["refused"] == 0


async def test_a_refresh_token_that_rotates_is_never_used_twice_by_several_processes(endpoint: TokenEndpoint, vault: Vault) -> None:
    """Each thread has a loop, a login and a vault of its own, as a process has; the lock is of the file."""
    config = salesforce(endpoint.url, auth("web_server", refresh_token=SEED))

    async def renew_often() -> None:
        login = Login("acme", config, vault=Vault(vault.folder, vault.installation, Keys(bytes.fromhex(KEY))))
        for _ in range(3):
            login.reject(await login.token())

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, renew_often()) for _ in range(4)))
    assert endpoint.counts["refresh_token"] == 12
    assert endpoint.counts["reused"] == endpoint.counts["refused"] == 0
    assert {kept(vault)} == endpoint.good


async def test_a_renewal_given_up_by_its_caller_still_keeps_the_new_refresh_token(endpoint: TokenEndpoint, vault: Vault) -> None:
    config = salesforce(endpoint.url, auth("web_server", refresh_token=SEED))
    endpoint.stall = asyncio.Event()

    async def killed_while_asking() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Login("acme", config, vault=vault).token(), 0.05)

    stopping = asyncio.create_task(asyncio.to_thread(asyncio.run, killed_while_asking()))  # ends its loop with the renewal under way
    await until(lambda: asyncio.sleep(0, endpoint.counts["refresh_token"]), lambda count: count == 1)
    endpoint.stall.set()
    await stopping
    assert {kept(vault)} == endpoint.good
    assert await Login("acme", config, vault=vault).token()


async def test_an_endpoint_that_is_down_or_refuses_is_told_apart_and_nothing_kept_is_lost(endpoint: TokenEndpoint, vault: Vault) -> None:
    login = Login("acme", salesforce(endpoint.url, auth("web_server", refresh_token=SEED)), vault=vault)
    login.reject(await login.token())
    before = kept(vault)
    endpoint.down = True
    with pytest.raises(TemporaryError):
        await login.token()
    endpoint.down, endpoint.refuse = False, True
    with pytest.raises(PausedError, match="headrace login"):
        await login.token()
    assert kept(vault) == before


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
    endpoint: TokenEndpoint, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = tmp_path / "flow.yaml"
    flow.write_text(
        f"connections:\n  acme: {{type: salesforce, url: '{endpoint.url}', auth: {{flow: web_server, client_id: {CLIENT_ID}}}}}\n"
        "targets: {warehouse: {type: postgres, dsn: x}}\nroutes: {people: {from: acme/Contact, to: warehouse, map: person}}\n"
    )
    for name, value in (("TOKEN_KEYS", KEY), ("TOKENS_DIR", str(tmp_path / "tokens")), ("INSTALLATION", "t")):
        monkeypatch.setenv(f"HEADRACE_{name}", value)
    config = salesforce(endpoint.url, auth("web_server"))
    waiting = Login("acme", config, vault=Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(KEY))))
    with pytest.raises(PausedError, match="headrace login acme"):
        await waiting.token()
    made: list[command.Grant] = []
    real = command.Grant

    def grant(given: Salesforce) -> command.Grant:
        made.append(real(given))
        return made[0]

    def browser() -> str:
        url = dict(pair.split("=", 1) for pair in made[0].url().split("?")[1].split("&"))
        code = endpoint.grant(url["code_challenge"], made[0].config.auth.callback)
        return f"{made[0].config.auth.callback}?code={code}&state={made[0].state}"

    monkeypatch.setattr(command, "Grant", grant)
    monkeypatch.setattr(command, "pasted", browser)
    assert await asyncio.to_thread(command.run_login, flow, "acme", True) == 0
    assert (await waiting.token()).instance_url == desk.url
    shown = capsys.readouterr()
    assert "acme: access to org" in shown.out
    assert not [secret for secret in (*endpoint.good, *endpoint.spent, KEY, made[0].verifier) if secret in shown.out + shown.err]


async def test_check_logs_in_with_what_is_kept_and_seals_it_with_the_first_key(endpoint: TokenEndpoint, tmp_path: Path) -> None:
    flow, old = tmp_path / "flow.yaml", "b2" * 32
    flow.write_text(
        f"connections:\n  acme: {{type: salesforce, url: '{endpoint.url}', auth: {{flow: web_server, client_id: {CLIENT_ID}}}}}\n"
        "targets: {warehouse: {type: postgres, dsn: 'postgresql://127.0.0.1:9/x'}}\n"
        "routes: {people: {from: acme/Contact, to: warehouse, map: person}}\n"
    )
    endpoint.rotate = False
    settings = Settings(token_keys=SecretStr(f"{KEY},{old}"), tokens=tmp_path / "tokens", installation="t", flow=flow)
    wrong = [m for m in await checked(flow, settings) if "connection acme" in m]
    assert len(wrong) == 1 and "headrace login acme" in wrong[0]
    with Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(old))).held("acme") as held:
        held.keep(SEED)
    assert not [m for m in await checked(flow, settings) if "acme" in m]
    assert kept(Vault(tmp_path / "tokens", "t", Keys(bytes.fromhex(KEY)))) == SEED


async def checked(flow: Path, settings: Settings) -> list[str]:
    found = check_files(flow, {})
    await check_online(found, settings)
    return [str(mistake) for mistake in found.document.mistakes]


@pytest.mark.kafka
async def test_access_that_is_revoked_and_given_back_loses_nothing_and_shows_that_it_is_paused(
    kafka: str, tmp_path: Path, endpoint: TokenEndpoint, desk: Desk
) -> None:
    gauge = metrics.PAUSED.labels("acme")
    async with installation(kafka, tmp_path) as made:
        settings = made.model_copy(update={"token_keys": SecretStr(KEY), "tokens": tmp_path / "tokens"})
        flow = flow_for(endpoint.url, auth=auth("web_server", refresh_token=SEED))
        with structlog.testing.capture_logs() as logs:
            async with subscribed(settings, flow) as task:
                await connected(desk, task)
                person, sent = await desk.create("Before"), 0
                for access in (True, False, True):
                    endpoint.refuse = not access
                    if not access:
                        await desk.fault("expire-token")
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
        assert endpoint.counts["reused"] == 0
        hidden = [*endpoint.good, *endpoint.spent, KEY]
        assert not [secret for secret in hidden if secret in str(logs)]
        assert not [secret for secret in hidden if secret.encode() in await everything(settings)]


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


async def test_an_instance_that_is_away_is_no_lost_login(endpoint: TokenEndpoint, vault: Vault) -> None:
    config = salesforce("http://127.0.0.1:9", auth("web_server", refresh_token=SEED))
    with pytest.raises(HeadraceError) as away:
        await Login("acme", config, vault=vault).token()
    assert isinstance(away.value, TemporaryError)
    assert kept(vault) is None
