"""A target server for the fault suite that writes down every effect it is told, with its sequence id, and breaks as a test says.

Two kinds of ledger stand side by side: one that compares turns as PostgreSQL does, one that takes whatever comes as Iterable does. It knows
nothing of Headrace but the JSON that tests/support/ledger_target.py sends.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

GARBAGE = b'<!DOCTYPE html>\n<html><body>{"results": [</body></html>'


@dataclass(frozen=True, slots=True)
class Entry:
    """One effect as it arrived. `applied` False: the ledger compares and held a later turn. `behind`: it was below what stood there."""

    key: str
    seq: int
    turn: int
    worker: int
    received: int
    at: float
    applied: bool
    behind: bool

    @property
    def milliseconds(self) -> float:
        """From its way into Kafka to here."""
        return self.at * 1000 - self.received


class Ledger:
    """One target. `fault` is what its next `times` requests meet (None: until `heal`)."""

    def __init__(self, name: str, *, compares: bool) -> None:
        self.name, self.compares = name, compares
        self.held: dict[str, tuple[int, int]] = {}  # key -> (turn, seq)
        self.entries: list[Entry] = []
        self.calls = 0
        self.fired: Counter[str] = Counter()
        self.changed = asyncio.Condition()
        self.caught, self.released = asyncio.Event(), asyncio.Event()
        self._fault, self._left = "", 0

    def fault(self, name: str, times: int | None = None) -> None:
        """down, 500, 429, unauthorized (nothing is done) · garbage, half, drop (done, then answered badly) · hold, hold-done (waits for
        `released` before or after it is done; `caught` says that a request is there).
        """
        self._fault, self._left = name, -1 if times is None else times
        self.caught.clear()
        self.released.clear()

    def heal(self) -> None:
        """No faults any more; what is held goes on."""
        self._fault = ""
        self.released.set()

    def _strike(self) -> str:
        name = self._fault
        if not name:
            return ""
        self.fired[name] += 1
        if self._left > 0:
            self._left -= 1
            if not self._left:
                self._fault = ""
        return name

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One call."""
        told = orjson.loads(await request.read())
        self.calls += 1
        fault = self._strike()
        await self._note()
        if fault == "down":
            return _cut(request)
        if fault in ("500", "429", "unauthorized"):
            status = 401 if fault == "unauthorized" else int(fault)
            return web.Response(status=status, text=f"no: {fault}", headers={"Retry-After": "1"} if status == 429 else {})
        if fault == "hold":
            await self._wait()
        results = [self._apply(effect, told["worker"]) for effect in told["effects"]]
        await self._note()
        if fault == "hold-done":
            await self._wait()
        if fault == "drop":
            return _cut(request)
        if fault == "garbage":
            return web.Response(body=GARBAGE, content_type="text/html")
        body = orjson.dumps({"results": results})
        if fault == "half":
            return await _half(request, body)
        return web.Response(body=body, content_type="application/json")

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that calls change."""
        async with self.changed:
            await self.changed.wait_for(true)

    def percentile(self, part: float, since: float, until: float) -> float:
        """Milliseconds from Kafka to here of what first arrived between two moments of time.time()."""
        first: dict[int, Entry] = {}
        for entry in self.entries:
            first.setdefault(entry.seq, entry)
        took = sorted(e.milliseconds for e in first.values() if since <= e.at <= until)
        return took[min(len(took) - 1, int(part * len(took)))] if took else float("nan")

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _wait(self) -> None:
        self.caught.set()
        await self.released.wait()

    def _apply(self, effect: dict[str, Any], worker: int) -> str:
        key, turn, seq = effect["key"], effect["turn"], effect["seq"]
        before = self.held.get(key, (-1, -1))
        applied = not self.compares or turn >= before[0]
        if applied:
            self.held[key] = (turn, seq)
        entry = Entry(key, seq, turn, worker, effect["received"], time.time(), applied, turn < before[0])
        self.entries.append(entry)
        return "written" if applied else "stale"


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)


async def _half(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


@asynccontextmanager
async def serving(*ledgers: Ledger) -> AsyncIterator[str]:
    """Serve these ledgers at <url>/<name>; gives the url."""
    app = web.Application(client_max_size=32 << 20)
    app.add_routes([web.post(f"/{ledger.name}", ledger.answer) for ledger in ledgers])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        for ledger in ledgers:
            ledger.heal()
        await runner.cleanup()
