"""`status` tells what is there, and says what it could not ask."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from deploy.status_view import age, render
from models.dead_letter import dead_letter
from models.flow import Flow
from models.settings import Settings
from streams import metrics
from streams.engine.stage import Output
from streams.health import Health
from streams.publish import send
from streams.salesforce.leases import Leases
from streams.salesforce.limits import Budget
from streams.scrape import parse, quantile
from streams.status import Claim, Status, collect, scrape_targets
from streams.topics import Topics, ensure
from streams.verified import Verified
from tests.support.broker import settings_for, topics

FLOW = Flow.model_validate(
    {
        "connections": {
            "acme": {"type": "salesforce", "auth": {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}},
            "shop": {"type": "webhook", "secrets": ["x"]},
        },
        "targets": {"warehouse": {"type": "postgres"}},
        "routes": {"all": {"from": ["acme/Contact", "shop"], "to": "warehouse", "map": "m", "verify": "1h"}},
    }
)
CHANNEL = "/data/ChangeEvents"


def shown(status: Status) -> str:
    """As a person sees it."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(status))
    return capture.get()


async def test_while_kafka_is_away_it_says_so_and_shows_no_zero_for_what_it_does_not_know(tmp_path: Path) -> None:
    status = await collect(Settings(kafka="127.0.0.1:1", installation="t-none", state=tmp_path / "not" / "there"), FLOW)
    assert "Kafka at 127.0.0.1:1 did not answer" in status.unknown[0]
    assert all(hop.lag is None and hop.oldest is None for hop in status.hops)
    assert status.kafka_loss is None
    text = shown(status)
    assert "did not answer" in text
    assert "none runs" in text
    assert status.disk_free
    assert json.loads(status.json())["hops"][0]["lag"] is None


@pytest.mark.kafka
async def test_of_an_installation_that_never_ran_it_says_so(kafka: str, tmp_path: Path) -> None:
    status = await collect(settings_for(kafka, tmp_path), FLOW)
    assert status.unknown == [f"installation {status.installation} has no topics yet: nothing was started here"]
    assert "none runs" in shown(status)


