"""Runs a sandbox server on this machine: the listening socket, the one line at start, the quick stop. Also guards the control paths."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

_MAX_LINE = 64 * 1024  # above Salesforce's own limit for addresses, which REST answers itself
STALLED = web.RequestKey("stalled", float)
"""Seconds of silence that a handler which writes its reply itself has to keep in the middle of it."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def refuse(message: str, status: int = 400) -> web.Response:
    """The answer of a control path to a request that makes no sense."""
    return json({"error": message}, status)


async def body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a control request; nothing sent is an empty one. Errors: ValueError with a text for the caller."""
    raw = await request.read()
    if not raw:
        return {}
    try:
        read = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"expected a JSON object, got {type(read).__name__}")
    return read


async def stall(request: web.Request, response: web.StreamResponse, part: bytes, seconds: float = 0.0) -> web.StreamResponse:
    """Write half of what was to be written, keep silent for so long, cut the socket."""
    await response.write(part[: len(part) // 2])
    await asyncio.sleep(seconds)
    if request.transport:
        request.transport.abort()
    return response


@web.middleware
async def control_guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Control paths only answer this machine, and tell what was wrong with a request instead of failing."""
    if not request.path.startswith("/sandbox/"):
        return await handler(request)
    with contextlib.suppress(ValueError):
        if request.remote and not ipaddress.ip_address(request.remote).is_loopback:
            return refuse("the sandbox's control paths answer this machine only", 403)
    try:
        return await handler(request)
    except ValueError as error:
        return refuse(str(error))


class Listener:
    """A server whose listening socket can be closed and opened again on the same port, as in a restart."""

    def __init__(self, app: web.Application, port: int = 0, host: str = "127.0.0.1") -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handle_signals=False, max_line_size=_MAX_LINE)
        self._site: web.SockSite | None = None
        self.port, self.host = port, host

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    async def start(self) -> None:
        await self._runner.setup()
        await self._open()

    async def _open(self) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((self.host, self.port))
        except OSError as error:
            sock.close()
            raise SystemExit(f"port {self.port} on {self.host} cannot be opened ({error.strerror}); choose another with --port") from None
        self.port = sock.getsockname()[1]
        self._site = web.SockSite(self._runner, sock, backlog=512)
        await self._site.start()

    async def refuse_for(self, seconds: float) -> None:
        """Cut every connection and refuse new ones for so long."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        server = self._runner.server
        for connection in list(server.connections) if server else []:
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(seconds)
        await self._open()

    async def stop(self) -> None:
        server = self._runner.server
        for connection in list(server.connections) if server else []:
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()


def run_forever(make: Callable[[], Awaitable[Listener]]) -> None:
    """Serve until SIGTERM or SIGINT, then stop at once."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        listener = await make()
        await stop.wait()
        await listener.stop()

    asyncio.run(main())
