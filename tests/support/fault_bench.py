"""The fault suite's bench: workers that are started again when they end, raw events in, two ledgers at the end, the counts after a case.

Invariants counted by `verify`: no event is lost; each gives exactly one output per target (read_committed, by sequence id); the order per
record is kept; both targets end with the last event of every record; a target saw nothing beyond repeats of the same turn; the stores equal
their changelogs.
"""

import asyncio
import json
import random
import shutil
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition

from agents.rules.writes import decode_write
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all, read_committed_consumer
from streams.engine.stage import Output, Record
from streams.engine.store import Disk
from streams.publish import Publisher
from streams.topics import TABLES, Topics, ensure
from tests.support.broker import settings_for, topics
from tests.support.fault_events import MAPS, Events, differences, flow_for
from tests.support.fault_keeper import HUNG, Command, Hung, Keeper, wait_for
from tests.support.ledger import Ledger, serving
from tests.support.ledger_target import sequence_of

SESSION = 6.0
"""Seconds; Kafka's least session timeout as it is delivered."""


class FaultBench:
    """One installation: settings, events, ledgers, keepers."""

    def __init__(self, settings: Settings, chance: random.Random, ledgers: Sequence[Ledger], flow: Flow) -> None:
        self.settings, self.chance, self.flow = settings, chance, flow
        self.topics = Topics(settings.installation)
        self.events = Events(settings.installation, chance)
        self.ledgers = {ledger.name: ledger for ledger in ledgers}
        self.keepers: list[Keeper] = []
        self.outputs: list[Record] = []
        self.stopped_pids: set[int] = set()
        self.facts: dict[str, Any] = {}
        self._publisher = Publisher(settings)
        self._reader = read_committed_consumer(settings)
        self._reading = asyncio.Lock()

    def given(self, flow: Flow, state: Path) -> dict[str, Any]:
        """What a worker is told."""
        shown = flow.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for connection in shown["connections"].values():
            if "auth" in connection:
                connection["auth"]["client_secret"] = "y"
        kept = ("kafka", "installation", "partitions", "drain_seconds", "session_timeout")
        return {"settings": {name: getattr(self.settings, name) for name in kept} | {"state": str(state)}, "flow": shown}

    def worker(
        self,
        folder: str = "state",
        *,
        flow: Flow | None = None,
        points: Sequence[Mapping[str, Any]] = (),
        clock: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Keeper:
        """Start a worker and keep it."""
        told = self.given(flow or self.flow, self.settings.state / folder) | {"clock": str(clock) if clock else None}

        def command(first: bool) -> list[str]:
            return [sys.executable, "-m", "tests.support.fault_worker", json.dumps(told | {"points": list(points) if first else []})]

        return self.keep(folder, command, environ)

    def keep(self, name: str, command: Command, environ: Mapping[str, str] | None = None) -> Keeper:
        """Start any process and keep it."""
        keeper = Keeper(self.settings.state / name, command, environ or {}).keep()
        self.keepers.append(keeper)
        return keeper

    async def send(self, outputs: Sequence[Output]) -> None:
        """Into Kafka, all of it."""
        await self._publisher.send(outputs)

    async def feed(self, count: int, rate: float = 400, **more: Any) -> None:
        """So many events at about this rate a second."""
        for _ in range(0, count, 20):
            await self.send(self.events.some(20, **more))
            await asyncio.sleep(20 / rate)

    @asynccontextmanager
    async def load(self, rate: float, **more: Any) -> AsyncIterator[None]:
        """Events at about this rate a second while the block runs, however slow the machine is; all of them are in Kafka at its end."""
        enough = asyncio.Event()

        async def go() -> None:
            while not enough.is_set():
                await self.feed(20, rate, **more)

        task = asyncio.create_task(go())
        try:
            yield
            enough.set()
            await task
        finally:
            task.cancel()

    async def until(self, true: Callable[[], Awaitable[bool]], why: str, seconds: float = HUNG) -> None:
        """Wait for it; the logs' ends are in the error."""
        try:
            await wait_for(true, lambda: why, seconds)
        except Hung:
            logs = "\n".join(f"--- {keeper}\n{keeper.end_of_log()}" for keeper in self.keepers)
            raise AssertionError(f"{why}; {self.facts}\n{logs}") from None

    async def outputs_reach(self, count: int) -> None:
        """Wait until so many outputs are committed, all targets together."""

        async def there() -> bool:
            await self._poll()
            return len(self.outputs) >= count

        await self.until(there, f"{count} outputs never came")

    async def more_outputs(self, count: int) -> None:
        """Wait for so many more than there are."""
        await self._poll()
        await self.outputs_reach(len(self.outputs) + count)

    async def _poll(self) -> None:
        async with self._reading:
            for records in (await self._reader.getmany(timeout_ms=100)).values():
                self.outputs += records

    async def verify(self, *, regress: bool = True, effects: bool = True, stores: bool = True) -> None:
        """Count. `regress`: a target that cannot compare may have been told again what a crash left unacknowledged."""
        sent = self.events.sent
        await self.outputs_reach(len(sent.once) * len(self.ledgers))
        await self.until(self.settled, "the writers never acknowledged everything")
        for ledger in self.ledgers.values():
            await self._count_outputs(ledger.name)
            if effects:
                self.count_effects(ledger, regress)
        letters = await read_all(self.settings, self.topics.dead_letters)
        assert len(letters) == sent.dead, [(r.value or b"")[:400] for r in letters][:3]
        if stores:
            await self._compare_stores()
        restarts = sum(max(0, len(k.pids) - 1) for k in self.keepers)
        print(f"{len(sent.once)} events, {len(self.outputs)} outputs, {restarts} restarts, {self.facts}")

    async def _count_outputs(self, target: str) -> None:
        sent = self.events.sent
        records = [r for lane in (False, True) for r in await read_all(self.settings, self.topics.writes(target, bulk=lane))]
        writes = [decode_write(r.value).whole() for r in records]
        found = Counter(sequence_of(write.body) for write in writes)
        assert found == Counter(sent.once), f"{target}: {differences(found, sent.once)}"
        order: dict[str, list[int]] = defaultdict(list)
        for write in writes:
            order[write.key].append(sequence_of(write.body))
        wrong = [key for key, seqs in order.items() if seqs != [s for s in sent.order[key] if s in sent.once]]
        assert not wrong, f"{target}: out of order: {wrong[:5]}"

    def count_effects(self, ledger: Ledger, regress: bool = True) -> None:
        """What a target was told; it ends with the last event of every record."""
        sent = self.events.sent
        held = {key: seq for key, (_, seq) in ledger.held.items()}
        stale = {key: (held.get(key), seq) for key, seq in sent.last.items() if held.get(key) != seq}
        assert not stale, f"{ledger.name}: {len(stale)} of {len(sent.last)} stale at the end: {list(stale.items())[:5]}"
        turns: dict[tuple[str, int], set[int]] = defaultdict(set)
        for entry in ledger.entries:
            turns[entry.key, entry.turn].add(entry.seq)
        assert all(len(seqs) == 1 for seqs in turns.values()), f"{ledger.name}: one turn with two bodies"
        zombies = [e for e in ledger.entries if e.applied and e.behind and e.worker in self.stopped_pids]
        behind = [e for e in ledger.entries if e.applied and e.behind and e.worker not in self.stopped_pids]
        if ledger.compares:
            assert not zombies and not behind, f"{ledger.name} compares and took an older turn"
        assert regress or not behind, f"{ledger.name} was told older values again: {behind[:5]}"
        self.facts[ledger.name] = {
            "calls": ledger.calls,
            "effects": len(ledger.entries),
            "repeated": len(ledger.entries) - len(turns),
            "told again behind": len(behind),
            "from zombies": len(zombies),
            "refused": sum(not e.applied for e in ledger.entries),
        } | ({"faults": dict(ledger.fired)} if ledger.fired else {})

    async def settled(self) -> bool:
        """Whether the group's offsets stand behind the last record of every in-topic and every topic of writes."""
        names = [
            t
            for s in self.flow.routes.values()
            for source in s.sources
            for t in (self.topics.inbound(source), self.topics.inbound(source, bulk=True))
        ]
        names += [self.topics.writes(target, bulk=lane) for target in self.ledgers for lane in (False, True)]
        reader = read_committed_consumer(self.settings, group_id=self.settings.installation)
        await reader.start()
        try:
            for name in dict.fromkeys(names):
                last: dict[int, int] = {}
                for record in await read_all(self.settings, name):
                    last[record.partition] = record.offset
                for number, offset in last.items():
                    if (await reader.committed(TopicPartition(name, number)) or 0) <= offset:
                        return False
        finally:
            await reader.stop()
        return True

    async def _compare_stores(self) -> None:
        """Stop the workers; of each partition the store that is furthest equals the changelog."""
        for keeper in self.keepers:
            if keeper.kept:
                await keeper.stop()
        for table in TABLES:
            said: dict[int, dict[bytes, bytes]] = defaultdict(dict)
            for record in await read_all(self.settings, self.topics.changelog(table)):
                if record.value is None:
                    said[record.partition].pop(record.key or b"", None)
                else:
                    said[record.partition][record.key or b""] = record.value
            for number in range(self.settings.partitions):
                folders = {keeper.state / table / str(number) for keeper in self.keepers}
                disks = [Disk(path) for path in folders if path.exists()]
                best = max(disks, key=lambda disk: disk.position() or (-1, 0.0), default=None)
                stored = dict(best.items()) if best else {}
                for disk in disks:
                    disk.close()
                assert stored == said[number], f"{table} {number}: {len(stored)} stored, {len(said[number])} in the changelog"

    async def close(self) -> None:
        """End what still runs."""
        for ledger in self.ledgers.values():
            ledger.heal()
        for keeper in self.keepers:
            if keeper.kept:
                await keeper.stop(signal.SIGKILL)
        await self._reader.stop()
        await self._publisher.stop()


@asynccontextmanager
async def fault_bench(
    kafka: str, folder: Path, chance: random.Random, *, sobjects: Sequence[str] = ("Contact",), **settings: Any
) -> AsyncIterator[FaultBench]:
    """A bench with its topics, ledgers `exact` (compares) and `loose` (does not), everything ended and deleted afterwards."""
    chosen = settings_for(kafka, folder / "state", **{"drain_seconds": 2.0, "session_timeout": SESSION} | settings)
    write_maps(folder)
    ledgers = [Ledger("exact", compares=True), Ledger("loose", compares=False)]
    async with topics(chosen, []), serving(*ledgers) as url:
        targets = {ledger.name: {"type": "ledger", "url": url, "compares": ledger.compares} for ledger in ledgers}
        flow = flow_for(str(folder), targets, sobjects)
        await ensure(chosen, Topics(chosen.installation).all(flow, chosen))
        bench = FaultBench(chosen, chance, ledgers, flow)
        names = [bench.topics.writes(target, bulk=lane) for target in targets for lane in (False, True)]
        await bench._reader.start()
        bench._reader.assign([TopicPartition(name, p) for name in names for p in range(chosen.partitions)])
        try:
            yield bench
        finally:
            await bench.close()


def write_maps(folder: Path) -> None:
    """The map files a flow of this folder names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in MAPS.items():
        (folder / name).write_text(text)


def lose(folder: Path) -> None:
    """The state folder is gone."""
    shutil.rmtree(folder, ignore_errors=True)


def damage(folder: Path, chance: random.Random) -> int:
    """Overwrite the middle of files of every store, one kind of file per store; the number of stores damaged."""
    damaged = 0
    for store in sorted(folder.glob("*/[0-9]*")):
        files = [f for f in sorted(store.iterdir()) if f.suffix in (".sst", ".log") or f.name.startswith(("MANIFEST", "CURRENT"))]
        if files:
            victim = chance.choice(files)
            raw = victim.read_bytes()
            victim.write_bytes(raw[: len(raw) // 3] + b"\xff" * 64 + raw[len(raw) // 3 + 64 :])
            damaged += 1
    return damaged
