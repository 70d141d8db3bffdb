"""Processes of the loss cases, one life after another: what they are fed, how they end, and what became of every event."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Output
from streams.kafka import client_options
from streams.publish import TransactionalPublisher, send
from tests.support import stock_ours as ours
from tests.support.broker import settings_for, topics
from tests.support.stock_plan import EVENTS, GUILTY, HEAD, MANY, NO_JSON, Plan

HUNG = 60.0
DEAD = "dead-letters"
MISSING = {"L9"}
"""Cases whose output topic is not there."""
TRANSACTIONAL = {"L8", ours.HOLES}
"""Cases whose input comes by transactions, which leave holes in the offsets."""
ENOUGH = {"L2": GUILTY + 1, "L3": MANY // 2, "L13": GUILTY + 1}
"""Commits to wait for where an agent that takes batches raises: Faust may stop committing soon after."""


@dataclass(frozen=True)
class Fate:
    """What became of a case's events when its process was dead.

    lost    committed, and no output: nothing of the group will ever read them again
    twice   more than one output
    done    events with an output
    """

    lost: list[int]
    twice: list[int]
    done: int


class Lives:
    """One plan: its topics, what it is fed, its processes one after another."""

    def __init__(self, plan: Plan, settings: Settings, module: str, group: str, environ: Mapping[str, str]) -> None:
        self.plan, self.settings, self.codes = plan, settings, list[int]()
        self._module, self._group, self._environ = module, group, environ
        self.admin = AIOKafkaAdminClient(**client_options(settings))
        self._process: asyncio.subprocess.Process | None = None
        self.log = Path(plan.folder) / "log"

    async def feed(self, half: int, *cases: str) -> None:
        """The first (0) or second (1) half of the events of these cases; of all where none is named."""
        for case in cases or self.plan.cases:
            numbers = range(MANY * (1 - half)) if case == "L3" else range(HEAD) if half == 0 else range(HEAD, EVENTS)
            poisoned = GUILTY if case in {"L14", ours.POISONED} else -1
            outputs = [
                Output(self.plan.source(case), b"k", NO_JSON if n == poisoned else json.dumps({"seq": n}).encode(), partition=0)
                for n in numbers
            ]
            if case in TRANSACTIONAL:
                async with TransactionalPublisher(self.settings, f"{self.plan.name}.feeder") as transactions:
                    await transactions.send(outputs)
            elif outputs:
                await send(self.settings, outputs)

    async def start(self) -> None:
        """The next process."""
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", self._module, self.plan.argument()]
            environ = {**os.environ, **self._environ}
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=out, stderr=out, env=environ, cwd=Path(__file__).parents[2]
            )

    async def ends(self, sign: int | None = None) -> None:
        """Wait for the end, by a signal where one is given."""
        assert self._process is not None
        if sign is not None:
            self._process.send_signal(sign)
        try:
            async with asyncio.timeout(HUNG):
                self.codes.append(await self._process.wait())
        except TimeoutError:
            raise AssertionError(f"{self.plan.name} does not end:\n{self.tail()}") from None

    async def until(self, true: Callable[[], Awaitable[bool]], what: str) -> None:
        """Ask now and then while the process lives."""
        assert self._process is not None
        try:
            async with asyncio.timeout(HUNG):
                while not await true():
                    assert self._process.returncode is None, f"{what}: ended with {self._process.returncode}\n{self.tail()}"
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{what} did not come:\n{await self.committed()}\n{self.tail()}") from None

    async def reach(self, offset: int, *cases: str) -> None:
        """Until so much is committed of these cases; of all where none is named."""

        async def there() -> bool:
            committed = await self.committed()
            return all(committed.get(case, 0) >= ENOUGH.get(case, offset) for case in cases or self.plan.cases)

        await self.until(there, f"commit of {offset}")

    async def strikes(self, fault: str, times: int = 1) -> None:
        """Until a fault came by."""

        async def struck() -> bool:
            return self.plan.struck(fault) >= times

        await self.until(struck, fault)

    async def committed(self) -> dict[str, int]:
        """Offsets by case."""
        found = await self.admin.list_consumer_group_offsets(self._group)
        names = {self.plan.source(case): case for case in self.plan.cases}
        return {names[tp.topic]: at.offset for tp, at in found.items() if tp.topic in names and at.offset >= 0}

    async def fates(self) -> dict[str, Fate]:
        """Of all cases, when the process is dead."""
        committed = await self.committed()
        return {case: await self._fate(case, committed.get(case, 0)) for case in self.plan.cases}

    async def _fate(self, case: str, committed: int) -> Fate:
        done: Counter[int] = Counter()
        if case not in MISSING:
            done.update(int(json.loads(r.value or b"")["seq"]) for r in await read_all(self.settings, self.plan.out(case)))
        gone = [n for n, r in enumerate(await read_all(self.settings, self.plan.source(case))) if r.offset < committed]
        return Fate([n for n in gone if n not in done], sorted(n for n, times in done.items() if times > 1), len(done))

    async def refuse(self, case: str, most: int) -> None:
        """The most bytes that Kafka takes for the outputs of a case."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self.plan.out(case), configs={"max.message.bytes": str(most)})
        await self.admin.alter_configs([resource])

    def tail(self) -> str:
        """End of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    async def close(self) -> None:
        """End what runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self.admin.close()


@asynccontextmanager
async def lives(
    kafka: str, folder: Path, cases: tuple[str, ...], module: str, settings: dict[str, object], environ: Mapping[str, str]
) -> AsyncIterator[Lives]:
    """A plan with its topics."""
    at = settings_for(kafka, folder, partitions=1)
    plan = Plan(kafka, at.installation, str(folder), list(cases), settings)
    mine = module == ours.__name__
    made = [plan.source(case) for case in cases] + [plan.out(case) for case in cases if case not in MISSING]
    made += [f"{plan.name}.{DEAD}"]
    compacted = [f"{plan.name}.{ours.table(case)}-changelog" for case in cases if mine]
    if "L12" in cases:  # Faust would make it, and sometimes not see it afterwards
        compacted = [f"{plan.name}.stock-seen-changelog"]
    async with topics(at, made, compacted):
        found = Lives(plan, at, module, plan.name if mine else f"{plan.name}.stock", environ)
        await found.admin.start()
        try:
            yield found
        finally:
            await found.close()
