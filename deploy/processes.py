"""The long-lived processes: worker, subscribe, receive. Each is a parent (deploy/supervise.py) and the child that does the work.

Here meet the settings, the health server, the stop signals, and the function that is the process; nothing is decided.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from deploy.context import choose_connections, read_all, read_settings
from deploy.supervise import PROCESS, RESTARTS, Supervisor
from models.flow import Flow
from models.settings import Settings
from streams.health import Health
from streams.log import set_up_logging
from streams.topics import Topics, ensure

Run = Callable[[Settings, Flow, Health, asyncio.Event], Awaitable[None]]


def supervise(role: str, arguments: Sequence[str]) -> int:
    """The parent of a child `headrace <role> --no-supervise <arguments>`; its exit code."""
    settings = read_settings()
    set_up_logging(settings.log_format)
    command = [sys.executable, "-m", "deploy", role, "--no-supervise", *arguments]
    return Supervisor(command, role, grace=settings.drain_seconds + 5).run(os.environ)


def worker(flow_path: Path | None) -> None:
    """Until SIGTERM or SIGINT."""

    async def run(settings: Settings, flow: Flow, health: Health, stop: asyncio.Event) -> None:
        from agents.worker import run_worker

        await run_worker(settings, flow, health=health, stop=stop)

    _serve("worker", flow_path, run)


def subscribe(flow_path: Path | None, connection: str | None, start_from: Literal["new", "retained"] | None) -> None:
    """Until SIGTERM or SIGINT."""

    async def run(settings: Settings, flow: Flow, health: Health, stop: asyncio.Event) -> None:
        from agents.map_versions import Fields, maps_in_use
        from agents.org_fields import FieldWatch
        from agents.verify import living
        from agents.verify_schedule import Schedule
        from streams.salesforce.subscriber import run_subscriber

        maps = await maps_in_use(settings, flow)
        fields, wanted, known = Fields(maps), Fields(maps, gone=True), partial(living, settings, flow)

        async def one(name: str) -> None:
            verifying, watch = Schedule(settings, flow, name), FieldWatch(settings, flow, name, maps)
            beside = [watch.run, verifying.run] if verifying.wanted else [watch.run]
            if any(route.fields for route in flow.routes.values()):
                await watch.first()
            await run_subscriber(
                settings, flow, name, fields, start_from=start_from, health=health, stop=stop, living=known, wanted=wanted, beside=beside
            )

        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(maps.follow())
                await asyncio.wait([group.create_task(one(name)) for name in choose_connections(flow, connection)])
                following.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    _serve("subscribe", flow_path, run)


def receive(flow_path: Path | None) -> None:
    """Until SIGTERM or SIGINT."""

    async def run(settings: Settings, flow: Flow, health: Health, stop: asyncio.Event) -> None:
        from streams.webhooks.receiver import run_receiver

        await run_receiver(settings, flow, health=health, stop=stop)

    _serve("receive", flow_path, run)


def _serve(role: str, flow_path: Path | None, run: Run) -> None:
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format)
    health = Health(settings, role, flow=flow, name=os.environ.get(PROCESS), restarts=int(os.environ.get(RESTARTS, "0")))

    async def main() -> None:
        stop = stop_signals()
        if role != "receive":  # which answers 503 while Kafka is away, and makes its topics later
            await ensure(settings, Topics(settings.installation).all(flow, settings))
        await health.start()
        try:
            await run(settings, flow, health, stop)
        finally:
            await health.stop()

    asyncio.run(main())


def stop_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, for the running loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
