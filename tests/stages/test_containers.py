"""Whose servers a test session uses: the environment's, a container's where a Docker engine answers, else local ones, and it says why.

The engine is a small one of our own on a socket: nothing here needs Docker. PostgreSQL and Kafka behind the choice are real.
"""

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from testcontainers.core.config import testcontainers_config

from deploy.local.jars import KAFKA_VERSION
from deploy.local.kafka import BEHAVIOUR
from tests.support.containers import NoContainerError, container
from tests.support.docker_engine import ID, DockerEngine
from tests.support.services import chosen, server
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture(autouse=True)
def no_servers_named(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And no reaper: it is a container more. What the session itself uses stays said as it was."""
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    before = dict(chosen)
    yield
    chosen.clear()
    chosen.update(before)


@pytest.fixture
def place() -> Iterator[Path]:
    """Of a socket, whose path may not be long."""
    with tempfile.TemporaryDirectory(prefix="docker-") as folder:
        yield Path(folder) / "engine.sock"


@pytest.fixture
def answered(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerEngine]:
    engine = DockerEngine()
    with engine.listening(place) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        yield engine


def test_what_the_environment_names_comes_first_and_no_engine_is_asked(
    answered: DockerEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    with server("kafka", containers=True, parent=tmp_path) as address:
        assert (address, chosen["kafka"]) == ("kafka.example:9092", "KAFKA_BOOTSTRAP_SERVERS of the environment")
    assert answered.created == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["absent", "silent", "garbage"])
def test_without_an_engine_that_answers_there_is_no_container(engine: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}")
    with socket.socket(socket.AF_UNIX) as listener:
        if engine != "absent":
            listener.bind(str(place))
            listener.listen()
        if engine == "garbage":
            listener.close()
            place.unlink()
            place.write_text("not a socket")
        with pytest.raises(NoContainerError, match=f"no Docker engine answers at unix://{place}"), container("kafka"):
            pass


@pytest.mark.parametrize("host", ["tcp://docker.example:2375", "ssh://somebody@build.example"])
def test_an_engine_of_another_machine_is_not_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(NoContainerError, match="another machine's"), container("postgres"):
        pass


@pytest.mark.parametrize("refuses", ["images", "create", "start"])
def test_a_container_that_does_not_start_leaves_nothing_and_says_why(refuses: str, answered: DockerEngine) -> None:
    answered.refuses = refuses
    with pytest.raises(NoContainerError, match=rf"postgres:18 did not start: .*no {refuses} today"), container("postgres"):
        pass
    assert answered.removed == ([ID] if refuses == "start" else [])


@pytest.mark.postgres
@pytest.mark.parametrize(("containers", "why"), [(True, "no create today"), (False, "--no-containers")])
def test_without_a_container_the_local_server_serves_and_the_session_says_why(
    containers: bool, why: str, answered: DockerEngine, tmp_path: Path
) -> None:
    answered.refuses = "create"
    with server("postgres", containers, tmp_path) as url, psycopg.connect(url) as connection:
        connection.execute("SELECT 1")
    assert chosen["postgres"].startswith("local (") and why in chosen["postgres"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kafka
async def test_a_broker_in_a_container_is_configured_as_the_local_one_and_removed_at_the_end(kafka: str, answered: DockerEngine) -> None:
    loop, proxies = asyncio.get_running_loop(), []

    def open_port(request: Any) -> None:
        """As an engine does: the container's port is one of this machine, and here the session's broker answers behind it."""
        (bound,) = request["HostConfig"]["PortBindings"]["9092/tcp"]
        assert bound["HostIp"] == "127.0.0.1"
        proxies.append(TcpProxy("127.0.0.1", int(kafka.rpartition(":")[2]), int(bound["HostPort"])))
        asyncio.run_coroutine_threadsafe(proxies[0].__aenter__(), loop).result()

    def use() -> str:
        with server("kafka", containers=True) as address:
            assert answered.removed == []
            return address

    answered.started = open_port
    address = await asyncio.to_thread(use)
    await proxies[0].__aexit__(None, None, None)
    (request,) = answered.created
    assert chosen["kafka"] == f"container {request['Image']}" == f"container apache/kafka:{KAFKA_VERSION}"
    environment = dict(pair.split("=", 1) for pair in request["Env"])
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"HOST://{address},INSIDE://{request['Hostname']}:19092"
    lines = [line.split("=") for line in BEHAVIOUR.splitlines() if not line.startswith("#")]
    assert {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in lines}.items() <= environment.items()
    assert answered.removed == [ID]