@pytest.mark.kafka
async def test_tells_processes_lag_positions_and_dead_letters(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path)
    names = Topics(settings.installation)
    async with topics(settings, []):
        await ensure(settings, names.all(FLOW, settings))
        health = Health(settings, "worker", restarts=2)
        now = int(time.time())
        position = {"epoch": 3, "position": 42, "second": now - 3600, "org": "00D", "instance": "x", "started": 1, "from": "new", "at": 1}
        letters = [
            dead_letter(stage="write", reason=f"row {n} refused [b]", error="PermanentError", at=n, topic="t", partition=0, offset=n,
                        key=None, value=b"x", headers=[], redrive_to="i", route="all")
            for n in (1, 2, 2)
        ]  # fmt: skip
        old = {"role": "receive", "host": "h", "pid": 7, "metrics": "http://127.0.0.1:1/metrics", "started": 5, "restarts": 0}
        await send(
            settings,
            [
                Output(names.inbound("acme/Contact"), b"003", b"{}"),
                Output(names.inbound("acme/Contact"), b"004", b"{}"),
                Output(names.writes("warehouse", bulk=True), b"users|1", b"{}"),
                Output(names.positions, f"acme|{CHANNEL}".encode(), json.dumps(position).encode()),
                *(Output(names.dead_letters, letter.id.encode(), letter.model_dump_json().encode()) for letter in letters),
                Output(
                    names.dead_letters, b"t/0/3/all", letters[0].model_copy(update={"id": "t/0/3/all", "at": 3}).model_dump_json().encode()
                ),
                Output(names.dead_letters, b"t/0/3/all", None, [("redriven", b"run")]),
                Output(names.dead_letters, b"x", b"not a dead letter"),
                Output(names.processes, b"killed", json.dumps(old | {"at": (now - 100) * 1000}).encode()),
                Output(names.processes, b"forgotten", json.dumps(old | {"at": (now - 200_000) * 1000}).encode()),
                Output(names.processes, b"cut off", json.dumps(old | {"at": now * 1000}).encode()),
                Output(names.processes, b"junk", b"[1]"),
                Verified("all", "acme/Contact", "warehouse", "verified", now * 1000, now - 7200, 10, 3, 3, 5).output(names),
                Output(names.runs, b"other", b'{"kind": "snapshot", "run": "other", "source": "acme/Contact"}'),
            ],
        )
        metrics.PROCESSED.labels("acme", "Contact", "changed").inc(5)
        metrics.SUBSCRIBED.labels("acme", CHANNEL).set(1)
        metrics.PAUSED.labels("warehouse").set(1)
        metrics.POLLED.labels("acme", "Contact").set(2)
        metrics.LAST_POLL.labels("acme", "Contact").set(now - 30)
        budget = Budget("acme", most=100)
        budget.admit("poll")
        leases = Leases(settings, "acme", budget)
        await leases.room()
        await leases.close()
        metrics.API_SHARE.labels("acme").set(0.25)
        await health.start()
        url = health.url.removeprefix("http://")
        try:
            async with asyncio.timeout(30):
                status = await collect(settings, FLOW)
                while health.name not in {p.name for p in status.processes if p.answers} or any("Kafka" in one for one in status.unknown):
                    status = await collect(settings, FLOW)
        finally:
            await health.stop()
            metrics.PAUSED.labels("warehouse").set(0)
        hops = {(hop.stage, hop.name): hop for hop in status.hops}
        assert (hops["process", "acme/Contact"].lag, hops["process", "acme/Contact"].bulk_lag) == (2, 0)
        assert hops["process", "acme/Contact"].through >= 5
        assert (hops["write", "warehouse"].lag, hops["write", "warehouse"].bulk_lag) == (0, 1)
        assert hops["write", "warehouse"].oldest is not None
        assert [(c.count, c.route, c.last) for c in status.dead] == [(2, "all", 2)]
        [channel] = status.channels
        assert (channel.epoch, channel.position, channel.up) == (3, 42, True)
        assert channel.loss is not None
        assert 70 * 3600 < channel.loss <= 71 * 3600
        alive = {p.name: (p.alive, p.answers, p.restarts) for p in status.processes}
        assert alive == {health.name: (True, True, 2), "cut off": (True, False, 0), "killed": (False, False, 0)}
        assert status.paused == ["warehouse"]
        assert {"targets": [url], "labels": {"role": "worker"}} in scrape_targets(status)
        [way] = [w for w in status.ways if w.sobject == "Contact"]
        assert (way.by, way.every, 30 <= (way.polled or 0) < 90) == ("instead", 60.0, True)
        assert [(c.connection, c.ours, c.share) for c in status.calls] == [("acme", {"poll": 1}, 0.25)]
        text = shown(status)
        assert "event allocation is used up" in text and "poll 1" in text and "25%" in text
        assert "row 2 refused [b]" in text
        assert "silent for 2 min" in text
        assert status.verified == [Claim("all", "warehouse", now - 7200, 3600.0, now * 1000, 3, 3, "")]
        assert "2.0 h" in text and "3 differences, 3 repaired" in text
        after = await collect(settings, FLOW)
        assert health.name not in [p.name for p in after.processes], "a process that ended by itself is still listed"


def test_the_quantile_lies_within_its_bucket() -> None:
    buckets = [(0.1, 50.0), (1.0, 99.0), (float("inf"), 100.0)]
    assert quantile(0.5, buckets) == pytest.approx(0.1)
    assert 0.1 < (quantile(0.75, buckets) or 0) < 1.0
    assert quantile(0.999, buckets) == 1.0
    assert quantile(0.5, []) is None
    assert quantile(0.5, [(1.0, 0.0)]) is None


def test_what_we_serve_can_be_read_back() -> None:
    metrics.HOOKS.labels("shop", "accepted").inc()
    samples = parse(generate_latest().decode())
    assert samples["headrace_hooks_total"][("connection", "shop"), ("outcome", "accepted")] >= 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0, "0 s"), (0.02, "20 ms"), (59, "59 s"), (150, "2 min"), (9000, "2.5 h"), (1e6, "11.6 d")]
)
def test_ages_are_for_people(seconds: float | None, text: str) -> None:
    assert age(seconds) == text
