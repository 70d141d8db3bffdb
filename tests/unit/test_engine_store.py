"""Stores: equal to the changelog up to the persisted offset, whatever is open, on disk as in memory."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from models.errors import FatalError
from streams.engine.stage import Changes
from streams.engine.store import CACHE_BYTES, META, Backend, DamagedError, Disk, Memory, TableStore, mark_key


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Backend]]:
    made: list[Backend] = []

    def new() -> Backend:
        made.append(Memory() if request.param == "memory" else Disk(tmp_path / "records" / str(len(made))))
        return made[-1]

    yield new
    for backend in made:
        backend.close()


def fresh(make: Callable[[], Backend], end: int = 0) -> tuple[TableStore, Backend]:
    backend = make()
    store = TableStore(backend)
    store.loaded(end)
    return store, backend


def offset(store: TableStore) -> int:
    assert store.position is not None
    return store.position[0]


def test_reads_see_what_is_not_committed_and_the_backend_does_not(make: Callable[[], Backend]) -> None:
    store, backend = fresh(make)
    token = store.stage([(b"a", b"1"), (b"b", b"1"), (b"a", b"2")])
    assert store.get_many([b"a", b"b", b"c"]) == [b"2", b"1", None]
    assert backend.get_many([b"a", b"b"]) == [None, None]
    store.apply(token, [(b"a", b"1"), (b"b", b"1"), (b"a", b"2")], 2)
    assert backend.get_many([b"a", b"b"]) == [b"2", b"1"]
    assert offset(store) == 2


def test_a_later_change_of_a_key_stays_visible_when_the_earlier_one_is_committed(make: Callable[[], Backend]) -> None:
    store, backend = fresh(make)
    first = store.stage([(b"a", b"1")])
    second = store.stage([(b"a", None)])
    store.apply(first, [(b"a", b"1")], 1)
    assert store.get_many([b"a"]) == [None]
    assert backend.get_many([b"a"]) == [b"1"]
    store.apply(second, [(b"a", None)], 3)
    assert store.get_many([b"a"]) == backend.get_many([b"a"]) == [None]
    assert dict(store.items()) == {}


def test_the_persisted_offset_never_passes_a_transaction_that_is_still_open(make: Callable[[], Backend]) -> None:
    store, _ = fresh(make, end=100)
    slow = store.stage([(b"a", b"1")])
    quick = store.stage([(b"b", b"1")])
    store.apply(quick, [(b"b", b"1")], 120)
    assert offset(store) == 100
    store.touch()
    assert offset(store) == 100
    store.apply(slow, [(b"a", b"1")], 110)
    assert offset(store) == 120


def test_a_store_that_was_not_recovered_is_not_called_fresh(make: Callable[[], Backend]) -> None:
    backend = make()
    backend.write([(b"a", b"1")], 7, 1.0)
    TableStore(backend).touch()
    assert backend.position() == (7, 1.0)


def test_wiped_means_empty_and_without_a_position(make: Callable[[], Backend]) -> None:
    store, backend = fresh(make, end=5)
    token = store.stage([(b"a", b"1")])
    store.apply(token, [(b"a", b"1")], 6)
    store.wipe()
    assert (store.position, backend.get_many([b"a"]), list(store.items())) == (None, [None], [])


def test_disk_keeps_values_and_position_over_closing(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "t" / "0")
    disk.write([(b"a", b"1"), (b"", b"empty key"), (b"b" * 5000, b"\x00")], 9, 1.5)
    disk.close()
    again = Disk(tmp_path / "t" / "0")
    assert again.position() == (9, 1.5)
    assert dict(again.items()) == {b"a": b"1", b"": b"empty key", b"b" * 5000: b"\x00"}
    again.close()


STEPS, EACH = 6, 100


def written(folder: Path, flush: bool) -> list[dict[bytes, bytes]]:
    """A closed disk of STEPS chunks, each ending at offset (step + 1) * EACH; what it held after each."""
    chance, held, steps = random.Random(5), dict[bytes, bytes](), []
    disk = Disk(folder)
    for step in range(STEPS):
        changes = {b"k%d" % chance.randrange(400): chance.randbytes(100) for _ in range(EACH)}
        held = held | changes
        steps.append(held)
        disk.write(changes.items(), (step + 1) * EACH, 1.0)
        if flush and step % 3 == 2:  # few files: nothing is compacted behind the test's back
            disk._db.flush()
    disk.close()
    return steps


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, *parts: float) -> None:
    """Turn a byte at each of these parts of the file (of its values, near the start; of what describes them, at the end)."""
    raw = bytearray(path.read_bytes())
    for part in parts or (0.3, 0.6, 0.99):
        if raw:
            raw[int(len(raw) * part)] ^= 0xFF
    path.write_bytes(raw)


HARM: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "flipped": flip,
    "made garbage": lambda path: path.write_bytes(os.urandom(500)),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
@pytest.mark.parametrize("flush", [True, False], ids=["in files", "in the log"])
@pytest.mark.parametrize("name", ["CURRENT", "MANIFEST-*", "*.sst", "*.log", "OPTIONS-*", "IDENTITY", "LOCK", "rocksdict-config.json"])
def test_of_a_damaged_disk_nothing_wrong_is_ever_read(tmp_path: Path, name: str, flush: bool, harm: Callable[[Path], object]) -> None:
    folder = tmp_path / "records" / "0"
    steps = written(folder, flush)
    for path in folder.glob(name):
        harm(path)
    disk = Disk(folder)
    try:
        damaged = False
        try:
            found, values = disk.position(), dict(disk.items())
        except DamagedError:
            damaged = True
        if damaged:  # not above: the error holds an iterator, and that the lock
            disk.close()
            with capture_logs() as lines:
                disk = Disk(folder)
            assert [line["event"] for line in lines] == ["store wiped"]
            found, values = disk.position(), dict(disk.items())
        assert values == ({} if found is None else steps[found[0] // EACH - 1])
        disk.write([(b"new", b"1")], 1, 1.0)
        assert disk.get_many([b"new"]) == [b"1"]
    finally:
        disk.close()


def test_damage_met_by_a_read_ends_the_process_and_the_next_start_wipes(tmp_path: Path) -> None:
    folder = tmp_path / "records" / "0"
    held = written(folder, True)[-1]
    for path in folder.glob("*.sst"):
        flip(path, 0.3)
    disk = Disk(folder)
    assert disk.position() is not None, "found at the opening: the test says nothing"
    with pytest.raises(FatalError, match="is damaged"):
        disk.get_many(list(held))
    disk.close()
    again = Disk(folder)
    assert (again.position(), list(again.items())) == (None, [])
    again.close()
    third = Disk(folder)  # wiped once, not for ever
    third.write([(b"a", b"1")], 1, 1.0)
    third.close()
    last = Disk(folder)
    assert last.position() == (1, 1.0)
    last.close()


@pytest.mark.parametrize("raw", [b"", b"x", b"\xff" * 16, struct.pack(">qd", 5, float("inf")), b"0" * 100])
def test_garbage_in_the_persisted_offset_is_damage(tmp_path: Path, raw: bytes) -> None:
    disk = Disk(tmp_path / "0")
    disk.write([(b"a", b"1")], 1, 1.0)
    disk._db[META] = raw
    with pytest.raises(DamagedError, match="persisted offset"):
        disk.position()
    disk.close()
    again = Disk(tmp_path / "0")
    assert again.position() is None
    again.close()


def test_all_stores_share_one_cache_when_they_are_opened_again_too(tmp_path: Path) -> None:
    for _ in range(2):
        disks = [Disk(tmp_path / str(number)) for number in range(3)]
        for number, disk in enumerate(disks):
            assert disk._db.property_value("rocksdb.block-cache-capacity") == str(CACHE_BYTES)
            disk.write([(b"%d %d" % (number, n), os.urandom(100)) for n in range(2000)], 1, 1.0)
            disk._db.flush()
            disk.get_many([b"%d %d" % (number, n) for n in range(2000)])
        assert len({disk._db.property_value("rocksdb.block-cache-usage") for disk in disks}) == 1
        for disk in disks:
            disk.close()


def test_a_store_that_was_closed_is_not_called_damaged(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "0")
    disk.write([(b"a", b"1")], 1, 1.0)
    disk.close()
    for use in (lambda: disk.get_many([b"a"]), lambda: disk.write([], 2, 2.0), lambda: list(disk.items())):
        with pytest.raises(FatalError, match="cannot be used") as raised:
            use()
        assert not isinstance(raised.value, DamagedError)
    again = Disk(tmp_path / "0")
    assert again.position() == (1, 1.0)
    again.close()


def test_a_store_that_is_open_elsewhere_is_refused_and_left_alone(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "0")
    disk.write([(b"a", b"1")], 1, 1.0)
    with pytest.raises(FatalError, match="lock") as raised:
        Disk(tmp_path / "0")
    assert not isinstance(raised.value, DamagedError)
    assert (tmp_path / "0" / "CURRENT").exists()
    assert disk.get_many([b"a"]) == [b"1"]
    disk.close()


def test_a_wrong_call_is_no_damage(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "0")
    no_key: Any = None
    for use in (lambda: disk.write([(no_key, b"1")], 1, 1.0), lambda: disk.get_many([no_key])):
        with pytest.raises((KeyError, TypeError)):
            use()
    assert not list(tmp_path.glob("*.damaged"))
    disk.close()


def test_what_a_killed_process_wrote_is_there_up_to_a_whole_chunk(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from streams.engine.store import Disk
disk, n = Disk(Path(sys.argv[1])), 0
while True:
    disk.write([(b"%d" % k, b"%d" % n) for k in range(50)], n, 1.0)
    n += 1
    if n == 200:
        print("enough", flush=True)
"""
    folder = tmp_path / "records" / "0"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"enough\n"
    process.kill()
    process.wait()
    process.stdout.close()
    disk = Disk(folder)
    found = disk.position()
    assert found is not None
    assert found[0] >= 199
    assert dict(disk.items()) == {b"%d" % k: b"%d" % found[0] for k in range(50)}
    disk.close()


