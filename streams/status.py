"""What `headrace status` knows: one picture of all processes, from Kafka and from each process's own /metrics.

It only reads. It works while nothing runs and while Kafka is away; what could not be asked is said, never shown as zero.
Counters are those of the processes that live now, so they begin again when a process does; lag, positions and dead letters are Kafka's.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ConfigDict

from models.dead_letter import DeadLetter
from models.errors import HeadraceError
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.consume import read_all, read_last
from streams.held_view import Held, held_of
from streams.kafka import admin
from streams.lag import Lag, LagWatch, disk_free, salesforce_loss
from streams.map_versions import MapInUse, MapVersion, read_versions, shown
from streams.pauses import Paused, read_pauses
from streams.refills import Refill, parked_of, refills_of
from streams.salesforce.leases import read_leases
from streams.salesforce.positions import position_key, read_positions
from streams.salesforce.runs import Run, runs_of
from streams.scrape import Samples, by_label, quantile, scrape, total
from streams.topics import Topics, compares, sources
from streams.verified import Found, through, verified_of
from streams.ways_in import Calls, WayIn, calls_of, ways_in

ALIVE_SECONDS = 15.0
ENDED_SECONDS = 3600.0
"""So long a snapshot that ended is shown."""
FORGOTTEN_SECONDS = 86_400.0
KAFKA_SECONDS = 20.0


class Process(BaseModel):
    """One process, as its last heartbeat says. `silent` is seconds since then; `alive` false: killed, or cut off from Kafka."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    role: str
    host: str
    pid: int
    metrics: str
    at: int
    started: int
    restarts: int
    maps: dict[str, str] = {}
    silent: float = 0.0
    alive: bool = False
    answers: bool = False


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage of one source or target: what went through, what waits (None: not known), seconds of the oldest that waits."""

    stage: str
    name: str
    through: int
    outcomes: Mapping[str, int] = field(default_factory=dict)
    lag: int | None = None
    bulk_lag: int | None = None
    oldest: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from the source to the target's answer, from the histogram's buckets."""

    route: str
    target: str
    since: str
    count: int
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Dead letters of one cause."""

    cause: str
    stage: str
    route: str | None
    count: int
    reason: str
    last: int


@dataclass(frozen=True, slots=True)
class Channel:
    """Where a subscription stands. `loss`: seconds until Salesforce's retention reaches the position. `up` None: no process says.

    deaf   its canary was not heard in time
    """

    connection: str
    channel: str
    epoch: int | None
    position: int | None
    second: int | None
    loss: float | None
    up: bool | None
    deaf: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot run, open or ended not long ago. `left`: seconds to its end at the rate of late (None: not known). `worked` false: open,
    and no process works on it.
    """

    run: str
    source: str
    state: str
    way: str
    rows: int
    total: int
    rate: float
    left: float | None
    worked: bool
    note: str
    at: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What can be said of a route: all its sources are verified through `through` (epoch s; 0: never); `every`: seconds, or None.

    at        epoch ms of the last verification; differed, repaired: found and mended by it; why: nothing new could be claimed by it
    """

    route: str
    target: str
    through: int
    every: float | None
    at: int
    differed: int
    repaired: int
    why: str


@dataclass(frozen=True, slots=True)
class Status:
    """All of it. `unknown` says in sentences what could not be asked."""

    installation: str
    at: int
    processes: list[Process]
    hops: list[Hop]
    latencies: list[Latency]
    dead: list[Cause]
    channels: list[Channel]
    snapshots: list[Snapshot]
    verified: list[Claim]
    ways: list[WayIn]
    calls: list[Calls]
    paused: list[str]
    held: list[Held]
    refills: list[Refill]
    maps: list[MapInUse]
    kafka_loss: float | None
    disk_free: int | None
    unknown: list[str]

    def json(self) -> bytes:
        """For --json: names as in this file, seconds, bytes, epoch ms."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2, default=dict)


