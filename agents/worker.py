"""The composition root of a worker: settings and flow in, a Faust app with every stage out. The only place that knows all of them.

`headrace worker` calls `run_worker`; `faust -A agents.worker worker` takes `app`, which is built when it is asked for, never at import.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import faust
import structlog

from agents.duplicates import duplicates_stage
from agents.elsewhere import Elsewhere
from agents.fetch import fetch_stage
from agents.holds import Holds
from agents.map_versions import Fields, Versions
from agents.org_fields import follow_org
from agents.process import process_stage
from agents.refill import with_refill
from agents.rejections import Rejections, no_gates
from agents.targets import make_target
from agents.targets.base import TargetLike
from agents.writer import writer_stage
from models.errors import FatalError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.app import create_app
from streams.engine.stage import Stage
from streams.flow_file import load_flow
from streams.garbage import collect_rarely
from streams.health import Health
from streams.topics import Topics, compares, ensure

WATCH_SECONDS = 1.0
LEAVE_SECONDS = 5.0

log = structlog.get_logger()


def build_stages(
    settings: Settings, flow: Flow, targets: Mapping[str, TargetLike], maps: Versions, rejections: Rejections | None = None
) -> list[Stage]:
    """Process, a fetch stage per Salesforce connection that a route reads, a writer per target that a route writes to."""
    fields = Fields(maps)
    holds = Holds(settings, flow)
    gates = rejections.gates if rejections is not None else no_gates
    stages = [with_refill(process_stage(flow, settings, maps, holds.routes, gates), settings, maps, holds.routes, gates)]
    stages += [
        fetch_stage(name, flow, settings, fields, maps, partial(follow_org, maps, flow))
        for name, connection in flow.connections.items()
        if isinstance(connection, Salesforce) and flow.sobjects(name)
    ]
    stages += [duplicates_stage(settings)] if compares(flow) else []
    elsewhere = Elsewhere(settings).routes
    stages += [
        writer_stage(name, target, flow, settings, maps, elsewhere=elsewhere, held=partial(holds.target, name), rejections=rejections)
        for name, target in targets.items()
        if maps.columns(name)
    ]
    return [replace(stage, hold=holds) for stage in stages]


async def build_app(settings: Settings, flow: Flow) -> tuple[faust.App, list[Stage], Versions]:
    """The app of a worker, with topics and versions of maps made where they are missing.

    Raises SettingsError, KafkaError, TemporaryError, FatalError (topics, versions of Faust or aiokafka).
    """
    await ensure(settings, Topics(settings.installation).all(flow, settings))
    targets = _targets(flow, settings.installation)
    maps = await Versions(settings, flow, targets, strict=True).begin()
    rejections = Rejections(settings, flow, targets, lambda: maps.now)
    stages = build_stages(settings, flow, targets, maps, rejections if rejections.aimed else None)
    app = create_app(settings, stages)
    app.task(maps.follow)
    app.task(maps.watch)
    if rejections.aimed:
        app.task(rejections.follow)
    return app, stages, maps


def _targets(flow: Flow, installation: str) -> dict[str, TargetLike]:
    return {name: make_target(name, target, installation) for name, target in flow.targets.items()}


async def run_worker(settings: Settings, flow: Flow, *, health: Health, stop: asyncio.Event) -> None:
    """Work until `stop`, then finish what is in hand.

    Raises SettingsError, KafkaError (away at the start), FatalError (topics, or the app ended by itself).
    """
    app, stages, maps = await build_app(settings, flow)
    health.maps = maps.broken
    collect_rarely()
    health.ready("partitions", False, "joining the group")
    if not await _started(app, stop):
        return
    log.info("worker started", installation=settings.installation, routes=list(flow.routes), targets=list(flow.targets))
    watch = asyncio.create_task(_watch(app, health))
    try:
        ended = await app.wait(stop.wait())
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    await app.stop()
    for stage in stages:
        await _close(stage)
    if ended.stopped:
        raise FatalError("the worker ended by itself; the log above says why")
    log.info("worker stopped")


async def _started(app: faust.App, stop: asyncio.Event) -> bool:
    """Start, which waits for the group; False when the stop came first: then nothing is in hand and the group forgets us by itself."""
    starting, stopping = asyncio.create_task(app.start()), asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped before the group was joined")
        starting.cancel()
        await asyncio.wait({starting, asyncio.create_task(app.stop())}, timeout=LEAVE_SECONDS)
        return False
    stopping.cancel()
    await starting
    return True


async def _close(stage: Stage) -> None:
    """Close the clients of a handler that has some (a method's owner, or a callable object), and of what holds it."""
    for owner in (getattr(stage.handler, "__self__", stage.handler), stage.hold):
        if (close := getattr(owner, "close", None)) is not None:
            await close()


async def _watch(app: faust.App, health: Health) -> None:
    while True:
        ready = app.engine.opened.is_set()
        health.ready("partitions", ready, "" if ready else "waiting for partitions or recovering their tables")
        await asyncio.sleep(WATCH_SECONDS)


def __getattr__(name: str) -> Any:
    """`app`, for the faust command: made from the environment and the flow file it names; topics are made first."""
    if name != "app":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    settings = Settings()
    flow = load_flow(settings.flow, os.environ)
    app, _, _ = asyncio.run(build_app(settings, flow))
    globals()["app"] = app
    return app
