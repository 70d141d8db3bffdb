"""What must hold of the state on disk when a worker dies at a chosen moment of a chunk, or finds its disk damaged, foreign or gone."""

import shutil
from pathlib import Path

import pytest

from streams.consume import read_all
from streams.engine.stage import Output
from streams.engine.store import Disk, mark_key
from streams.publish import send
from tests.support.workers import Bench, bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


async def persisted(b: Bench, state: Path) -> int:
    """The sum of the persisted offsets. Each store holds what Kafka acknowledged, at least up to its own, and nothing else."""
    logged = await read_all(b.settings, f"{b.settings.installation}.records-changelog")
    total = 0
    for number in range(b.settings.partitions):
        disk = Disk(state / "records" / str(number))
        offset, _ = disk.position() or (0, 0.0)
        held = dict(disk.items())
        disk.close()
        states: list[dict[bytes | None, bytes | None]] = [{}]
        for record in logged:
            if record.partition == number:
                states.append({**states[-1], record.key: record.value})
        offsets = [0] + [record.offset + 1 for record in logged if record.partition == number]
        assert held in [state for at, state in zip(offsets, states, strict=True) if at >= offset - 1], f"partition {number} at {offset}"
        total += offset
    return total


SLOW = [pytest.param(at, marks=pytest.mark.slow) for at in ("outputs-not-state", "state-not-offsets")]


@pytest.mark.parametrize("at", ["before-output", "before-commit", "committed-not-stored", *SLOW])
async def test_a_store_never_says_more_than_its_changelog_acknowledged_wherever_the_process_dies(
    kafka: str, tmp_path: Path, at: str
) -> None:
    async with bench(kafka, tmp_path, partitions=1) as b:
        await b.send(700)
        first = await b.start(points=[{"at": at, "stage": "count", "after": 3, "do": "kill"}])
        assert await first.code() == -9
        assert f"fault point {at}" in first.log.read_text()
        shutil.copytree(tmp_path / "state", tmp_path / "as it died")
        second = await b.start()
        await b.exactly(700)
        assert await second.stop() == 0
        assert await persisted(b, tmp_path / "state") > await persisted(b, tmp_path / "as it died") > 0
        assert b.stored("state") == await b.changelog()
        assert sum(int(v) for v in (await b.changelog()).values()) == 700


async def test_damage_that_a_running_worker_meets_ends_it_and_its_next_start_serves_nothing_wrong(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=1) as b:
        await b.send(600)
        first = await b.start()
        await b.arrived(600)
        assert await first.stop() == 0
        for path in (b.settings.state / "state" / "records" / "0").glob("*.sst"):
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 0xFF  # among the values, behind the persisted offset: found when it is read, not when it is opened
            path.write_bytes(raw)
        second = await b.start()
        await second.said("partitions taken over")
        await b.send(600)
        assert await second.code() == 70
        assert "is damaged" in second.log.read_text()
        third = await b.start()
        await b.exactly(1200)
        assert "store wiped" in third.log.read_text()
        assert await third.stop() == 0
        assert b.stored("state") == await b.changelog()
        assert sum(int(v) for v in (await b.changelog()).values()) == 1200


async def test_a_state_folder_of_another_installation_is_refused_and_a_copy_of_long_ago_is_caught_up(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b, bench(kafka, tmp_path) as other:
        await b.send(400)
        first = await b.start()
        await b.arrived(400)
        assert await first.stop() == 0
        wrong = await other.start()
        assert await wrong.code() == 70
        assert f"belongs to installation {b.settings.installation}" in wrong.log.read_text()
        shutil.copytree(tmp_path / "state", tmp_path / "copy")
        second = await b.start()
        await b.send(400)
        await b.arrived(800)
        assert await second.stop() == 0
        shutil.rmtree(tmp_path / "state")
        shutil.copytree(tmp_path / "copy", tmp_path / "state")
        third = await b.start()
        await b.send(400)
        await b.exactly(1200)
        assert await third.stop() == 0
        assert b.stored("state") == await b.changelog()
        assert sum(int(v) for v in (await b.changelog()).values()) == 1200


async def test_a_whole_state_folder_that_is_gone_is_made_again(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path) as b:
        await b.send(400)
        first = await b.start()
        await b.arrived(400)
        first.kill()
        await first.code()
        shutil.rmtree(tmp_path / "state")
        second = await b.start()
        await b.send(400)
        await b.exactly(800)
        assert await second.stop() == 0
        assert b.stored("state") == await b.changelog()


async def test_a_foreign_record_in_a_changelog_keeps_every_worker_off_its_partition_and_says_why(kafka: str, tmp_path: Path) -> None:
    async with bench(kafka, tmp_path, partitions=1) as b:
        changelog = f"{b.settings.installation}.records-changelog"
        await send(b.settings, [Output(changelog, mark_key(b.live), b"no number", partition=0)])
        await b.send(100)
        first = await b.start()
        assert await first.code() == 70
        assert "holds a record that Headrace did not write" in first.log.read_text()
        assert b.outputs == []
