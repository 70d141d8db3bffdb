"""Who competes in which case, and with how much work. `scale` 1 is a full run."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.bench import contest
from deploy.bench.contest import Entry
from deploy.bench.place import PARTITIONS, Place
from deploy.bench.racer import Racer, python
from deploy.bench.spec import Spec

TABLES = ("records", "seen", "delivered")
PLAIN, STOCK, TUNED, ONE, TWO = "plain aiokafka", "stock Faust", "stock Faust, tuned", "Headrace", "Headrace, two workers"
HAND = "by hand (aiokafka + psycopg)"


@dataclass(frozen=True)
class Ground:
    """Where and how much."""

    place: Place
    folder: Path
    scale: float

    def entry(self, name: str, case: str, module: str, mode: str, events: int, done: contest.Done, check: contest.Check) -> Entry:
        """A contender that is a module of deploy.bench.contenders."""
        spec = self.spec(case, mode)
        command = python(f"deploy.bench.contenders.{module}", spec.text())
        racer = Racer(spec.name, self.folder, [command], self.environ(spec))
        return Entry(name, spec, racer, self.events(events), done, check)

    def spec(self, case: str, mode: str) -> Spec:
        """Names nobody else has."""
        name = f"bench-{case}-{mode}-{secrets.token_hex(3)}"
        return Spec(
            self.place.bootstrap, name, f"{name}.in.acme.Contact", f"{name}.writes.warehouse", PARTITIONS, str(self.folder / name),
            self.place.dsn, name, mode,
        )  # fmt: skip

    def environ(self, spec: Spec) -> dict[str, str]:
        """What Headrace's settings and the flow file want."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": spec.bootstrap,
            "DATABASE_URL": spec.dsn,
            "BENCH_SCHEMA": spec.schema,
            "HEADRACE_INSTALLATION": spec.name,
            "HEADRACE_PARTITIONS": str(spec.partitions),
            "SF_URL": "http://127.0.0.1:9",  # nobody is asked: no record is ever incomplete
            "SF_CLIENT_ID": "bench",
            "SF_CLIENT_SECRET": "bench",
        }

    def events(self, full: int) -> int:
        """Of a round."""
        return max(500, round(full * self.scale))

    async def topics(self, entries: Sequence[Entry], schema: bool = False) -> None:
        """Everything a contender may want, made before it starts."""
        for entry in entries:
            spec = entry.spec
            names = [spec.source, f"{spec.source}.bulk", spec.out, f"{spec.out}.bulk"]
            names += [f"{spec.name}.{name}" for name in ("fetch.acme", "positions", "runs", "processes", "dead-letters", "quality")]
            await self.place.make(spec.name, names, [f"{spec.name}.{table}-changelog" for table in TABLES], schema)


def pass_through(ground: Ground) -> list[Entry]:
    """(a)"""
    return [
        ground.entry(ONE, "a", "headrace", "pass", 150_000, contest.committed, contest.same_records),
        ground.entry(PLAIN, "a", "plain", "pass", 150_000, contest.committed, contest.same_records),
        ground.entry(STOCK, "a", "stock_faust", "pass", 10_000, contest.sent_on, contest.same_records),
    ]


def processing(ground: Ground) -> list[Entry]:
    """(b)"""
    return [
        ground.entry(ONE, "b", "headrace", "step", 80_000, contest.committed, contest.same_bodies),
        ground.entry(PLAIN, "b", "plain", "step", 100_000, contest.committed, contest.same_bodies),
        ground.entry(STOCK, "b", "stock_faust", "step", 8_000, contest.sent_on, contest.same_bodies),
        ground.entry(TUNED, "b", "stock_faust", "take", 12_000, contest.sent_on, contest.same_bodies),
    ]


def whole_way(ground: Ground) -> list[Entry]:
    """(c)"""
    return [
        headrace(ground, ONE, 1, 40_000),
        headrace(ground, TWO, 2, 60_000),
        ground.entry(HAND, "c", "plain", "rows", 80_000, contest.marked, contest.same_rows),
    ]


def headrace(ground: Ground, name: str, workers: int, events: int) -> Entry:
    """`headrace worker` as a user starts it, so many times."""
    spec = ground.spec("c", f"worker{workers}")
    flow = str(Path(__file__).parent / "flow.yaml")
    command = [*python("deploy", "worker"), "--no-supervise", "--flow", flow]
    racer = Racer(spec.name, ground.folder, [command] * workers, ground.environ(spec))
    return Entry(name, spec, racer, ground.events(events), contest.marked, contest.same_rows)
