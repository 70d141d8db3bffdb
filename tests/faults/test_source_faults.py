"""Subscriber and receiver killed, stopped and suspended under wire faults: every event is in the in-topic once, every hook acts once."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.local import LocalServices
from deploy.local.process import free_port
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.topics import Topics, ensure
from tests.support import fault_points, subscriber_process
from tests.support.broker import settings_for, topics
from tests.support.fault_bench import SESSION, FaultBench, fault_bench
from tests.support.fault_keeper import Keeper
from tests.support.salesforce import Desk, arrived, first_came, flow_for, order_of, org, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
WIRE = (
    {"name": "drop-connections", "variant": "held"},
    {"name": "drop-connections", "variant": "reply"},
    {"name": "unknown-client", "variant": "handshake"},
    {"name": "unknown-client", "variant": "none"},
    {"name": "refuse-resubscribe"},
    {"name": "duplicate", "times": 3},
    {"name": "reorder", "times": 3},
    {"name": "expire-token"},
    {"name": "html-503", "times": 2},
    {"name": "server-restart", "seconds": 1},
)


async def revoke_for_a_moment(desk: Desk) -> None:
    """Nobody may log in; then all may again."""
    await desk.fault("revoke")
    before = (await desk.state())["counts"].get("logins refused", 0)
    await until(desk.state, lambda s: s["counts"].get("logins refused", 0) > before)
    await desk.call("DELETE", "faults?name=revoke")


async def everything_once(settings: Settings, desk: Desk) -> int:
    """Every event that the org published is in the in-topics exactly once, in order per record; how many there are."""
    objects = ("Contact", "Account")

    async def both() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        return await desk.published(*objects), await arrived(settings, *objects)

    with suppress(AssertionError):
        await until(both, lambda pair: pair[0] == pair[1], seconds=60)
    await desk.create("Marker")  # once it is there, nothing more is on its way
    published, found = await until(both, lambda pair: pair[0][-1] in pair[1])
    found = [each for each in found if each <= published[-1]]  # a request that was given up may yet have been carried out behind it
    assert found == published, f"{len(set(published) - set(found))} of {len(published)} lost, {len(found) - len(set(found))} twice"
    for positions in (await order_of(settings, *objects)).values():
        assert positions == sorted(positions)
    return len(found)


@asynccontextmanager
async def subscribers(
    kafka: str, folder: Path, chance: random.Random, *names: str, points: Sequence[Mapping[str, Any]] = ()
) -> AsyncIterator[tuple[Settings, Desk, list[Keeper], "asyncio.Task[None]"]]:
    """These processes for one org, once the first event has come, and what changes the org all the time. The first start meets `points`."""
    settings = settings_for(kafka, folder, session_timeout=SESSION)
    async with topics(settings, []), org(records=20, hold=1.0) as desk:
        flow = flow_for(desk.url, silence=5)
        await ensure(settings, Topics(settings.installation).all(flow, settings))

        def line(first: bool) -> list[str]:
            armed = points if first else ()
            options: dict[str, Any] = {"start_from": "new", "snapshot": False, "pause_seconds": 0.3}
            return subscriber_process.command(settings, flow, "subscribe", points=armed, **options)

        keepers = [Keeper(folder / name, line, {}).keep() for name in names]
        try:
            await first_came(settings, desk)
            yield settings, desk, keepers, asyncio.create_task(keep_changing(desk, chance))
        except BaseException:
            print(*(keeper.end_of_log() for keeper in keepers), sep="\n---\n")
            raise
        finally:
            for keeper in keepers:
                await keeper.stop(signal.SIGKILL)


async def ended(changing: "asyncio.Task[None]", desk: Desk) -> None:
    """No changes any more."""
    changing.cancel()
    with suppress(asyncio.CancelledError):
        await changing
    await desk.call("DELETE", "change")


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_subscribers_killed_stopped_and_suspended_under_wire_faults_bring_every_event_once_and_in_order(
    kafka: str, tmp_path: Path, chance: random.Random, kills: int
) -> None:
    async with subscribers(kafka, tmp_path, chance, "first", "second") as (settings, desk, keepers, changing):
        steps = [signal.SIGKILL] * kills + [signal.SIGTERM, signal.SIGSTOP]
        chance.shuffle(steps)
        for step in steps:
            await desk.fault(**chance.choice(WIRE))
            await asyncio.sleep(chance.uniform(0.2, 2.0))
            await harm(chance.choice(keepers), step)
        await revoke_for_a_moment(desk)
        await ended(changing, desk)
        await desk.call("DELETE", "faults")
        print(f"{await everything_once(settings, desk)} events, {[keeper.codes for keeper in keepers]}, {[s.name for s in steps]}")


async def test_a_subscriber_that_dies_at_a_chosen_moment_of_a_transaction_brings_every_event_once_and_in_order(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    """All moments side by side, each with an installation and an org of its own."""
    async with asyncio.TaskGroup() as group:
        for moment in fault_points.IN_ORDER:
            if moment != "state-not-offsets":  # it commits no offsets
                group.create_task(die_at(moment, kafka, tmp_path / moment, random.Random(chance.random())))


async def die_at(moment: str, kafka: str, folder: Path, chance: random.Random) -> None:
    """In one of the first transactions with events; what begins again goes on behind the last that was committed."""
    points = [{"at": moment, "stage": "subscribe", "after": chance.randrange(4, 8), "do": "kill"}]
    async with subscribers(kafka, folder, chance, "subscriber", points=points) as (settings, desk, [keeper], changing):
        assert await keeper.ended(1) == -signal.SIGKILL, keeper.end_of_log()
        assert f"fault point {moment} of subscribe" in keeper.log.read_text()
        await ended(changing, desk)
        await everything_once(settings, desk)


@pytest.mark.slow  # the soak does it each time, though not for so long
async def test_a_broker_that_is_killed_and_away_for_a_while_costs_no_event_on_its_way_in(
    services: LocalServices, tmp_path: Path, chance: random.Random
) -> None:
    """Two subscribers; each outage meets them at work."""
    async with subscribers(services.kafka.bootstrap, tmp_path, chance, "first", "second") as (settings, desk, keepers, changing):
        for away in (0.0, 60.0):
            await until(lambda: arrived(settings, "Contact"), at_least(len(await arrived(settings, "Contact")) + 20))
            await asyncio.to_thread(services.kafka.kill)
            await asyncio.sleep(away)
            await asyncio.to_thread(services.kafka.start)
        await ended(changing, desk)
        print(f"{await everything_once(settings, desk)} events, {[keeper.codes for keeper in keepers]}")


def at_least(count: int) -> Callable[[list[Any]], bool]:
    """Whether so many have come."""
    return lambda found: len(found) >= count


async def harm(keeper: Keeper, step: signal.Signals) -> None:
    """Kill, stop, or suspend for longer than the session."""
    if step is signal.SIGKILL:
        await keeper.kill()
    elif step is signal.SIGSTOP:
        keeper.send(signal.SIGSTOP)
        await asyncio.sleep(SESSION + 2)
        keeper.send(signal.SIGCONT)
    else:
        keeper.send(step)


async def keep_changing(desk: Desk, chance: random.Random) -> None:
    """Changes at a steady rate, whatever else happens."""
    while True:
        await desk.call("POST", "change", rate=40, seconds=2, seed=chance.randrange(10**6), rename_parents=False)
        await asyncio.sleep(2.0)


SECRET = base64.b64encode(b"a made-up key of 24 bytes").decode()
SENDERS = 8


def impatient() -> aiohttp.ClientSession:
    """A sender that gives up after three seconds, also while it connects, and keeps no connection."""
    limits = aiohttp.ClientTimeout(total=3.0, sock_connect=3.0, sock_read=3.0)
    return aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(force_close=True))


async def post(http: aiohttp.ClientSession, url: str, seq: int, counts: dict[str, int]) -> None:
    """One delivery, repeated as a sender does until it is accepted."""
    body = json.dumps({"data": {"id": f"h{seq}", "seq": str(seq)}}).encode()
    while True:
        at = int(time.time())
        digest = base64.b64encode(hmac.digest(base64.b64decode(SECRET), f"d{seq}.{at}.".encode() + body, hashlib.sha256)).decode()
        headers = {"webhook-id": f"d{seq}", "webhook-timestamp": str(at), "webhook-signature": f"v1,{digest}"}
        try:
            async with http.post(url, data=body, headers=headers) as answer:
                if answer.status == 202:
                    return
                assert answer.status == 503, answer.status
                why = "503"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = type(error).__name__
        counts["repeated"] += 1
        counts[why] = counts.get(why, 0) + 1
        await asyncio.sleep(0.2)


async def test_a_receiver_killed_stopped_and_suspended_loses_no_accepted_hook_and_each_acts_once(
    kafka: str, tmp_path: Path, chance: random.Random
) -> None:
    port, counts, numbers = free_port(), {"repeated": 0}, itertools.count()
    async with fault_bench(kafka, tmp_path, chance) as b:
        with_hooks(b, tmp_path)
        await ensure(b.settings, b.topics.all(b.flow, b.settings))
        b.worker()
        environ = {
            "KAFKA_BOOTSTRAP_SERVERS": b.settings.kafka,
            "HEADRACE_INSTALLATION": b.settings.installation,
            "HEADRACE_PARTITIONS": str(b.settings.partitions),
            "HEADRACE_RECEIVER_PORT": str(port),
            "HEADRACE_FLOW": str(tmp_path / "flow.yaml"),
        }
        point = {"at": "kept-not-answered", "stage": "receive", "after": chance.randrange(10, 60), "do": "kill"}

        def line(first: bool) -> list[str]:
            return [sys.executable, "-m", "tests.support.fault_receiver", json.dumps([point] if first else [])]

        receiver = b.keep("receiver", line, environ)
        b.facts["sender"] = counts
        enough = asyncio.Event()

        async def deliver(http: aiohttp.ClientSession) -> None:
            """As long as there are faults: a fixed number was sent and put out before the last of them, where the machine was slow."""
            while not enough.is_set():
                seq = next(numbers)
                await post(http, f"http://127.0.0.1:{port}/hooks/shop", seq, counts)
                b.events.sent.once.add(seq)
                b.events.sent.last[f"shop/h{seq}"] = seq
                b.events.sent.order[f"shop/h{seq}"] = [seq]
                await asyncio.sleep(0.05)

        async with impatient() as http, asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(deliver(http))
            assert await receiver.ended(1) == -signal.SIGKILL and "fault point" in receiver.log.read_text(), receiver.end_of_log()
            for step in chance.sample([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], 5):
                await b.more_outputs(chance.randrange(10, 120))
                if step is signal.SIGSTOP:
                    receiver.send(step)
                    await asyncio.sleep(SESSION + 2)  # also longer than the sender's patience: what it repeats is then taken twice
                    receiver.send(signal.SIGCONT)
                elif step is signal.SIGKILL:
                    await receiver.kill()
                else:
                    receiver.send(step)
            await b.more_outputs(20)
            enough.set()
        await b.verify(stores=False)
        total, kept = len(b.events.sent.once), len(await read_all(b.settings, b.topics.inbound("shop")))
        print(f"{total} deliveries, {counts['repeated']} repeated by the sender, {kept} in the in-topic")
        assert kept >= total


def with_hooks(b: FaultBench, folder: Path) -> None:
    """The bench's flow with a webhook instead of an org, also as a file."""
    (folder / "hook.yaml").write_text("data.seq: seq\n")
    targets = {name: target.model_dump() for name, target in b.flow.targets.items()}
    raw = {
        "connections": {"shop": {"type": "webhook", "secrets": [f"whsec_{SECRET}"], "key": "data.id"}},
        "targets": targets,
        "routes": {f"hooks-{name}": {"from": ["shop"], "to": name, "map": "hook.yaml", "object": "signup"} for name in targets},
    }
    (folder / "flow.yaml").write_text(json.dumps(raw))
    b.flow = Flow.model_validate(raw | {"folder": str(folder)})
