"""Workers of tests/support/engine_app.py as processes, what goes in, and what came out (read_committed)."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from models.dead_letter import DeadLetter
from models.settings import Settings
from streams.consume import read_all, read_committed_consumer
from streams.engine.stage import Output
from streams.engine.store import MARK, Disk
from streams.kafka import partition_of
from streams.publish import Publisher
from streams.topics import Topics
from tests.support.broker import settings_for, topics
from tests.support.engine_app import names

HUNG = 90.0  # a test that waits longer hangs


class Bench:
    """One installation with its topics, workers, input and output."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer) -> None:
        self.settings, self._consumer = settings, consumer
        self.live, self.bulk, self.out = names(settings)
        self.outputs: list[dict[str, Any]] = []
        self.workers: list[Worker] = []
        self._publisher = Publisher(settings)
        self._sent = 0

    async def send(self, count: int, *, lane: str = "live", partition: int | None = None, do: str | None = None, source: str = "x") -> None:
        """Records with the next sequence numbers; keys repeat; of one partition number where it is given."""
        numbers = range(self._sent, self._sent + count)
        self._sent += count
        keys = [b"k%d" % n for n in range(400)]
        if partition is not None:
            keys = [key for key in keys if partition_of(key, self.settings.partitions) == partition]
        live, bulk, _ = names(self.settings, source)
        topic = bulk if lane == "bulk" else live
        await self._publisher.send([
            Output(topic, keys[n % len(keys)], json.dumps({"seq": n, "do": do}).encode()) for n in numbers
        ])  # fmt: skip

    async def arrived(self, count: int) -> list[int]:
        """Wait until this many outputs are there; their sequence numbers, sorted."""
        async with asyncio.timeout(HUNG):
            while len(self.outputs) < count:
                self._check()
                await self._poll(200)
        return sorted(int(o["seq"]) for o in self.outputs)

    async def exactly(self, count: int, dead: Collection[int] = ()) -> None:
        """Every event came out once, and nothing besides, but those that are dead letters."""
        seqs = await self.arrived(count - len(dead))
        found = Counter(json.loads(r.value or b"")["seq"] for r in await read_all(self.settings, self.out))
        found.update(await self.dead())
        assert found == Counter(range(count)), _differences(found, count)
        assert set(await self.dead()) == set(dead)
        assert seqs == [seq for seq in range(count) if seq not in dead]

    async def letters(self) -> list[DeadLetter]:
        """Dead letters, in order per partition."""
        topic = Topics(self.settings.installation).dead_letters
        return [DeadLetter.model_validate_json(r.value or b"") for r in await read_all(self.settings, topic)]

    async def dead(self) -> list[int]:
        """Sequence numbers of the dead letters."""
        return [json.loads(letter.original_value or b"")["seq"] for letter in await self.letters()]

    async def _poll(self, ms: int) -> None:
        for records in (await self._consumer.getmany(timeout_ms=ms)).values():
            self.outputs += [json.loads(r.value) | {"partition": r.partition} for r in records]

    def _check(self) -> None:
        for worker in self.workers:
            code = worker.process.returncode
            assert code is None or worker.ended, f"a worker ended with {code}:\n{worker.log.read_text()[-4000:]}"

    async def start(self, folder: str = "state", **settings: object) -> "Worker":
        """Start a worker; returns at once."""
        worker = await Worker.begin(self.settings, self.settings.state / folder, **settings)
        self.workers.append(worker)
        return worker

    async def changelog(self) -> dict[bytes, bytes]:
        """What the changelog says, marks left out."""
        found: dict[bytes, bytes] = {}
        for record in await read_all(self.settings, f"{self.settings.installation}.records-changelog"):
            assert record.key is not None and record.value is not None
            found[record.key] = record.value
        return {key: value for key, value in found.items() if not key.startswith(MARK)}

    def stored(self, *folders: str) -> dict[bytes, bytes]:
        """What the stores of stopped workers say; of a partition in several folders, the one that is furthest."""
        found: dict[bytes, bytes] = {}
        for number in range(self.settings.partitions):
            disks = [Disk(path) for f in folders if (path := self.settings.state / f / "records" / str(number)).exists()]
            best = max(disks, key=lambda disk: disk.position() or (-1, 0))
            found |= dict(best.items())
            for disk in disks:
                disk.close()
        return {key: value for key, value in found.items() if not key.startswith(MARK)}

    async def committed(self, topic: str) -> int:
        """Sum of the group's committed offsets of a topic."""
        reader = read_committed_consumer(self.settings, group_id=self.settings.installation)
        await reader.start()
        try:
            parts = [TopicPartition(topic, p) for p in range(self.settings.partitions)]
            return sum([(await reader.committed(tp)) or 0 for tp in parts])
        finally:
            await reader.stop()

    async def close(self) -> None:
        """End what still runs."""
        for worker in self.workers:
            worker.kill()
            await worker.process.wait()
        await self._publisher.stop()


class Worker:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process, self.log, self.ended = process, log, False

    @classmethod
    async def begin(cls, settings: Settings, state: Path, **more: object) -> "Worker":
        given = {
            "kafka": settings.kafka,
            "installation": settings.installation,
            "partitions": settings.partitions,
            "drain_seconds": settings.drain_seconds,
            "session_timeout": 6.0,
            "state": str(state),
            **more,
        }
        log = state.parent / f"{state.name}-{len(list(state.parent.glob('*.log')))}.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "tests.support.engine_app", json.dumps(given)]
            return cls(await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out, cwd=Path(__file__).parents[2]), log)

    async def said(self, text: str) -> None:
        """Wait until its log says so."""
        async with asyncio.timeout(HUNG):
            while text not in self.log.read_text():
                assert self.process.returncode is None, self.log.read_text()[-4000:]
                await asyncio.sleep(0.05)

    async def stop(self, sign: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.ended = True
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, sign)
        return await self.code()

    async def code(self) -> int:
        """Wait for the end; the exit code."""
        self.ended = True
        async with asyncio.timeout(HUNG):
            return await self.process.wait()

    def kill(self) -> None:
        """At once."""
        self.ended = True
        with suppress(ProcessLookupError):
            self.process.kill()


def _differences(found: Counter[int], count: int) -> str:
    missing = sorted(set(range(count)) - set(found))
    twice = sorted(n for n, times in found.items() if times > 1)
    return f"{len(missing)} missing {missing[:5]}, {len(twice)} more than once {twice[:5]}"


@asynccontextmanager
async def bench(kafka: str, state: Path, **settings: Any) -> AsyncIterator[Bench]:
    """A Bench with topics made, everything ended and deleted afterwards."""
    chosen = settings_for(kafka, state, **settings)
    made = {*names(chosen), *names(chosen, "y"), Topics(chosen.installation).dead_letters}
    async with topics(chosen, sorted(made), [f"{chosen.installation}.records-changelog"]):
        consumer = read_committed_consumer(chosen)
        await consumer.start()
        consumer.assign(parts := [TopicPartition(names(chosen)[2], p) for p in range(chosen.partitions)])
        await consumer.seek_to_beginning(*parts)
        found = Bench(chosen, consumer)
        try:
            yield found
        finally:
            await found.close()
            await consumer.stop()
