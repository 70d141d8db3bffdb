"""Maps that change under random interleavings, lagging workers and crashes; and that a missing rule is noticed."""

from typing import Any

import pytest

from agents import writer
from tests.support.versions_world import versions_scenario

TARGETS = pytest.mark.parametrize("renames", [False, True], ids=["deletes old keys", "renames"])


def noticed(count: int, *, renames: bool) -> bool:
    return any(versions_scenario(seed, renames=renames) for seed in range(count))


@TARGETS
def test_no_shape_is_overwritten_by_an_older_one_and_no_value_is_lost_or_stale_whatever_the_interleaving(renames: bool) -> None:
    assert [told for seed in range(500) if (told := versions_scenario(seed, renames=renames))] == []


@pytest.mark.parametrize(("seed", "renames"), [(570, False), (664, True), (434, True), (937, True)])
def test_what_long_runs_found(seed: int, renames: bool) -> None:
    """A row read by later maps than the asker's; what a refused write left at a user in an unfinished chunk."""
    assert versions_scenario(seed, renames=renames) is None


def test_a_refused_write_that_is_not_sent_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = writer.Writer._refused

    def dropped(self: writer.Writer, work: writer.Work, *args: Any) -> bool:
        before = len(work.forwards)
        refused = real(self, work, *args)
        del work.forwards[before:]
        return refused

    monkeypatch.setattr(writer.Writer, "_refused", dropped)
    assert noticed(300, renames=False)
