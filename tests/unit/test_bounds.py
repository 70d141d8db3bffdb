"""A range means what a person wrote, or is refused with the forms that can be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SettingsError
from streams.bounds import Moment, Spot, iso, parse_bound

NOW = 1_764_000_000_000


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("now", Moment(NOW, fixed=False)),
        ("-2h", Moment(NOW - 7_200_000, fixed=False)),
        ("-90s", Moment(NOW - 90_000, fixed=False)),
        (" -7d ", Moment(NOW - 604_800_000, fixed=False)),
        ("1764000000", Moment(NOW, fixed=True)),
        ("1764000000000", Moment(NOW, fixed=True)),
        ("2025-11-24T16:00:00Z", Moment(NOW, fixed=True)),
        ("2025-11-24T16:00", Moment(NOW, fixed=True)),
        ("2025-11-24T17:00:00.000+01:00", Moment(NOW, fixed=True)),
        ("2025-11-24 16:00:00", Moment(NOW, fixed=True)),
        ("3:1200", Spot(None, 3, 1200)),
        ("acme/My_Thing__c:0:0", Spot("acme/My_Thing__c", 0, 0)),
    ],
)
def test_each_form_means_what_it_says(text: str, meant: object) -> None:
    assert parse_bound(text, NOW) == meant


@pytest.mark.parametrize(
    "text",
    ["", " ", "yesterday", "-2x", "--2h", "-h", "-999999999d", "1", "-1:5", "3:-1", "3:", ":3", "3:1:2:4", "١:٢", "2025-13-01",
     "0000-00-00", "1969-12-31T23:59Z", "9" * 10_000, "3:" + "9" * 30, "\x00", "nan", "2025-11-24T25:00", "🕗", "a b:1:2"],
)  # fmt: skip
def test_nonsense_is_refused_in_words(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_bound(text, NOW)
    assert "partition:offset" in str(caught.value)
    assert len(str(caught.value)) < 600


@given(st.text(max_size=30))
def test_whatever_is_typed_is_a_bound_or_a_refusal(text: str) -> None:
    try:
        found = parse_bound(text, NOW)
    except SettingsError:
        return
    assert isinstance(found, Moment | Spot)


@given(st.integers(min_value=0, max_value=4_000_000_000_000))
def test_a_time_we_print_can_be_typed_back(ms: int) -> None:
    assert parse_bound(iso(ms), NOW) == Moment(ms, fixed=True)
