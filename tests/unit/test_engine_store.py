"""Stores: equal to the changelog up to the persisted offset, whatever is open, on disk as in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.errors import FatalError
from streams.engine.folder import StateFolder
from streams.engine.store import Backend, Disk, Memory, TableStore


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


def test_a_second_lock_on_a_state_folder_is_refused_with_its_owner(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path), StateFolder(tmp_path)
    first.lock()
    with pytest.raises(FatalError, match=r"in use by process \d+"):
        second.lock()
    first.release()
    second.lock()
    second.release()
