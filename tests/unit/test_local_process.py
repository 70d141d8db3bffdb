"""A pid file stops only the process it was written for. Stand-ins take the place of the servers."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local import Endpoints, LocalServiceError, LocalServices
from deploy.local.process import BLOCK, ServerProcess, _block, free_port

SLEEPER = "import sys, time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python with a program; the test's folder is in its command line, as a server's data folder is."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str = SLEEPER) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def server(folder: Path, marker: str | None = None) -> ServerProcess:
    return ServerProcess("stand-in", folder, marker or str(folder), signal.SIGTERM)


def remember(folder: Path, pid: int, created: float) -> None:
    (folder / "process.json").write_text(json.dumps({"pid": pid, "created": created}))


def test_a_leftover_is_stopped_once(tmp_path: Path, stand_in: Callable[[], subprocess.Popen[str]]) -> None:
    process = stand_in()
    remember(tmp_path, process.pid, psutil.Process(process.pid).create_time())
    assert server(tmp_path).stop_leftover()
    assert process.wait(10) == -signal.SIGTERM
    assert not (tmp_path / "process.json").exists()
    assert not server(tmp_path).stop_leftover()


def test_a_leftover_that_does_not_listen_is_killed(tmp_path: Path, stand_in: Callable[[str], subprocess.Popen[str]]) -> None:
    process = stand_in(DEAF)
    remember(tmp_path, process.pid, psutil.Process(process.pid).create_time())
    assert server(tmp_path).stop_leftover(timeout=0.1)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("foreign", ["started at another time", "another command line"])
def test_a_recycled_pid_is_left_alone(tmp_path: Path, foreign: str, stand_in: Callable[[], subprocess.Popen[str]]) -> None:
    process = stand_in()
    created = psutil.Process(process.pid).create_time()
    remember(tmp_path, process.pid, created - (3600 if foreign == "started at another time" else 0))
    marker = str(tmp_path) if foreign == "started at another time" else "/another/folder"
    assert not server(tmp_path, marker).stop_leftover()
    assert process.poll() is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"pid": -1, "created": 0}', '{"pid": "x", "created": 0}', '{"pid": 99999999999, "created": 0}', "\x00"],
)
def test_a_damaged_pid_file_stops_nobody_and_is_removed(tmp_path: Path, content: str) -> None:
    (tmp_path / "process.json").write_text(content)
    assert not server(tmp_path).stop_leftover()
    assert not (tmp_path / "process.json").exists()


def test_a_server_dies_with_its_starter_even_by_kill_9(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died; elsewhere the next command stops what is left")
    script = (
        "import os, signal, sys; from pathlib import Path; from deploy.local.process import ServerProcess\n"
        "folder = Path(sys.argv[1]); server = ServerProcess('x', folder, str(folder), signal.SIGTERM)\n"
        f"server.spawn([sys.executable, '-c', {SLEEPER!r}, folder], dict(os.environ))\n"
        "print(server.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    _, alive = psutil.wait_procs([process for process in psutil.process_iter() if process.pid == int(done.stdout)], timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_servers_the_environment_names_are_used_and_none_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody:s3cret@db.example/crm")
    with LocalServices(tmp_path / "services") as services:
        endpoints = services.start()
    assert endpoints == Endpoints("kafka.example:9092", "postgresql://somebody:s3cret@db.example/crm")
    assert endpoints.environment() == {name: os.environ[name] for name in ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL")}
    assert not (tmp_path / "services").exists()
    assert "s3cret" not in repr(endpoints)


def test_free_ports_lie_below_the_range_of_outgoing_connections() -> None:
    assert all(1024 < free_port() < 32768 for _ in range(20))


def test_no_port_is_given_twice_while_others_are_left_nor_to_two_processes() -> None:
    ask = "from deploy.local.process import free_port; print(*(free_port() for _ in range(50)), flush=True); input()"
    others = [subprocess.Popen([sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    given = [int(port) for other in others if other.stdout for port in other.stdout.readline().split()]
    for other in others:
        other.communicate("\n")
    given += [free_port() for _ in range(50)]
    assert (len(given), len(set(given))) == (200, 200)


def test_a_port_that_somebody_listens_on_is_not_given() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] not in {free_port() for _ in range(2 * BLOCK)}


def test_no_free_port_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> None:
        raise OSError("in use")

    monkeypatch.setattr("deploy.local.process.socket.socket.bind", taken)
    for find in (free_port, _block.__wrapped__):  # none of ours, and no block of our own
        with pytest.raises(LocalServiceError, match="No free TCP port"):
            find()
