"""Takes webhooks into Kafka: POST /hooks/<source>. A 2xx means Kafka has it; whatever else happens, the sender must try again.

It accepts every correctly signed body, also one that is no JSON or has no key (kept under its delivery id and counted): what a sender was
told we took is never dropped here. It never changes a body, and never answers with anything a stranger could learn from.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiokafka.errors import KafkaError

from models.envelope import Envelope, Kind, Reason
from models.errors import FatalError, PermanentError, SettingsError, TemporaryError
from models.flow import Flow, Webhook
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Output
from streams.health import Health
from streams.publish import Publisher
from streams.topics import Topics, ensure, sources
from streams.webhooks.signatures import Refusal, RefusedError, github_key, standard_key, verify_github, verify_standard

RETRY_AFTER = 10
"""Seconds a sender is asked to wait while Kafka is away."""
BODY_SECONDS = 30.0
PROBE_SECONDS = 2.0
KEY_CHARACTERS = 1000
KEEPABLE = 700_000
"""Bytes of the largest body taken, whatever the flow file allows: as a dead letter (base64) it must fit into one record of Kafka."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Source:
    """One webhook source, ready to be checked against."""

    name: str
    settings: Webhook
    keys: Sequence[bytes]

    @property
    def most(self) -> int:
        """Bytes a body may have."""
        return min(self.settings.max_bytes, KEEPABLE)

    def verify(self, request: web.Request, body: bytes) -> str:
        """The delivery id. Raises RefusedError."""
        if self.settings.signature == "github":
            return verify_github(self.keys, request.headers, body)
        return verify_standard(self.keys, request.headers, body, now=time.time(), tolerance=self.settings.tolerance)


def webhook_sources(flow: Flow) -> dict[str, Source]:
    """The webhook connections that a route reads. Raises SettingsError for a secret that cannot be one."""
    found = {}
    for name, connection in flow.connections.items():
        if not isinstance(connection, Webhook) or name not in sources(flow):
            continue
        keys = []
        for number, secret in enumerate(connection.secrets, 1):
            try:
                keys.append((standard_key if connection.signature == "standard" else github_key)(secret.get_secret_value()))
            except ValueError as error:
                raise SettingsError(f"connection {name}: secret {number} {error}: copy it again from the sender") from None
        found[name] = Source(name, connection, keys)
    return found


def key_of(body: bytes, path: str | None) -> str | None:
    """The record's id: text or whole number at the dotted path of a JSON object, else None. Pure; never raises.

    A number with a fraction is none: JSON numbers beyond 64 bits arrive as such, and two ids could become one.
    """
    if path is None:
        return None
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)
    return text if 0 < len(text) <= KEY_CHARACTERS else None


