"""Subscriber and receiver killed, stopped and suspended under wire faults: every event is in the in-topic once, every hook acts once."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from deploy.local.process import free_port
from models.flow import Flow
from models.settings import Settings
from streams.publish import read_all
from streams.topics import Topics, ensure
from tests.support import subscriber_process
from tests.support.broker import settings_for, topics
from tests.support.fault_bench import SESSION, FaultBench, fault_bench
from tests.support.fault_keeper import Keeper
from tests.support.salesforce import Desk, arrived, connected, flow_for, order_of, org, until

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
    assert found == published, f"{len(set(published) - set(found))} of {len(published)} lost, {len(found) - len(set(found))} twice"
    for positions in (await order_of(settings, *objects)).values():
        assert positions == sorted(positions)
    return len(found)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_subscribers_killed_stopped_and_suspended_under_wire_faults_bring_every_event_once_and_in_order(
    kafka: str, tmp_path: Path, chance: random.Random, kills: int
) -> None:
    settings = settings_for(kafka, tmp_path, session_timeout=SESSION)
    async with topics(settings, []), org(records=20, hold=1.0) as desk:
        flow = flow_for(desk.url, silence=5)
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        line = subscriber_process.command(settings, flow, "subscribe", start_from="new", snapshot=False, pause_seconds=0.3)
        keepers = [Keeper(tmp_path / name, lambda _: line, {}).keep() for name in ("first", "second")]
        try:
            await connected(desk)
            await desk.create("Before")
            await until(lambda: arrived(settings, "Contact"), lambda a: len(a) == 1)
            changing = asyncio.create_task(keep_changing(desk, chance))
            steps = [signal.SIGKILL] * kills + [signal.SIGTERM, signal.SIGSTOP]
            chance.shuffle(steps)
            for step in steps:
                await desk.fault(**chance.choice(WIRE))
                await asyncio.sleep(chance.uniform(0.2, 2.0))
                await harm(chance.choice(keepers), step)
            await revoke_for_a_moment(desk)
            changing.cancel()
            with suppress(asyncio.CancelledError):
                await changing
            await desk.call("DELETE", "faults")
            print(f"{await everything_once(settings, desk)} events, {[keeper.codes for keeper in keepers]}, {[s.name for s in steps]}")
        except BaseException:
            print(*(keeper.end_of_log() for keeper in keepers), sep="\n---\n")
            raise
        finally:
            for keeper in keepers:
                await keeper.stop(signal.SIGKILL)


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
    port, counts, total = free_port(), {"repeated": 0}, 800
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
        receiver = b.keep("receiver", lambda _: [sys.executable, "-m", "deploy", "receive", "--no-supervise"], environ)
        b.facts["sender"] = counts
        gate = asyncio.Semaphore(8)
        async with impatient() as http, asyncio.TaskGroup() as group:

            async def deliver(seq: int) -> None:
                async with gate:
                    await post(http, f"http://127.0.0.1:{port}/hooks/shop", seq, counts)
                    b.events.sent.once.add(seq)
                    b.events.sent.last[f"shop/h{seq}"] = seq
                    b.events.sent.order[f"shop/h{seq}"] = [seq]
                    await asyncio.sleep(0.05)

            for seq in range(total):
                group.create_task(deliver(seq))
            for step in chance.sample([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], 5):
                await b.more_outputs(chance.randrange(10, 120))
                if step is signal.SIGSTOP:
                    receiver.send(step)
                    await asyncio.sleep(4.0)  # longer than the sender's patience: it repeats what is then taken twice
                    receiver.send(signal.SIGCONT)
                elif step is signal.SIGKILL:
                    await receiver.kill()
                else:
                    receiver.send(step)
        await b.verify(stores=False)
        kept = len(await read_all(b.settings, b.topics.inbound("shop")))
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
