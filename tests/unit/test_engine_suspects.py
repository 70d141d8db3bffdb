"""Who is found guilty of ending the process: the one record that does, however it ends it, and nobody else."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.engine.stage import Chunk
from streams.engine.suspects import ENDS, SLOT, Suspects, halves
from tests.support.memory import MemoryRecord

KEY = ("stage", 3)
OTHER = ("stage", 4)


def chunk(*offsets: int, topic: str = "t") -> Chunk:
    return Chunk(topic, KEY[1], [MemoryRecord(topic, offset, b"k", b"v") for offset in offsets])


class World:
    """Processes that live one after another on one file, handle offsets in order and end at a guilty one."""

    def __init__(self, path: Path, offsets: Sequence[int], guilty: set[int], *, named: bool, size: int) -> None:
        self.path, self.offsets, self.guilty, self.named, self.size = path, list(offsets), guilty, named, size
        self.passed: list[int] = []
        self.dead: list[int] = []
        self.ends = 0

    def live(self) -> bool:
        """One process; whether it came to the end of its records."""
        suspects = Suspects()
        suspects.open(self.path)
        left = [o for o in self.offsets if o not in self.passed and o not in self.dead]
        todo = [chunk(*left[n : n + self.size]) for n in range(0, len(left), self.size)]
        while todo:
            part = todo.pop(0)
            if (share := suspects.share(KEY, part)) < len(part.records):
                todo = [*halves(part, share), *todo]
                continue
            found = [r.offset for r in part.records]
            if suspects.condemned(KEY, part):
                self.dead += found
            else:
                suspects.begins(KEY, part)
                if self.guilty & set(found):
                    self.ends += 1
                    if self.named:
                        suspects.confess(KEY)
                    return False
                suspects.rests(KEY)
                self.passed += found
            suspects.passed(KEY, part.topic, found[-1] + 1)
        return True


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60, unique=True).map(sorted), st.data(), st.booleans(), st.sampled_from([1, 7, 50])
)
def test_exactly_the_guilty_are_condemned_and_everything_else_passes_in_order(
    offsets: list[int], data: st.DataObject, named: bool, size: int
) -> None:
    guilty = data.draw(st.sets(st.sampled_from(offsets), max_size=3))
    with TemporaryDirectory() as folder:
        world = World(Path(folder) / "suspects", offsets, guilty, named=named, size=size)
        while not world.live():
            assert world.ends < 80, "it ends for ever"
        assert world.dead == sorted(guilty)
        assert world.passed == [o for o in offsets if o not in guilty]
        assert all(world.ends >= ENDS for _ in guilty)


def test_a_chunk_of_a_thousand_is_searched_in_halves(tmp_path: Path) -> None:
    world = World(tmp_path / "suspects", range(1000), {617}, named=True, size=1000)
    while not world.live():
        pass
    assert world.dead == [617]
    assert world.ends <= ENDS + 10


def end(path: Path, *runs: tuple[tuple[str, int], Chunk], named: tuple[str, int] | None = None, confess: bool = False) -> Suspects:
    """A process that ends while it handles these; what the next one knows."""
    suspects = Suspects()
    suspects.open(path)
    for key, run in runs:
        suspects.begins(key, run)
    if confess:
        suspects.confess(named)
    found = Suspects()
    found.open(path)
    return found


def test_an_end_for_another_reason_accuses_no_record(tmp_path: Path) -> None:
    for _ in range(9):
        found = end(tmp_path / "s", (KEY, chunk(5)), (OTHER, chunk(6)), confess=True)
    assert not found.condemned(KEY, chunk(5))
    assert not found.condemned(OTHER, chunk(6))


def test_an_end_that_names_one_leaves_the_others_alone(tmp_path: Path) -> None:
    for _ in range(ENDS):
        found = end(tmp_path / "s", (KEY, chunk(5)), (OTHER, chunk(6)), named=KEY, confess=True)
    assert found.condemned(KEY, chunk(5))
    assert found.share(OTHER, chunk(6, 7)) == 2
    assert not found.condemned(OTHER, chunk(6))


def test_where_two_were_at_work_at_a_death_without_a_word_nobody_is_condemned(tmp_path: Path) -> None:
    for _ in range(9):
        found = end(tmp_path / "s", (KEY, chunk(5)), (OTHER, chunk(6)))
    assert not found.condemned(KEY, chunk(5))
    assert not found.condemned(OTHER, chunk(6))


def test_who_waits_or_is_done_at_a_death_is_not_counted(tmp_path: Path) -> None:
    for _ in range(9):
        suspects = Suspects()
        suspects.open(tmp_path / "s")
        suspects.begins(KEY, chunk(5))
        suspects.rests(KEY)
    assert not suspects.condemned(KEY, chunk(5))


def test_twice_is_not_thrice_and_an_end_is_counted_once(tmp_path: Path) -> None:
    end(tmp_path / "s", (KEY, chunk(5, 6)), named=KEY, confess=True)
    end(tmp_path / "s", (KEY, chunk(5, 6)), named=KEY, confess=True)
    for _ in range(3):  # a start is no end
        found = Suspects()
        found.open(tmp_path / "s")
    assert found.share(KEY, chunk(5, 6)) == 2


def test_other_records_of_the_same_offsets_are_innocent(tmp_path: Path) -> None:
    for _ in range(ENDS):
        found = end(tmp_path / "s", (KEY, chunk(5)), named=KEY, confess=True)
    assert not found.condemned(KEY, chunk(5, topic="t.bulk"))
    assert not found.condemned(OTHER, chunk(5))
    assert not found.condemned(KEY, chunk(4))


def test_records_before_and_behind_the_suspects_go_out_whole(tmp_path: Path) -> None:
    for _ in range(ENDS):
        found = end(tmp_path / "s", (KEY, chunk(*range(10, 20))), named=KEY, confess=True)
    assert found.share(KEY, chunk(*range(30))) == 10
    assert found.share(KEY, chunk(*range(10, 30))) == 5
    found.passed(KEY, "t", 15)
    assert found.share(KEY, chunk(*range(15, 30))) == 2
    found.passed(KEY, "t", 20)
    assert found.share(KEY, chunk(*range(20, 30))) == 10


@pytest.mark.parametrize(
    "said", [b"", b"\x00" * 99, b"[]\n", b"{}\n", b'["s",1,["t",1],null,false]\n', b'["s",1,7,7,true]\n', b"\xff\n", b'["s",1]\n', b"9\n"]
)
def test_what_cannot_be_read_accuses_nobody_and_stops_nobody(tmp_path: Path, said: bytes) -> None:
    (tmp_path / "s").write_bytes(said)
    found = Suspects()
    found.open(tmp_path / "s")
    found.begins(KEY, chunk(1))
    again = Suspects()
    again.open(tmp_path / "s")
    assert again.share(KEY, chunk(1, 2)) == 2


def test_a_name_too_long_for_its_slot_is_left_out_and_harms_no_other(tmp_path: Path) -> None:
    long = ("s" * SLOT, 1)
    for _ in range(ENDS):
        found = end(tmp_path / "s", (long, chunk(1)), (KEY, chunk(5)), named=KEY, confess=True)
    assert found.condemned(KEY, chunk(5))
