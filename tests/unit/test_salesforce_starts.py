"""An epoch rises above all that the same sObjects came with before, and what came from another org is read again."""

from dataclasses import replace

import pytest

from streams.salesforce.cursors import Cursor
from streams.salesforce.positions import Position
from streams.salesforce.starts import above, first, left_behind

HERE = Position(1, None, None, "00Dhere", "https://here", 0, "new")
SOURCES = ("acme/Contact", "acme/Account")


def test_channels_in_use_and_those_of_other_connections_are_not_left_behind() -> None:
    names = ("acme|/data/ChangeEvents", "acme|/data/ContactChangeEvent", "acme2|/data/TaskChangeEvent")
    stored = {name: replace(HERE, epoch=number) for number, name in enumerate(names, 1)}
    assert [at.epoch for at in left_behind(stored, "acme", ["/data/ChangeEvents"])] == [2]


@pytest.mark.parametrize(("epoch", "left", "expected"), [(1, [], 1), (3, [1, 2], 3), (1, [1], 2), (2, [4, 3], 5)])
def test_a_channel_that_was_left_and_is_used_again_stands_above_those_used_meanwhile(epoch: int, left: list[int], expected: int) -> None:
    position = above(replace(HERE, epoch=epoch, position=7), [replace(HERE, epoch=one) for one in left])
    assert (position.epoch, position.position) == (expected, 7)
    assert above(position, [replace(HERE, epoch=one) for one in left]) == position, "once"


@pytest.mark.parametrize(
    ("left", "cursors", "epoch", "moved"),
    [
        ([], {}, 1, []),
        ([], {"acme/Contact": "00Dhere"}, 1, []),
        ([], {"acme/Contact": ""}, 1, []),
        ([], {"acme/Contact": "00Dother", "acme/Account": "00Dhere", "acme/Task": "00Dother"}, 2, ["acme/Contact"]),
        ([replace(HERE, epoch=2)], {}, 3, []),
        ([replace(HERE, epoch=2)], {"acme/Account": "00Dother"}, 3, ["acme/Account"]),
        ([replace(HERE, org="00Dother", epoch=2)], {}, 3, ["acme/Contact", "acme/Account"]),
    ],
)
def test_a_first_position_knows_what_came_before(left: list[Position], cursors: dict[str, str], epoch: int, moved: list[str]) -> None:
    stored = {source: Cursor(source, 5, org=org) for source, org in cursors.items()}
    position, incidents = first("acme|/data/ChangeEvents", HERE, SOURCES, left, stored)
    assert position == replace(HERE, epoch=epoch)
    assert [(i.source, i.cause, i.since, i.state) for i in incidents] == [(source, "org changed", 0, "open") for source in moved]
