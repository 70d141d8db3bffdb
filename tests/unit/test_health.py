"""Health answers from its own thread, whatever the loop and Kafka do."""

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest

from models.errors import SettingsError
from models.settings import Settings
from streams.health import Health

AWAY = Settings(kafka="127.0.0.1:1", installation="t-health")


def get(url: str) -> tuple[int, str]:
    """Status and text of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
async def health() -> AsyncIterator[Health]:
    made = Health(AWAY, "worker", stuck=0.2, restarts=3)
    await made.start()
    yield made
    await made.stop()


async def test_serves_metrics_with_role_and_restarts(health: Health) -> None:
    status, text = await asyncio.to_thread(get, f"{health.url}/metrics")
    assert status == 200
    assert 'headrace_process_info{role="worker"' in text
    assert 'headrace_process_restarts_total{role="worker"} 3.0' in text


async def test_answers_and_reports_a_stuck_loop_while_the_loop_is_stuck(health: Health) -> None:
    answered = threading.Event()
    seen: list[Any] = []

    def poll() -> None:
        while not seen or seen[-1][0] != 503:
            seen.append(get(f"{health.url}/healthz"))
        answered.set()

    threading.Thread(target=poll, daemon=True).start()
    assert answered.wait(30)  # blocks the event loop on purpose
    assert "the event loop has not answered" in seen[-1][1]


async def test_is_healthy_while_the_loop_turns_and_kafka_is_away() -> None:
    health = Health(AWAY, "worker")
    await health.start()
    assert await asyncio.to_thread(get, f"{health.url}/healthz") == (200, "ok\n")
    await health.stop()


async def test_is_ready_only_when_every_named_part_is(health: Health) -> None:
    async def readyz() -> tuple[int, str]:
        return await asyncio.to_thread(get, f"{health.url}/readyz")

    assert (await readyz())[0] == 503
    health.ready("kafka", True)
    health.ready("targets", False, "warehouse: paused")
    status, text = await readyz()
    assert (status, text) == (503, "kafka: ok\ntargets: not ready, warehouse: paused\n")
    health.ready("targets", True)
    assert (await readyz())[0] == 200


async def test_says_which_setting_to_change_when_the_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = AWAY.model_copy(update={"metrics_port": taken.getsockname()[1]})
        with pytest.raises(SettingsError, match="HEADRACE_METRICS_PORT"):
            await Health(settings, "worker").start()


@pytest.mark.parametrize("path", ["/", "/metricsx", "/%00", "/" + "a" * 60_000, "/healthz/.."])
async def test_unknown_paths_are_refused(health: Health, path: str) -> None:
    status, _ = await asyncio.to_thread(get, health.url + path)
    assert status in (404, 414)


async def test_garbage_and_silent_clients_leave_the_server_answering(health: Health) -> None:
    host, port = health.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    with socket.create_connection((host, int(port))) as garbage:
        garbage.sendall(b"\x00\xff garbage\r\n\r\n")
    assert (await asyncio.to_thread(get, f"{health.url}/metrics"))[0] == 200
    for one in silent:
        one.close()


async def test_a_stopped_health_leaves_no_port_and_no_task(health: Health) -> None:
    before = asyncio.all_tasks()
    other = Health(AWAY, "receive")
    await other.start()
    host, port = other.url.removeprefix("http://").split(":")
    await other.stop()
    assert asyncio.all_tasks() <= before
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=2)
