"""A store after recovery equals its changelog, whatever stands on disk; what cannot be equal is wiped, and what nobody wrote is refused."""

import asyncio
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from models.errors import FatalError
from streams.consume import read_all
from streams.engine import recovery
from streams.engine.recovery import recover
from streams.engine.stage import Changes
from streams.engine.store import META, Disk, Memory, TableStore, mark_key
from streams.metrics import RECOVERED
from streams.publish import MAX_RECORD
from tests.support.changelogs import changelog, folded, numbered

pytestmark = pytest.mark.kafka

HISTORIES: dict[str, list[tuple[str, Changes]]] = {
    "empty": [],
    "a commit marker at the end": [("commit", numbered(range(50), 1))],
    "an aborted transaction at the end": [("commit", numbered(range(50), 1)), ("abort", numbered(range(100), 2))],
    "an aborted transaction in the middle": [
        ("commit", numbered(range(50), 1)), ("abort", numbered(range(100), 2)), ("commit", numbered(range(20, 60), 3)),
    ],
    "aborted transactions only": [("abort", numbered(range(5), 1)), ("abort", numbered(range(5), 2))],
    "tombstones only": [("commit", [(b"k%d" % n, None) for n in range(30)])],
    "deleted and written again": [
        ("commit", numbered(range(30), 1)), ("commit", [(b"k%d" % n, None) for n in range(30)]), ("commit", numbered([7], 2)),
    ],
    "a key twice in one transaction": [("commit", [(b"k", b"1"), (b"k", None), (b"k", b"2"), (b"", b"an empty key"), (b"e", b"")])],
}  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[TableStore]:
    store = TableStore(Disk(tmp_path / "records" / "0"))
    yield store
    store.close()


def filled(store: TableStore, changes: Changes, offset: int, age: float = 0.0) -> None:
    """As a process of before left it."""
    store.load(changes, offset, time.time() - age)


def position(store: TableStore) -> int | None:
    return store.position[0] if store.position is not None else None


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
async def test_recovery_ends_at_the_end_of_any_history_and_holds_what_was_committed(
    kafka: str, tmp_path: Path, disk: TableStore, history: list[tuple[str, Changes]]
) -> None:
    async with changelog(kafka, tmp_path) as log:
        await log.write(*history)
        end = sum(len(changes) + 1 for _, changes in history)
        for store in (TableStore(Memory()), disk):
            async with asyncio.timeout(30):
                assert await log.recovered(store) == folded(*history)
            assert position(store) == end


async def test_of_an_intact_disk_only_what_came_after_it_is_read(kafka: str, tmp_path: Path, disk: TableStore) -> None:
    async with changelog(kafka, tmp_path) as log:
        await log.write(("commit", numbered(range(100), 1)))
        await log.recovered(disk)
        await log.write(("abort", numbered(range(100), 2)), ("commit", [*numbered([3], 3), (b"k4", None)]))
        before = RECOVERED.labels("records")._value.get()
        assert await log.recovered(disk) == folded(("commit", [*numbered(range(100), 1), *numbered([3], 3), (b"k4", None)]))
        assert RECOVERED.labels("records")._value.get() - before == 2
        assert position(disk) == 100 + 1 + 100 + 1 + 2 + 1


async def test_the_very_last_record_is_read_where_no_marker_stands_behind_it(kafka: str, tmp_path: Path, disk: TableStore) -> None:
    async with changelog(kafka, tmp_path) as log:
        await log.write(("commit", numbered(range(10), 1)))
        await log.recovered(disk)
        await log.stranger((b"last", b"1"))
        assert (await log.recovered(disk))[b"last"] == b"1"