async def collect(settings: Settings, flow: Flow) -> Status:
    """Ask Kafka and every process. Never raises for what is away: see `Status.unknown`."""
    unknown: list[str] = []
    topics = Topics(settings.installation)
    lags: list[Lag] = []
    processes: list[Process] = []
    dead: list[Cause] = []
    snapshots: list[Snapshot] = []
    used: Mapping[str, Mapping[str, int]] = {}
    stored: dict[str, tuple[int, int | None, int | None, float | None]] = {}
    verified: list[Claim] = []
    held: list[Held] = []
    refills: list[Refill] = []
    pauses: Paused = {}
    parked: Mapping[str, int] = {}
    maps: Mapping[str, MapVersion] = {}
    try:
        async with asyncio.timeout(KAFKA_SECONDS):
            there = await _there(settings)
            if topics.processes in there:
                processes = _processes((r.key, r.value) for r in await read_all(settings, topics.processes))
            if topics.dead_letters in there:
                dead = _causes((r.key, r.value) for r in await read_all(settings, topics.dead_letters))
            if topics.positions in there:
                for key, p in (await read_positions(settings)).items():
                    stored[key] = (p.epoch, p.position, p.second, salesforce_loss(p))
            if topics.runs in there:
                runs = await read_last(settings, topics.runs)
                snapshots = _snapshots(runs_of(runs).values())
                verified = _claims(flow, verified_of(runs))
                refills, parked = _refills(refills_of(runs.values()).values()), parked_of(runs.values())
            if topics.pauses in there:
                pauses = await read_pauses(settings)
            if topics.maps in there:
                maps = await read_versions(settings)
            watch = LagWatch(settings, flow)
            try:
                lags = await watch.read()
            finally:
                await watch.close()
            if topics.limits in there:
                used = await read_leases(settings)
            if not there.intersection(topic.name for topic in topics.all(flow, settings)):
                unknown.append(f"installation {settings.installation} has no topics yet: nothing was started here")
    except (KafkaError, HeadraceError, OSError, TimeoutError) as error:
        said = str(error) if isinstance(error, HeadraceError) else type(error).__name__
        unknown.append(f"Kafka at {settings.kafka} did not answer ({said}): lag, positions, dead letters and processes are not known")
    held = held_of(topics, flow, pauses, parked, {lag.topic: lag.records for lag in lags})
    answers = await scrape({p.name: p.metrics for p in processes if p.alive})
    processes = [p.model_copy(update={"answers": p.name in answers}) for p in processes]
    unknown += [f"{p.name} is alive but {p.metrics} did not answer" for p in processes if p.alive and not p.answers]
    samples = total(answers.values())
    disk = [int(v) for text in answers.values() for v in text.get("headrace_disk_free_bytes", {}).values()]
    return Status(
        installation=settings.installation,
        at=int(time.time() * 1000),
        processes=processes,
        hops=_hops(topics, flow, samples, {lag.topic: lag for lag in lags}),
        latencies=_latencies(samples),
        dead=dead,
        channels=_channels(flow, samples, stored),
        snapshots=snapshots,
        verified=verified,
        ways=ways_in(flow, list(answers.values())),
        calls=calls_of(flow, used, list(answers.values())),
        paused=sorted(dict(labels).get("target", "") for labels, v in samples.get("headrace_target_paused", {}).items() if v),
        held=held,
        refills=refills,
        maps=shown(flow, maps, {p.name: p.maps for p in processes if p.alive}),
        kafka_loss=min((lag.loss for lag in lags if lag.loss is not None), default=None),
        disk_free=min(disk, default=disk_free(settings.state)),
        unknown=unknown,
    )


def scrape_targets(status: Status) -> list[dict[str, object]]:
    """The living processes as Prometheus' file_sd wants them."""
    return [
        {"targets": [p.metrics.removeprefix("http://").removesuffix("/metrics")], "labels": {"role": p.role}}
        for p in status.processes
        if p.alive
    ]


async def _there(settings: Settings) -> set[str]:
    async with admin(settings) as broker:
        return set(await broker.list_topics())


def _processes(records: Iterable[tuple[bytes | None, bytes | None]]) -> list[Process]:
    now = time.time()
    found: dict[str, Process] = {}
    for key, value in records:
        name = (key or b"").decode(errors="replace")
        found.pop(name, None)
        if value is None:
            continue  # it ended by itself
        try:
            process = Process.model_validate({**orjson.loads(value), "name": name})
        except (ValueError, TypeError):
            continue  # not one of ours
        silent = max(0.0, now - process.at / 1000)
        if silent < FORGOTTEN_SECONDS:
            found[name] = process.model_copy(update={"silent": silent, "alive": silent < ALIVE_SECONDS})
    return sorted(found.values(), key=lambda p: (p.role, p.name))


def _causes(records: Iterable[tuple[bytes | None, bytes | None]]) -> list[Cause]:
    """Open ones, the commonest first. The last record of an id counts; one without a value closes it (redriven)."""
    letters: dict[bytes | None, DeadLetter] = {}
    for key, value in records:
        letters.pop(key, None)
        with suppress(ValueError):
            letters[key] = DeadLetter.model_validate_json(value or b"")
    groups: dict[str, list[DeadLetter]] = defaultdict(list)
    for letter in letters.values():
        groups[letter.cause].append(letter)
    found = []
    for cause, group in groups.items():
        last = max(group, key=lambda letter: letter.at)
        found.append(Cause(cause, last.stage, last.route, len(group), last.reason, last.at))
    return sorted(found, key=lambda c: (-c.count, c.cause))


