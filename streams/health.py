"""Health of a process: /metrics, /healthz and /readyz from a thread of its own, and the heartbeat that tells `status` it is alive.

The thread answers also while the event loop is busy; it may read what the loop wrote, and never waits for it. Kafka away stops the
heartbeat and the lag figures, never the process and never the answers.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import orjson
import structlog
from aiokafka.errors import KafkaError
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from models.errors import HeadraceError, SettingsError
from models.flow import Flow
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Output
from streams.lag import LagWatch, disk_free
from streams.publish import Publisher
from streams.topics import Topics, ensure

TICK = 0.5
"""Seconds between two signs of life of the event loop."""

log = structlog.get_logger()


class Health:
    """One per process. `role` is a word of a closed set (worker, subscribe, receive, snapshot, replay): it is a metric label.

    flow       given: the process also asks the broker for the lag of every stage (all long-lived processes do)
    name       process id in the `processes` topic; a supervised child gets one that survives its restarts
    restarts   how often the parent started this process again
    stuck      seconds without a tick of the event loop after which /healthz says no
    beat       seconds between two heartbeats and two lag measurements
    """

    def __init__(
        self,
        settings: Settings,
        role: str,
        *,
        flow: Flow | None = None,
        name: str | None = None,
        restarts: int = 0,
        stuck: float = 30.0,
        beat: float = 5.0,
    ) -> None:
        self.role, self.name = role, name or f"{role}@{socket.gethostname()}:{os.getpid()}"
        self._settings, self._flow, self._restarts, self._stuck, self._beat = settings, flow, restarts, stuck, beat
        self._parts: dict[str, tuple[bool, str]] = {}
        self._ticked = time.monotonic()
        self._server: ThreadingHTTPServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.started = int(time.time() * 1000)
        self.maps: Mapping[str, str] = {}
        """By route why the map file of this process is not used."""

    @property
    def url(self) -> str:
        """Base address, without a slash at the end. Only after `start`."""
        if self._server is None:
            raise RuntimeError("Health.url is known after Health.start()")
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def ready(self, name: str, ok: bool, why: str = "") -> None:
        """Say that a part (kafka, subscription, targets…) is ready, or why not. The process is ready when it has parts and all are."""
        self._parts[name] = (ok, why)

    def healthz(self) -> tuple[bool, str]:
        """Does the event loop turn?"""
        silent = time.monotonic() - self._ticked
        if silent > self._stuck:
            return False, f"the event loop has not answered for {silent:.0f} s"
        return True, "ok"

    def readyz(self) -> tuple[bool, str]:
        """Is every part ready? One line per part."""
        parts = sorted(self._parts.items())
        if not parts:
            return False, "starting: no part is ready yet"
        lines = [f"{name}: {'ok' if ok else 'not ready'}{f', {why}' if why else ''}" for name, (ok, why) in parts]
        return all(ok for _, (ok, _) in parts), "\n".join(lines)

    async def start(self) -> None:
        """Serve, tick and beat. Raises SettingsError when the address cannot be used."""
        address = (self._settings.metrics_host, self._settings.metrics_port)
        try:
            self._server = _Server(address, self)
        except OSError as error:
            raise SettingsError(
                f"/metrics cannot be served on {address[0]}:{address[1]} ({error.strerror}): "
                "set HEADRACE_METRICS_PORT to a free port (0 chooses one) and HEADRACE_METRICS_HOST to an address of this machine"
            ) from None
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="health", daemon=True).start()
        metrics.UP.labels(self.role, version("headrace")).set(1)
        metrics.STARTS.labels(self.role).set(self._restarts)
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._beats())]
        if self._flow is not None:
            watch = LagWatch(self._settings, self._flow)
            self._tasks.append(asyncio.create_task(self._again("lag", watch.measure, watch.close)))
        log.info("health served", url=self.url, role=self.role)

    async def stop(self) -> None:
        """End the tasks, take the process off the list, close the address."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.shutdown)
            server.server_close()

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(TICK)

    async def _beats(self) -> None:
        names, publisher = Topics(self._settings.installation), Publisher(self._settings)
        topic = names.processes
        missing = [t for t in names.all(self._flow, self._settings) if t.name == topic] if self._flow else []

        async def say(value: bytes | None) -> None:
            await publisher.send([Output(topic, self.name.encode(), value)])

        async def beat() -> None:
            metrics.DISK_FREE.set(disk_free(self._settings.state))
            if missing:  # a record for a topic that does not exist makes one on many brokers, with any number of partitions
                await ensure(self._settings, missing)
                missing.clear()
            await say(orjson.dumps(self._heartbeat()))

        async def leave() -> None:
            with contextlib.suppress(HeadraceError, TimeoutError):
                await asyncio.wait_for(say(None), 2)
            await publisher.stop()

        await self._again("heartbeat", beat, leave)

    def _heartbeat(self) -> dict[str, str | int | list[str] | dict[str, str]]:
        return {
            "role": self.role,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "metrics": f"{self.url}/metrics",
            "at": int(time.time() * 1000),
            "started": self.started,
            "restarts": self._restarts,
            "maps": {route: problem[:1000] for route, problem in self.maps.items()},
            "routes": list(self._flow.routes) if self._flow and self.role == "worker" else [],
        }

    async def _again(self, what: str, work: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]) -> None:
        """Repeat; say once when it stops working and once when it works again."""
        away = False
        try:
            while True:
                try:
                    await work()
                    if away:
                        log.info("again possible", what=what)
                    away = False
                except (HeadraceError, KafkaError) as error:
                    if not away:
                        log.warning("not possible now", what=what, reason=str(error))
                    away = True
                await asyncio.sleep(self._beat)
        finally:
            await close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name == "posix"

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        self.health = health
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10  # a client that says nothing holds a thread no longer than this

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encode(REGISTRY), kind)
        elif path in ("/healthz", "/readyz"):
            ok, text = self.server.health.healthz() if path == "/healthz" else self.server.health.readyz()
            self._answer(200 if ok else 503, f"{text}\n".encode())
        else:
            self._answer(404, b"here are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 (the standard library's spelling)

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is no event."""