def test_marks_are_read_back_and_a_topic_that_was_never_read_has_none(make: Callable[[], Backend]) -> None:
    store, _ = fresh(make)
    changes: Changes = [(mark_key("t.in.x"), b"120"), (b"a", b"1")]
    assert store.mark("t.in.x") is None
    store.apply(store.stage(changes), changes, 3)
    assert (store.mark("t.in.x"), store.mark("t.in")) == (120, None)


@pytest.mark.parametrize("seed", range(20))
def test_pages_give_each_key_once_in_order_uncommitted_changes_included(make: Callable[[], Backend], seed: int) -> None:
    draw = random.Random(seed)
    store, _ = fresh(make)
    model: dict[bytes, bytes] = {}
    open_: list[tuple[int, Changes]] = []
    for step in range(40):
        changes: Changes = [
            (b"%s|%02d" % (draw.choice([b"a", b"a|", b"b"]), draw.randrange(30)), draw.choice([None, b"x", b"%d" % step]))
            for _ in range(draw.randrange(1, 6))
        ]
        changes = list(dict(changes).items())
        open_.append((store.stage(changes), changes))
        for key, value in changes:
            model.pop(key, None)
            if value is not None:
                model[key] = value
        while open_ and draw.random() < 0.5:
            token, done = open_.pop(0)
            store.apply(token, done, step + 1)
        found: list[tuple[bytes, bytes]] = []
        most = draw.choice([1, 3, 100])
        while page := store.page(b"a|", found[-1][0] if found else b"", most):
            found += page
            if len(page) < most:
                break
        assert found == sorted(item for item in model.items() if item[0].startswith(b"a|"))