def _snapshots(runs: Iterable[Run]) -> list[Snapshot]:
    """The last that began comes first."""
    now, found = time.time(), []
    for run in sorted(runs, key=lambda r: -r.started):
        silent = now - run.at / 1000
        worked = run.open and bool(run.owner) and silent < ALIVE_SECONDS
        left = (run.total - run.rows) / run.rate if worked and run.rate > 0 and run.total >= run.rows else None
        if run.open or silent < ENDED_SECONDS:
            found.append(
                Snapshot(run.run, run.source, run.state, run.way, run.rows, run.total, run.rate, left, worked, run.note or run.why, run.at)
            )
    return found


def _refills(found: Iterable[Refill]) -> list[Refill]:
    """Under way, or ended not long ago; the last that began comes first."""
    return sorted((one for one in found if not one.done or time.time() - one.at / 1000 < ENDED_SECONDS), key=lambda one: -one.started)


def _hops(topics: Topics, flow: Flow, samples: Samples, lags: Mapping[str, Lag]) -> list[Hop]:
    def hop(stage: str, name: str, outcomes: dict[str, int], topic: str | None, bulk: str | None = None) -> Hop:
        live, other = (lags.get(t) if t else None for t in (topic, bulk))
        known = [lag for lag in (live, other) if lag]
        oldest = max((lag.oldest for lag in known), default=None)
        return Hop(stage, name, sum(outcomes.values()), outcomes, live.records if live else None, other.records if other else None, oldest)

    found = []
    for source in sources(flow):
        connection, _, sobject = source.partition("/")
        of = {"connection": connection, "sobject": sobject}
        found.append(hop("receive", source, by_label(samples, "headrace_events_received_total", "reason", **of), None))
        names = topics.inbound(source), topics.inbound(source, bulk=True)
        found.append(hop("process", source, by_label(samples, "headrace_records_processed_total", "outcome", **of), *names))
    for name, connection_ in flow.connections.items():
        if isinstance(connection_, Salesforce):
            found.append(
                hop("fetch", name, by_label(samples, "headrace_records_fetched_total", "outcome", connection=name), topics.fetch(name))
            )
    if compares(flow):
        names = topics.duplicates(), topics.duplicates(bulk=True)
        found.append(hop("duplicates", "all", by_label(samples, "headrace_chunk_records_total", "stage", stage="duplicates"), *names))
    for target in flow.targets:
        names = topics.writes(target), topics.writes(target, bulk=True)
        found.append(hop("write", target, by_label(samples, "headrace_writes_total", "outcome", target=target), *names))
    order = ("receive", "process", "fetch", "duplicates", "write")
    return sorted(found, key=lambda h: order.index(h.stage))


def _channels(flow: Flow, samples: Samples, stored: Mapping[str, tuple[int, int | None, int | None, float | None]]) -> list[Channel]:
    found = []
    for name in flow.connections:
        for channel in flow.channels(name):
            labels = ("channel", channel), ("connection", name)
            up = samples.get("headrace_subscription_up", {}).get(labels)
            deaf = samples.get("headrace_canary_up", {}).get(labels) == 0
            epoch, position, second, loss = stored.get(position_key(name, channel), (None, None, None, None))
            found.append(Channel(name, channel, epoch, position, second, loss, None if up is None else up > 0, deaf))
    return found


def _claims(flow: Flow, found: Found) -> list[Claim]:
    """Of every route that is scheduled or was verified once."""
    claims = []
    for name, route in flow.routes.items():
        if (last := [found[name, source] for source in route.sources if (name, source) in found]) or route.verify is not None:
            why = next((one.why or one.state for one in last if one.state != "verified"), "")
            claims.append(
                Claim(
                    name,
                    route.to,
                    through(found, name, route.sources),
                    route.verify,
                    max((one.at for one in last), default=0),
                    sum(one.differed for one in last),
                    sum(one.repaired for one in last),
                    why,
                )
            )
    return claims


def _latencies(samples: Samples) -> list[Latency]:
    buckets: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for labels, value in samples.get("headrace_latency_seconds_bucket", {}).items():
        has = dict(labels)
        buckets[has["route"], has["target"], has["since"]].append((float(has["le"]), value))
    return [
        Latency(*key, int(max(count for _, count in found)), quantile(0.5, found), quantile(0.99, found))
        for key, found in sorted(buckets.items())
    ]