class Receiver:
    """The server. Between `start` and `stop` it answers, with 503 while Kafka is away."""

    def __init__(self, settings: Settings, flow: Flow, health: Health) -> None:
        self._settings, self._health, self._flow = settings, health, flow
        self._topics = Topics(settings.installation)
        self._sources = webhook_sources(flow)
        self._publisher = Publisher(settings)
        self._runner: web.AppRunner | None = None
        self._probe: asyncio.Task[None] | None = None
        self._kafka = asyncio.Event()
        self._away = asyncio.Event()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> str:
        """Listen; returns the base address. Raises SettingsError when the address cannot be used."""
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/hooks/{source}", self._hook)
        # A compressed body is signed compressed: it is kept as it came, and nobody's bomb unfolds here.
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=self._settings.drain_seconds)
        await self._runner.setup()
        host, port = self._settings.receiver_host, self._settings.receiver_port
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"webhooks cannot be received on {host}:{port} ({error.strerror}): set HEADRACE_RECEIVER_PORT to a free port "
                "(0 chooses one) and HEADRACE_RECEIVER_HOST to an address of this machine"
            ) from None
        self._kafka_is_away("not asked yet")
        self._probe = asyncio.create_task(self._watch_kafka())
        self._probe.add_done_callback(self._probe_ended)
        url = f"http://{self._runner.addresses[0][0]}:{self._runner.addresses[0][1]}"
        log.info("receiving webhooks", url=f"{url}/hooks/<source>", sources=sorted(self._sources))
        return url

    async def stop(self) -> None:
        """Take no more, finish what is being taken, close."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._publisher.stop()

    async def _hook(self, request: web.Request) -> web.Response:
        source = self._sources.get(request.match_info["source"])
        if source is None:
            return _answer(404, "-", "unknown_source", "no such source in the flow file")
        if request.method != "POST":
            return _answer(405, source.name, "malformed", "only POST", Allow="POST")
        try:
            body = await asyncio.wait_for(_body(request, source.most), BODY_SECONDS)
        except TimeoutError:
            return _answer(408, source.name, "malformed", f"the body did not arrive within {BODY_SECONDS:.0f} s", Connection="close")
        except ConnectionError:
            return _answer(400, source.name, "malformed", "the sender hung up before the end of the body", Connection="close")
        if body is None:
            return _answer(413, source.name, "too_large", f"more than {source.most} bytes", Connection="close")
        try:
            delivery = source.verify(request, body)
        except RefusedError as error:
            log.warning("webhook refused", source=source.name, reason=error.refusal.name.lower())
            stale = error.refusal in (Refusal.TOO_OLD, Refusal.TOO_NEW)
            return _answer(401, source.name, "stale" if stale else "bad_signature", error.refusal.value)
        if not body:
            return _answer(400, source.name, "malformed", "the body is empty")
        return await self._keep(source, delivery, body)

    async def _keep(self, source: Source, delivery: str, body: bytes) -> web.Response:
        key = key_of(body, source.settings.key)
        envelope = Envelope(kind=Kind.HOOK, reason=Reason.LIVE, received=int(time.time() * 1000), delivery=delivery)
        output = Output(self._topics.inbound(source.name), (key or delivery).encode(), body, envelope.headers())
        try:
            if not self._kafka.is_set():
                raise TemporaryError("Kafka is away")
            await self._publisher.send([output])
        except TemporaryError as error:
            self._kafka_is_away(error.reason)
            return _unavailable(source.name)
        except PermanentError as error:
            return _answer(413, source.name, "too_large", error.reason)
        except FatalError as error:
            self._fail(error)
            return _unavailable(source.name)
        metrics.RECEIVED.labels(source.name, "", Reason.LIVE.value).inc()
        return _answer(202, source.name, "accepted" if key else "accepted_without_key", delivery)

    def _fail(self, error: FatalError) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _probe_ended(self, probe: asyncio.Task[None]) -> None:
        """An error of it ends the process: without the probe every delivery would be refused for ever."""
        if not probe.cancelled() and (error := probe.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)

    def _kafka_is_away(self, why: str) -> None:
        self._kafka.clear()
        self._away.set()
        self._health.ready("kafka", False, why)

    async def _watch_kafka(self) -> None:
        """Ask until Kafka answers and the topics are there; then sleep until a delivery fails."""
        wanted = [topic for topic in self._topics.all(self._flow, self._settings) if topic.name in map(self._topics.inbound, self._sources)]
        while True:
            await self._away.wait()
            try:
                await asyncio.wait_for(ensure(self._settings, wanted), 3 * PROBE_SECONDS)
            except (TemporaryError, KafkaError, TimeoutError, OSError) as error:
                self._health.ready("kafka", False, f"not to be reached ({type(error).__name__})")
                await asyncio.sleep(PROBE_SECONDS)
            except FatalError as error:
                self._fail(error)
                return
            else:
                self._away.clear()
                self._kafka.set()
                self._health.ready("kafka", True)


async def run_receiver(
    settings: Settings, flow: Flow, *, stop: asyncio.Event, health: Health, started: Callable[[str], None] = lambda _: None
) -> None:
    """Receive until `stop`. `started` gets the address. Raises SettingsError (address, secrets), FatalError (topics)."""
    receiver = Receiver(settings, flow, health)
    started(await receiver.start())
    stopping = asyncio.ensure_future(stop.wait())
    ends: set[asyncio.Future[Any]] = {stopping, receiver.failed}
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if receiver.failed.done():
            receiver.failed.result()
    finally:
        stopping.cancel()
        await receiver.stop()


async def _body(request: web.Request, most: int) -> bytes | None:
    """The raw body, None when it is longer than `most`."""
    if (request.content_length or 0) > most:
        return None
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def _answer(status: int, connection: str, outcome: str, text: str, **headers: str) -> web.Response:
    metrics.HOOKS.labels(connection, outcome).inc()
    name = "accepted" if status < 300 else "error"
    return web.json_response({name: text}, status=status, headers=headers)


def _unavailable(connection: str) -> web.Response:
    return _answer(503, connection, "unavailable", "cannot be kept now: send it again", **{"Retry-After": str(RETRY_AFTER)})
