"""Stock faust-streaming in a process of its own, losing events as cases L1-L15 say: `python -m tests.support.stock_worker PLAN`.

Nothing of our engine is in it: transport, assignor, tables and recovery are Faust's, agents are written as its guide shows. An event is
"done" when its output is in Kafka; what is committed and not done is lost.
"""

import asyncio
import os
import signal
import sys
from typing import Any

import faust
import orjson
from mode.supervisors import CrashingSupervisor

from tests.support.stock_plan import GUILTY, HEAD, LARGE, PAD, Plan


def seq(event: Any) -> int:
    """Its number."""
    value = event.value
    return int((orjson.loads(value) if isinstance(value, bytes) else value)["seq"])


class Lossy:
    """The agents of a plan; each case has topics of its own."""

    def __init__(self, app: faust.App, plan: Plan) -> None:
        self.app, self.plan = app, plan
        if "L12" in plan.cases:
            self.seen = app.Table("seen", partitions=1)
        for case in plan.cases:
            value = {} if case == "L14" else {"value_type": bytes, "value_serializer": "raw"}
            options = {"L4": {"supervisor_strategy": CrashingSupervisor}, "L6": {"concurrency": 2}, "L8": {"concurrency": 2}}
            source = app.topic(plan.source(case), key_type=bytes, key_serializer="raw", **value)
            app.agent(source, name=case, **options.get(case, {}))(getattr(self, case.lower()))

    def out(self, case: str) -> Any:
        """Topic of the outputs."""
        return self.app.topic(self.plan.out(case), key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

    async def send(self, case: str, event: Any, pad: int = 0, **where: int) -> Any:
        """Hand an output over; the future of its delivery."""
        return await self.out(case).send(key=b"k", value=orjson.dumps({"seq": seq(event)}) + b" " * pad, **where)

    async def done(self, case: str, event: Any, pad: int = 0, **where: int) -> None:
        """Its output is delivered."""
        await (await self.send(case, event, pad, **where))

    async def each(self, case: str, stream: Any, times: int = 1) -> None:
        """Per event, with a fault."""
        async for event in stream.events():
            if seq(event) == GUILTY and self.plan.first(case, times):
                raise RuntimeError(f"{case}: a fault of the moment")
            await self.done(case, event)

    async def taken(self, case: str, stream: Any, times: int = 1) -> None:
        """Per batch, with a fault."""
        async for events in stream.take_events(10, within=0.5):
            if self.plan.struck(case) < times and any(seq(event) >= GUILTY for event in events) and self.plan.first(case, times):
                raise RuntimeError(f"{case}: a fault of the moment")
            for event in events:
                await self.done(case, event)

    async def disordered(self, case: str, stream: Any) -> None:
        """Two actors: one is long at an event, the other goes on."""
        async for event in stream.events():
            if seq(event) == HEAD and self.plan.first(case):
                await asyncio.Event().wait()
            await self.done(case, event)

    async def l1(self, stream: Any) -> None:
        await self.each("L1", stream)

    async def l2(self, stream: Any) -> None:
        await self.taken("L2", stream)

    async def l3(self, stream: Any) -> None:
        await self.taken("L3", stream, 2)

    async def l4(self, stream: Any) -> None:
        await self.each("L4", stream)

    async def l5(self, stream: Any) -> None:
        async for events in stream.take_events(10, within=0.5):
            if any(seq(event) == HEAD for event in events) and self.plan.first("L5"):
                await asyncio.Event().wait()
            for event in events:
                await self.done("L5", event)

    async def l6(self, stream: Any) -> None:
        await self.disordered("L6", stream)

    async def l7(self, stream: Any) -> None:
        async for event in stream.noack().events():
            if seq(event) == GUILTY and self.plan.first("L7"):
                continue  # not now: not acknowledged, it should come again
            await self.done("L7", event)
            event.ack()

    async def l8(self, stream: Any) -> None:
        await self.disordered("L8", stream)

    async def l9(self, stream: Any) -> None:
        async for event in stream.events():
            self.out("L9").send_soon(key=b"k", value=event.value)

    async def l10(self, stream: Any) -> None:
        async for event in stream.events():
            await self.send("L10", event, PAD if seq(event) == GUILTY else 0)

    async def l11(self, stream: Any) -> None:
        async for event in stream.events():
            self.out("L11").send_soon(key=b"k", value=event.value)

    async def l12(self, stream: Any) -> None:
        async for event in stream.events():
            if seq(event) in self.seen:
                continue  # a repetition
            self.seen[seq(event)] = True
            if seq(event) == GUILTY and self.plan.first("L12"):
                await asyncio.sleep(1.0)  # the changelog record leaves by itself
                os.kill(os.getpid(), signal.SIGKILL)
            await self.done("L12", event)

    async def l13(self, stream: Any) -> None:
        async for events in stream.take_events(10, within=0.5):
            for event in events:
                await self.done("L13", event, LARGE if seq(event) == GUILTY else 0)

    async def l14(self, stream: Any) -> None:
        async for event in stream.events():
            await self.done("L14", event)

    async def l15(self, stream: Any) -> None:
        async for event in stream.events():
            await self.done("L15", event)
            if seq(event) == GUILTY and self.plan.first("L15"):
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the worker."""
    plan = Plan.read()
    app = faust.App(
        f"{plan.name}.stock",
        broker=f"kafka://{plan.kafka}",
        store="memory://",
        topic_partitions=1,
        topic_disable_leader=True,
        topic_allow_declare=False,
        broker_commit_interval=0.3,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        web_enabled=False,
        datadir=f"{plan.folder}/faust-{plan.name}",
        autodiscover=False,
        **plan.settings,
    )
    Lossy(app, plan)
    sys.argv[1:] = ["worker", "--without-web", "-l", "info"]
    app.main()


if __name__ == "__main__":
    main()