@pytest.mark.slow
async def test_holes_that_compaction_left_are_passed_over(kafka: str, tmp_path: Path, disk: TableStore) -> None:
    eager = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "100", "delete_retention_ms": "0"}
    async with changelog(kafka, tmp_path, **eager) as log:
        history = [("commit", numbered(range(50), n)) for n in range(20)] + [("commit", [(b"k%d" % n, None) for n in range(10)])]
        await log.write(*history)
        async with asyncio.timeout(120):
            while len(await read_all(log.settings, log.topic)) > 200:
                await log.write(("commit", numbered([99], 1)))  # a segment is closed by the record after it
                await asyncio.sleep(0.5)
        assert await log.recovered(TableStore(Memory())) == folded(*history, ("commit", numbered([99], 1)))
        filled(disk, numbered(range(50), 3), 51 * 4)
        await log.configure(cleanup_policy="compact", delete_retention_ms="86400000")
        assert await log.recovered(disk) == folded(*history, ("commit", numbered([99], 1)))


POISON = {
    "no key": ((None, b"1"), "has no key"),
    "more than a stage can send": ((b"k", b"v" * MAX_RECORD), "1,000,001 bytes"),
    "the engine's own key": ((META, struct.pack(">qd", 10**12, time.time())), "keeps for itself"),
    "a mark that is no number": ((mark_key("t"), b"-1"), "keeps for itself"),
    "a key close to the engine's": ((META + b"x", b"1"), "keeps for itself"),
}


@pytest.mark.parametrize(("record", "said"), POISON.values(), ids=POISON.keys())
async def test_a_record_that_no_stage_wrote_is_fatal_and_the_message_says_where_it_is_and_what_to_do(
    kafka: str, tmp_path: Path, disk: TableStore, record: tuple[bytes | None, bytes | None], said: str
) -> None:
    async with changelog(kafka, tmp_path, cleanup_policy="delete", max_message_bytes="4000000") as log:
        await log.write(("commit", numbered(range(5), 1)))
        await log.stranger((b"harmless", b"1"), record, (b"after", b"1"))
        await log.configure(cleanup_policy="compact", max_message_bytes="4000000")
        with pytest.raises(FatalError, match=said) as raised:
            await log.recovered(disk)
        for word in (log.topic, "partition 0, offset 7", "Find who writes", "Until it is gone"):
            assert word in str(raised.value)
        assert position(disk) in (None, 5, 6, 7), "the store went past the poison"
        assert b"after" not in dict(disk.items())
        with pytest.raises(FatalError, match=said):
            await log.recovered(disk)


async def test_a_changelog_that_throws_values_away_is_refused_with_the_command_that_mends_it(kafka: str, tmp_path: Path) -> None:
    async with changelog(kafka, tmp_path, cleanup_policy="compact,delete") as log:
        with pytest.raises(FatalError, match=r"cleanup.policy=compact,delete.*kafka-configs.sh --alter"):
            await log.recovered(TableStore(Memory()))


async def test_a_changelog_that_is_not_there_is_fatal_not_waited_for(kafka: str, tmp_path: Path) -> None:
    async with changelog(kafka, tmp_path) as log:
        log.topic = f"{log.settings.installation}.nothing-changelog"
        log.part = log.part._replace(topic=log.topic)
        with pytest.raises(FatalError, match="nothing-changelog"):
            await log.recovered(TableStore(Memory()))


UNUSABLE = {
    "older than half of what the topic keeps deletions": (5, 31.0, "older than half of delete.retention.ms"),
    "ahead of the changelog's end": (700, 0.0, "ahead of its changelog"),
    "from the future": (5, -600.0, "its age is not known"),
    "of no age": (5, float("nan"), "persisted offset"),
    "of a negative offset": (-1, 0.0, "persisted offset"),
}


