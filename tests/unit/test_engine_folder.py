"""The state folder: one process at a time, and only stores that can be true for this installation."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from models.errors import FatalError
from streams.engine import folder as module
from streams.engine.folder import StateFolder
from streams.engine.store import Disk


def held(path: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock of this folder."""
    script = """
import sys, time
from pathlib import Path
from streams.engine.folder import StateFolder
StateFolder(Path(sys.argv[1])).lock()
print("locked", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    return process


def test_a_second_process_is_refused_with_folder_and_pid_and_kill_9_frees_the_folder(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        folder = StateFolder(tmp_path)
        try:
            with pytest.raises(FatalError, match=f"{tmp_path} is in use by process {process.pid}: .*HEADRACE_STATE_DIR"):
                folder.lock()
        finally:
            process.kill()
            process.wait()
        folder.lock()
        folder.release()


def test_a_state_folder_that_cannot_be_one_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FatalError, match=f"{path} cannot be used.*HEADRACE_STATE_DIR"):
            StateFolder(path).lock()


def claimed(path: Path, installation: str = "a", partitions: int = 4, cluster: str = "c") -> list[str]:
    """Claim the folder; what was left in its stores."""
    folder = StateFolder(path)
    folder.lock()
    try:
        folder.claim(installation, partitions, cluster)
    finally:
        folder.release()
    return sorted(str(store.relative_to(path)) for store in path.glob("*/*/CURRENT"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder of installation a with two stores, and something that is none."""
    claimed(tmp_path)
    for number in (0, 11):
        Disk(tmp_path / "records" / str(number)).close()
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    (tmp_path / "photos" / "2024" / "cat.png").write_bytes(b"cat")
    return tmp_path


BOTH = ["records/0/CURRENT", "records/11/CURRENT"]


def test_its_own_folder_is_kept_as_it_is(state: Path) -> None:
    assert claimed(state) == BOTH


def test_the_folder_of_another_installation_is_refused_untouched(state: Path) -> None:
    with pytest.raises(FatalError, match=f"{state} belongs to installation a, not to b: set HEADRACE_STATE_DIR"):
        claimed(state, installation="b", partitions=8)
    assert claimed(state) == BOTH


@pytest.mark.parametrize("other", [{"partitions": 8}, {"cluster": "another Kafka"}], ids=str)
def test_stores_of_other_partitions_or_another_kafka_are_wiped_and_nothing_else(state: Path, other: dict[str, Any]) -> None:
    with capture_logs() as lines:
        assert claimed(state, **other) == []
    assert [(line["event"], line["stores"]) for line in lines] == [("state folder wiped", 2)]
    assert (state / "photos" / "2024" / "cat.png").read_bytes() == b"cat"
    Disk(state / "records" / "0").close()
    assert claimed(state, **other) == ["records/0/CURRENT"], "wiped at every start"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1}', '{"format": 3, "installation": "a", "partitions": 4, "cluster": "c"}']
)
def test_stores_of_another_format_or_of_nobody_are_wiped(state: Path, text: str) -> None:
    (state / "identity.json").write_text(text)
    assert claimed(state) == []
    assert claimed(state) == []


def test_a_second_lock_on_a_state_folder_is_refused_with_its_owner(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path), StateFolder(tmp_path)
    first.lock()
    with pytest.raises(FatalError, match=r"in use by process \d+"):
        second.lock()
    first.release()
    second.lock()
    second.release()


def test_stores_of_an_older_format_are_wiped(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert claimed(state) == []
