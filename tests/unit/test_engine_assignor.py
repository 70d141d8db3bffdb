"""Sharing out partition numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.engine.assignor import _claim, share_out

claims = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.tuples(st.integers(-1, 5), st.lists(st.integers(-3, 40), max_size=20)),
    min_size=1,
    max_size=9,
)


@given(claims, st.integers(1, 32))
def test_every_number_goes_to_one_member_and_sizes_differ_by_at_most_one(said: dict[str, tuple[int, list[int]]], partitions: int) -> None:
    shares = share_out(said, partitions)
    assert sorted(n for numbers in shares.values() for n in numbers) == list(range(partitions))
    sizes = [len(numbers) for numbers in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(claims, st.integers(1, 32))
def test_sharing_out_again_moves_nothing(said: dict[str, tuple[int, list[int]]], partitions: int) -> None:
    shares = share_out(said, partitions)
    assert share_out({member: (9, numbers) for member, numbers in shares.items()}, partitions) == shares


def test_a_member_that_joins_takes_only_what_the_others_have_too_much() -> None:
    assert share_out({"a": (3, range(6)), "b": (3, range(6, 12)), "c": (-1, [])}, 12) == {
        "a": [0, 1, 2, 3],
        "b": [6, 7, 8, 9],
        "c": [4, 5, 10, 11],
    }


def test_the_later_generation_wins_a_number_claimed_twice() -> None:
    assert share_out({"a": (2, [0, 1]), "b": (7, [0, 1])}, 4) == {"a": [2, 3], "b": [0, 1]}


@pytest.mark.parametrize(
    "said", [b"", b"{}", b"\xff", b'{"generation": 1, "partitions": 3}', b'{"generation": "x", "partitions": []}', b"[]"]
)
def test_what_cannot_be_read_claims_nothing(said: bytes) -> None:
    assert _claim(said) == (-1, [])
