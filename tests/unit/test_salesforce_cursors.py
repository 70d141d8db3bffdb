"""Where polling stands: a cursor that cannot be read stops it, and a clock of the org that was turned back is noticed."""

from typing import Any

import pytest

from models.errors import FatalError, TemporaryError
from streams.salesforce.changed import check_stamp, second_of_stamp
from streams.salesforce.cursors import Cursor, parse_cursor
from streams.topics import Topics


def test_a_cursor_is_read_as_it_was_written() -> None:
    cursor = Cursor("acme/Contract", 100, "run", 90, "00D", 100, 5000)
    output = cursor.output(Topics("t"))
    assert (output.topic, output.key) == ("t.cursors", b"acme/Contract")
    assert parse_cursor(output.key, output.value or b"") == cursor


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"{}", b'{"source": "a/b"}', b'{"source": "a/b", "second": "soon"}'])
def test_a_damaged_cursor_is_fatal_and_says_what_to_do(value: bytes) -> None:
    with pytest.raises(FatalError, match="delete its record"):
        parse_cursor(b"a/b", value)


@pytest.mark.parametrize(
    ("raw", "second"),
    [
        ("2026-05-04T09:30:11.000+0000", 1777887011),
        ("2026-05-04T09:30:11Z", 1777887011),
        ("2026-05-04T09:30:11.000+00:00", 1777887011),
        ("2026-05-04T09:30:11.000+0200", None),
        ("2026-99-04T09:30:11Z", None),
        ("2026-05-04T09:30:11Z' OR Id != '", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_a_stamp_is_read_as_rows_have_it_and_nothing_else_gets_into_a_query(raw: Any, second: int | None) -> None:
    assert second_of_stamp(raw) == second
    if second is None and isinstance(raw, str) and "99" not in raw:
        with pytest.raises(TemporaryError):
            check_stamp(raw)


@pytest.mark.parametrize(
    ("now", "at", "back"),
    [
        (1000, 0, 0),
        (1060, 60_000, 0),
        (1031, 60_000, 0),  # a server of the org that is a little behind
        (1000, 60_000, 60),
        (800, 200_000, 400),  # turned back by 400 s, and 200 s later above what is read again
        (9000, 60_000, 0),  # turned ahead: what comes has later stamps
        (1000, -60_000, 0),  # our own clock was turned back
    ],
)
def test_a_clock_that_was_turned_back_is_told_from_time_that_passed(now: int, at: int, back: int) -> None:
    assert Cursor("a/b", 1000, now=1000, at=0).turned_back(now, at) == back
    assert Cursor("a/b", 1000).turned_back(now, at) == 0, "of a cursor that has seen no answer nothing is known"
