"""`headrace worker` and `faust -A agents.worker worker` as processes: they start, come back, stop when asked, leave nobody behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from deploy.local.process import free_port
from models.settings import Settings
from tests.support.broker import settings_for, topics

pytestmark = pytest.mark.kafka

FLOW = """\
connections: {forms: {type: webhook, secrets: ["${FORMS_SECRET}"], key: id}}
targets: {warehouse: {type: postgres, dsn: "postgresql://127.0.0.1:9/none"}}
routes: {signups: {from: forms, to: warehouse, map: map.yaml, object: signup}}
"""
Start = Callable[..., subprocess.Popen[bytes]]
SECONDS = 60


@pytest.fixture
async def settings(kafka: str, tmp_path: Path) -> AsyncIterator[Settings]:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "map.yaml").write_text("email: email\n")
    made = settings_for(kafka, tmp_path / "state", partitions=2)
    async with topics(made, []):
        yield made


@pytest.fixture
async def start(settings: Settings, tmp_path: Path) -> AsyncIterator[Start]:
    started: list[subprocess.Popen[bytes]] = []
    environ = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka,
        "HEADRACE_INSTALLATION": settings.installation,
        "HEADRACE_PARTITIONS": "2",
        "HEADRACE_STATE_DIR": str(settings.state),
        "HEADRACE_FLOW": str(tmp_path / "flow.yaml"),
        "FORMS_SECRET": "whsec_aGVsbG9oZWxsb2hlbGxvaGVsbG8=",
    }

    def run(*command: str, **more: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            whole = {**environ, **more}
            started.append(subprocess.Popen([sys.executable, "-m", *command], env=whole, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


async def said(log: Path, words: str, times: int = 1) -> None:
    await asyncio.to_thread(_said, log, words, times)


def _said(log: Path, words: str, times: int) -> None:
    deadline = time.monotonic() + SECONDS
    while log.read_text().count(words) < times:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, SECONDS)


async def test_a_worker_takes_its_partitions_and_stops_when_asked(start: Start, tmp_path: Path) -> None:
    worker = start("deploy", "worker")
    await said(tmp_path / "log", "worker started")
    (child,) = psutil.Process(worker.pid).children()
    worker.send_signal(signal.SIGTERM)
    assert await ended(worker) == 0
    assert "worker stopped" in (tmp_path / "log").read_text()
    assert not child.is_running()


async def test_a_killed_worker_comes_back_and_can_be_stopped_while_it_waits_for_the_group(start: Start, tmp_path: Path) -> None:
    worker = start("deploy", "worker")
    await said(tmp_path / "log", "worker started")
    (child,) = psutil.Process(worker.pid).children()
    child.kill()
    await said(tmp_path / "log", "health served", times=2)
    (again,) = psutil.Process(worker.pid).children()
    worker.send_signal(signal.SIGTERM)
    assert await ended(worker) == 0
    assert not again.is_running()


async def test_a_killed_worker_works_again_without_waiting_for_its_session_and_counts_its_restart(start: Start, tmp_path: Path) -> None:
    port = free_port()
    worker = start("deploy", "worker", HEADRACE_SESSION_TIMEOUT="900", HEADRACE_DRAIN_SECONDS="900", HEADRACE_METRICS_PORT=str(port))
    await said(tmp_path / "log", "worker started")
    (child,) = psutil.Process(worker.pid).children()
    child.kill()
    await said(tmp_path / "log", "worker started", times=2)
    await said(tmp_path / "log", "partitions taken over", times=2)
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        assert 'headrace_process_restarts_total{role="worker"} 1.0' in await answer.text()
    worker.send_signal(signal.SIGTERM)
    assert await ended(worker) == 0


async def test_the_faust_command_finds_the_app(start: Start, tmp_path: Path) -> None:
    worker = start("faust", "-A", "agents.worker", "worker", "-l", "info", "--web-port", str(free_port()))
    await said(tmp_path / "log", "partitions taken over")
    worker.send_signal(signal.SIGTERM)
    await ended(worker)
    assert "Traceback" not in (tmp_path / "log").read_text()