@pytest.mark.parametrize(("offset", "age", "said"), UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_a_disk_that_cannot_be_trusted_is_wiped_and_filled_again_with_a_log_line(
    kafka: str, tmp_path: Path, disk: TableStore, offset: int, age: float, said: str
) -> None:
    async with changelog(kafka, tmp_path, delete_retention_ms="60000") as log:
        await log.write(("commit", numbered(range(10), 1)))
        filled(disk, [(b"deleted long ago", b"wrong"), (b"k1", b"wrong")], offset, age)
        with capture_logs() as lines:
            assert await log.recovered(disk) == folded(("commit", numbered(range(10), 1)))
        assert [said in line["reason"] for line in lines if line["event"] == "store wiped"] == [True]
        assert disk.position is not None and disk.position[0] == 11 and time.time() - disk.position[1] < 30


async def test_a_disk_is_as_old_as_the_topic_allows_not_as_we_hoped(kafka: str, tmp_path: Path, disk: TableStore) -> None:
    async with changelog(kafka, tmp_path, delete_retention_ms="172800000") as log:
        await log.write(("commit", numbered(range(10), 1)))
        filled(disk, [(b"only on disk", b"1")], 11, age=50_000.0)
        assert await log.recovered(disk) == {b"only on disk": b"1"}, "wiped before its time"
        filled(disk, [], 11, age=50_000.0)
        await log.configure(cleanup_policy="compact", delete_retention_ms="60000")
        assert await log.recovered(disk) == folded(("commit", numbered(range(10), 1)))


async def test_a_disk_stays_as_old_as_it_was_until_recovery_has_reached_the_end(
    kafka: str, tmp_path: Path, disk: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "CHUNK", 5)
    async with changelog(kafka, tmp_path, cleanup_policy="delete", delete_retention_ms="60000") as log:
        await log.write(("commit", numbered(range(10), 1)))
        await log.stranger((None, b"stops recovery"))
        await log.configure(cleanup_policy="compact", delete_retention_ms="60000")
        filled(disk, [(b"deleted since", b"1")], 0, age=20.0)
        with pytest.raises(FatalError, match="has no key"):
            await log.recovered(disk)
        assert disk.position is not None
        assert disk.position[0] > 0, "nothing was loaded: the test says nothing"
        assert time.time() - disk.position[1] >= 20.0


async def test_a_disk_behind_the_changelogs_start_is_filled_again(kafka: str, tmp_path: Path, disk: TableStore) -> None:
    async with changelog(kafka, tmp_path, cleanup_policy="delete") as log:
        await log.write(("commit", numbered(range(10), 1)), ("commit", numbered(range(10, 20), 2)))
        await log.cut(11)
        await log.configure(cleanup_policy="compact")
        filled(disk, [(b"wrong", b"1")], 5)
        assert await log.recovered(disk) == folded(("commit", numbered(range(10, 20), 2)))


async def test_a_changelog_made_anew_leaves_nothing_of_the_old_one_on_disk(kafka: str, tmp_path: Path, disk: TableStore) -> None:
    async with changelog(kafka, tmp_path) as log:
        await log.write(("commit", numbered(range(50), 1)))
        await log.recovered(disk)
        await log.remake()
        await log.write(("commit", numbered(range(3), 2)))
        assert await log.recovered(disk) == folded(("commit", numbered(range(3), 2)))


async def test_a_recovery_killed_in_the_middle_goes_on_where_the_disk_is(kafka: str, tmp_path: Path) -> None:
    async with changelog(kafka, tmp_path) as log:
        history = [("commit", numbered(range(400), n)) for n in range(5)]
        await log.write(*history)
        folder = tmp_path / "records" / "0"
        for loads in (0, 1, 7):
            assert await log.killed_in_recovery(folder, loads) == -9
        half = TableStore(Disk(folder))
        try:
            at = position(half)
            assert at is not None and 0 < at < 5 * 401
            before = RECOVERED.labels("records")._value.get()
            assert await log.recovered(half) == folded(*history)
            assert RECOVERED.labels("records")._value.get() - before < 2000, "it began again"
        finally:
            half.close()


async def test_many_stores_are_recovered_side_by_side_and_none_holds_what_is_anothers(kafka: str, tmp_path: Path) -> None:
    async with changelog(kafka, tmp_path) as one, changelog(kafka, tmp_path) as two:
        await one.write(("commit", numbered(range(300), 1)))
        await two.write(("commit", numbered(range(200, 500), 2)), ("abort", numbered(range(9), 3)))
        stores = {log.part: ("records", TableStore(Memory())) for log in (one, two)}
        await recover(one.settings, stores)
        assert dict(stores[one.part][1].items()) == folded(("commit", numbered(range(300), 1)))
        assert dict(stores[two.part][1].items()) == folded(("commit", numbered(range(200, 500), 2)))
