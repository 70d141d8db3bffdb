"""The real servers: they start, come back after a crash with what they held, and nothing of them outlives the command.

Always started here, whatever the environment names.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local import FolderInUseError, LocalServiceError, LocalServices
from tests.support.services import start_in_free_folder

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

HOLD = "from deploy.local.__main__ import main; raise SystemExit(main())"
WITHOUT_DEATH_SIGNAL = "import deploy.local.process as p; p._die_with_parent = lambda number: None\n" + HOLD


@pytest.fixture(autouse=True)
def no_servers_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "services"
    # Whatever a test left running, and the data PostgreSQL keeps elsewhere when we are root, goes.
    with contextlib.suppress(FolderInUseError), LocalServices(tmp_path / "services", temporary=True) as services:
        services.start(kafka=False)
        services.kafka.stop_leftover()


def command(folder: Path, program: str = HOLD) -> tuple[subprocess.Popen[str], dict[str, str], list[psutil.Process]]:
    """A command that holds servers in `folder`: the process, what it exports, and the servers' processes."""
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    exported = dict(process.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(2))
    return process, exported, psutil.Process(process.pid).children(recursive=True)


def still_there(servers: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(servers, timeout=20)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_servers_end_with_the_command(folder: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    process, _, servers = command(folder)
    assert {server.name() for server in servers} >= {"java", "postgres"}
    process.send_signal(number)
    process.wait(30)
    assert still_there(servers) == []


def test_the_next_command_stops_what_a_killed_one_left_and_finds_its_data(folder: Path) -> None:
    process, exported, left = command(folder, WITHOUT_DEATH_SIGNAL)
    with psycopg.connect(exported["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE kept (value int)")
    process.kill()
    process.wait(10)
    assert all(server.is_running() for server in left if server.name() == "java")
    said: list[str] = []
    with LocalServices(folder) as services:
        endpoints = services.start(progress=said.append)
        assert still_there(left) == []
        assert [line for line in said if "killed command" in line] == [
            "stopped the Kafka that a killed command had left",
            "stopped the PostgreSQL that a killed command had left",
        ]
        with psycopg.connect(endpoints.database_url) as connection:
            connection.execute("SELECT value FROM kept")


def test_a_second_command_is_refused_the_folder_and_harms_nothing(folder: Path) -> None:
    with LocalServices(folder) as first:
        endpoints = first.start(kafka=False)
        with pytest.raises(FolderInUseError, match=rf"pid {os.getpid()}"):
            LocalServices(folder).start(kafka=False)
        with psycopg.connect(endpoints.database_url) as connection:
            connection.execute("SELECT 1")


def test_two_test_sessions_get_folders_of_their_own_and_leave_none(tmp_path: Path) -> None:
    first, first_endpoints = start_in_free_folder(kafka=False, postgres=True, parent=tmp_path)
    with first:
        second, second_endpoints = start_in_free_folder(kafka=False, postgres=True, parent=tmp_path)
        with second:
            assert first_endpoints != second_endpoints
        with psycopg.connect(first_endpoints.database_url) as connection:
            connection.execute("SELECT 1")
    assert list(tmp_path.iterdir()) == []


def test_when_kafka_cannot_start_postgres_is_stopped_and_the_log_is_shown(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        services = LocalServices(folder, kafka_port=taken.getsockname()[1])
        with pytest.raises(LocalServiceError, match=r"(?s)server\.log.*already in use"):
            services.start()
    assert (services.kafka.pid, services.postgres.pid) == (None, None)


async def test_a_killed_broker_comes_back_with_its_data_on_its_port(folder: Path) -> None:
    with LocalServices(folder) as services:
        bootstrap = services.start(postgres=False).bootstrap
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("kept", num_partitions=3, replication_factor=1)])
        await admin.close()
        services.kafka.kill()
        services.kafka.start()
        assert services.kafka.bootstrap == bootstrap
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="t")
        await producer.start()
        try:
            assert await producer.partitions_for("kept") == {0, 1, 2}
            async with producer.transaction():
                await producer.send_and_wait("kept", b"x")
        finally:
            await producer.stop()


def test_a_killed_postgres_comes_back_with_its_data_on_its_port(folder: Path) -> None:
    with LocalServices(folder) as services:
        url = services.start(kafka=False).database_url
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        services.postgres.kill()
        services.postgres.start()
        assert services.postgres.url == url
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchall() == [(1,)]


def test_as_root_the_data_is_closed_to_other_users_and_nothing_else_was_opened(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("PostgreSQL's data lies elsewhere only when root starts it")
    folder.parent.chmod(0o700)
    with LocalServices(folder) as services:
        services.start(kafka=False)
        home = Path((folder / "postgres" / "home").read_text())
        assert home.stat().st_mode & 0o077 == 0
        assert home.stat().st_uid != 0
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert (folder / "postgres" / "password").stat().st_mode & 0o077 == 0
