"""The receiver with a real Kafka: a 2xx means Kafka has the bytes, and nothing else is ever answered with one."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from models.envelope import Envelope, Kind, Reason
from models.errors import FatalError, SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams import metrics
from streams.consume import read_all
from streams.engine.stage import Output
from streams.health import Health
from streams.publish import MAX_RECORD, Publisher
from streams.topics import Topics
from streams.webhooks.receiver import KEEPABLE, Receiver, key_of, run_receiver
from tests.support.broker import settings_for, topics
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.kafka
SECRET = "whsec_" + base64.b64encode(b"a made-up key of 24 bytes").decode()
FLOW = Flow.model_validate(
    {
        "connections": {
            "shop": {"type": "webhook", "secrets": [SECRET], "key": "data.id", "max_bytes": 10_000},
            "forge": {"type": "webhook", "signature": "github", "secrets": ["s3"]},
            "unread": {"type": "webhook", "secrets": [SECRET]},
        },
        "targets": {"warehouse": {"type": "postgres"}},
        "routes": {"all": {"from": ["shop", "forge"], "to": "warehouse", "map": "m"}},
    }
)


def signed(body: bytes, delivery: str = "msg_1", at: int | None = None) -> dict[str, str]:
    """Headers of a correct delivery."""
    at = int(time.time()) if at is None else at
    digest = hmac.digest(base64.b64decode(SECRET[6:]), f"{delivery}.{at}.".encode() + body, hashlib.sha256)
    return {"webhook-id": delivery, "webhook-timestamp": str(at), "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


class Desk:
    """A running receiver and a client."""

    def __init__(self, settings: Settings, receiver: Receiver, health: Health, url: str, http: aiohttp.ClientSession) -> None:
        self.settings, self.receiver, self.health, self.url, self.http = settings, receiver, health, url, http

    async def post(self, body: bytes, headers: dict[str, str] | None = None, source: str = "shop", **more: str) -> int:
        """Status of a POST, signed unless told otherwise."""
        headers = (signed(body) if headers is None else headers) | more
        async with self.http.post(f"{self.url}/hooks/{source}", data=body, headers=headers) as answer:
            self.answer = answer
            return answer.status

    async def kept(self, source: str = "shop") -> list[tuple[bytes | None, bytes | None, Envelope]]:
        """Key, value and envelope of what Kafka has."""
        records = await read_all(self.settings, Topics(self.settings.installation).inbound(source))
        return [(r.key, r.value, Envelope.from_headers(r.headers)) for r in records]

    async def until_ready(self) -> None:
        """Kafka is known to be there."""
        await asyncio.wait_for(self.receiver._kafka.wait(), 30)


async def desk_on(settings: Settings, flow: Flow = FLOW) -> AsyncIterator[Desk]:
    health = Health(settings, "receive")
    receiver = Receiver(settings, flow, health)
    url = await receiver.start()
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        yield Desk(settings, receiver, health, url, http)
    await receiver.stop()


@pytest.fixture
async def desk(kafka: str, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = settings_for(kafka, tmp_path, receiver_port=0)
    async with topics(settings, []):
        async for desk in desk_on(settings):
            await desk.until_ready()
            yield desk


async def test_what_got_a_2xx_is_in_kafka_as_it_came_under_its_key(desk: Desk) -> None:
    body = b'{"data" : {"id":"c-7", "n": 12345678901234567890123}}  '
    assert await desk.post(body, signed(body, "msg_a")) == 202
    [(key, value, envelope)] = await desk.kept()
    assert (key, value) == (b"c-7", body)
    assert (envelope.kind, envelope.reason, envelope.delivery, envelope.epoch) == (Kind.HOOK, Reason.LIVE, "msg_a", 0)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {}}',
        b'{"data": null}',
        b'{"data": [{"id": "c-7"}]}',
        b'{"data": {"id": null}}',
        b'{"data": {"id": ["c-7"]}}',
        b'{"data": {"id": ""}}',
        b'{"data": {"id": true}}',
        b'{"data": {"id": 1e30}}',
        b'{"data.id": "c-7"}',
        b"[]",
        b"null",
        b"not json",
        b"\x00\xff",
        b"[" * 5000,
        b'{"data": {"id": "' + b"x" * 1001 + b'"}}',
    ],
)
async def test_a_signed_body_without_its_key_is_kept_under_its_delivery_id_and_counted(desk: Desk, body: bytes) -> None:
    counter = metrics.HOOKS.labels("shop", "accepted_without_key")
    before = counter._value.get()
    assert await desk.post(body) == 202
    assert [(key, value) for key, value, _ in await desk.kept()] == [(b"msg_1", body)]
    assert counter._value.get() == before + 1


def test_whole_numbers_are_keys_too() -> None:
    assert key_of(b'{"id": 9007199254740993}', "id") == "9007199254740993"
    assert key_of(b'{"id": "\\ud83d\\ude00"}', "id") == "😀"


async def test_github_style_is_kept_under_its_delivery_header(desk: Desk) -> None:
    body = b'{"zen": "x"}'
    headers = {"X-Hub-Signature-256": "sha256=" + hmac.new(b"s3", body, hashlib.sha256).hexdigest(), "X-GitHub-Delivery": "72d3"}
    assert await desk.post(body, headers, "forge") == 202
    assert [(key, envelope.delivery) for key, _, envelope in await desk.kept("forge")] == [(b"72d3", "72d3")]


@pytest.mark.parametrize(
    ("change", "status", "outcome"),
    [
        ({"webhook-signature": "v1,AAAA"}, 401, "bad_signature"),
        ({"webhook-signature": ""}, 401, "bad_signature"),
        ({"webhook-timestamp": "soon"}, 401, "bad_signature"),
        ({"webhook-timestamp": "1"}, 401, "stale"),
        ({"webhook-timestamp": "99999999999"}, 401, "stale"),
        ({"webhook-id": ""}, 401, "bad_signature"),
    ],
)
async def test_what_is_not_signed_as_it_must_be_is_refused_counted_and_not_kept(
    desk: Desk, change: dict[str, str], status: int, outcome: str
) -> None:
    counter = metrics.HOOKS.labels("shop", outcome)
    before, body = counter._value.get(), b'{"data": {"id": "c-7"}}'
    assert await desk.post(body, signed(body) | change) == status
    assert counter._value.get() == before + 1
    assert await desk.kept() == []


async def test_other_faults_have_their_status_and_keep_nothing(desk: Desk) -> None:
    assert await desk.post(b"x" * 10_001) == 413
    assert await desk.post(b"") == 400
    for source in ("nobody", "unread", "shop%2f..", "%00", "SHOP"):
        assert await desk.post(b"{}", source=source) == 404, source
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        async with desk.http.request(method, f"{desk.url}/hooks/shop") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert await desk.kept() == []


async def test_a_body_without_end_is_cut_off_at_the_cap(desk: Desk) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 10_000

    try:
        async with desk.http.post(f"{desk.url}/hooks/shop", data=endless(), headers=signed(b"x")) as answer:
            assert answer.status == 413
    except aiohttp.ClientConnectionError:
        pass  # the connection was closed while we still sent: refused as well
    assert await desk.kept() == []


async def test_a_body_that_could_not_become_a_dead_letter_is_not_taken(kafka: str, tmp_path: Path) -> None:
    raw = json.loads(FLOW.model_dump_json(by_alias=True))
    raw["connections"]["shop"] |= {"secrets": [SECRET], "max_bytes": 5_000_000}
    settings = settings_for(kafka, tmp_path, receiver_port=0)
    async with topics(settings, []):
        async for desk in desk_on(settings, Flow.model_validate(raw | {"routes": {"all": raw["routes"]["all"] | {"from": ["shop"]}}})):
            await desk.until_ready()
            assert await desk.post(b"x" * KEEPABLE) == 202
            assert await desk.post(b"x" * (KEEPABLE + 1)) == 413
            [(_, value, _)] = await desk.kept()
            assert len(base64.b64encode(value or b"")) < MAX_RECORD


async def test_a_compressed_body_is_kept_compressed(desk: Desk) -> None:
    body = b"\x1f\x8b not really gzip"
    assert await desk.post(body, signed(body) | {"Content-Encoding": "gzip"}) == 202
    assert [value for _, value, _ in await desk.kept()] == [body]


@pytest.mark.parametrize("length", [b"5", b"-1", b"abc", b"99999999999999999999", b"1, 2"])
async def test_a_wrong_content_length_keeps_nothing(desk: Desk, length: bytes) -> None:
    body = b'{"data": {"id": "c-7"}}'
    host, port = desk.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [b"POST /hooks/shop HTTP/1.1", b"Host: x", b"Content-Length: " + length]
    lines += [f"{name}: {value}".encode() for name, value in signed(body).items()]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert b"202" not in answer.split(b"\r\n")[0]
    assert await desk.kept() == []


async def test_a_sender_that_hangs_up_is_no_fault_of_ours_and_keeps_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    before = metrics.HOOKS.labels("shop", "malformed")._value.get()
    host, port = desk.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /hooks/shop HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n{")
    assert b"100" in await asyncio.wait_for(reader.readline(), 20)  # it reads the body now
    writer.transport.abort()
    async with asyncio.timeout(20):
        while metrics.HOOKS.labels("shop", "malformed")._value.get() == before:  # noqa: ASYNC110 - a counter wakes nobody
            await asyncio.sleep(0.01)
    assert await desk.post(b'{"data": {"id": 1}}') == 202
    assert len(await desk.kept()) == 1
    assert "Error handling request" not in caplog.text


async def test_while_kafka_is_away_503_with_retry_after_and_not_ready(tmp_path: Path) -> None:
    settings = Settings(kafka="127.0.0.1:1", installation="t-away", receiver_port=0, state=tmp_path)
    async for desk in desk_on(settings):
        assert await desk.post(b'{"data": {"id": "c-7"}}') == 503
        assert int(desk.answer.headers["Retry-After"]) > 0
        assert desk.health.readyz()[0] is False
        assert await desk.post(b"{}", signed(b"x")) == 401  # a stranger learns nothing of our state


async def test_goes_on_by_itself_once_kafka_is_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Publisher):
        async def send(self, outputs: Sequence[Output]) -> None:
            raise TemporaryError("Kafka is away")

    said: list[tuple[str, bool]] = []
    ready = desk.health.ready

    def told(name: str, ok: bool, why: str = "") -> None:
        said.append((name, ok))
        ready(name, ok, why)

    monkeypatch.setattr(desk.health, "ready", told)
    real, desk.receiver._publisher = desk.receiver._publisher, Away(desk.settings)
    assert await desk.post(b'{"data": {"id": "c-7"}}') == 503
    desk.receiver._publisher = real
    await desk.until_ready()
    assert await desk.post(b'{"data": {"id": "c-7"}}') == 202
    assert len(await desk.kept()) == 1
    assert said == [("kafka", False), ("kafka", True)]


async def test_started_while_kafka_is_away_it_takes_hooks_once_kafka_answers(kafka: str, tmp_path: Path) -> None:
    host, _, port = kafka.partition(":")
    async with TcpProxy(host, int(port)) as proxy:
        proxy.down()
        settings = settings_for(kafka, tmp_path, receiver_port=0)
        async with topics(settings, []):
            async for desk in desk_on(settings.model_copy(update={"kafka": f"127.0.0.1:{proxy.port}"})):
                await asyncio.wait_for(proxy.refused.wait(), 30)
                assert await desk.post(b'{"data": {"id": "c-7"}}') == 503
                proxy.up()
                await desk.until_ready()
                assert await desk.post(b'{"data": {"id": "c-7"}}') == 202


async def test_a_stranger_with_odd_headers_gets_no_2xx_and_no_500(desk: Desk) -> None:
    for odd in ({"webhook-id": "ü"}, {"webhook-signature": "v1," * 500}, {"webhook-timestamp": "9" * 4000}):
        assert await desk.post(b"{}", signed(b"{}") | odd) == 401
    assert await desk.kept() == []


async def test_stops_when_told_and_ends_when_topics_are_not_as_they_must_be(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, receiver_port=0)
    async with topics(settings, [Topics(settings.installation).inbound("shop")]):
        stop = asyncio.Event()
        await run_receiver(settings, FLOW, stop=stop, health=Health(settings, "receive"), started=lambda _: stop.set())
        wrong = settings.model_copy(update={"partitions": 3})
        with pytest.raises(FatalError, match="HEADRACE_PARTITIONS=4"):
            await asyncio.wait_for(run_receiver(wrong, FLOW, stop=asyncio.Event(), health=Health(wrong, "receive")), 60)


async def test_a_secret_that_cannot_be_one_is_named_and_not_shown(tmp_path: Path) -> None:
    raw = json.loads(FLOW.model_dump_json(by_alias=True))
    raw["connections"]["shop"]["secrets"] = [SECRET, "not base64 at all!"]
    with pytest.raises(SettingsError, match="connection shop: secret 2 is not base64") as caught:
        Receiver(Settings(state=tmp_path), Flow.model_validate(raw), Health(Settings(), "receive"))
    assert "at all" not in str(caught.value)
