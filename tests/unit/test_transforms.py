"""Normalisers of names, phones, URLs, numbers, dates and users: a corpus with hostile cases, and that one pass is enough."""

from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.map_steps import PLAIN, StepError, make_step, type_step
from agents.rules.mapping import compose
from agents.rules.normalisers import first_name, last_name, phone, registered_domain, user, valid_mail
from agents.rules.transforms import day, from_millis, integer, moment, number, text, to_millis

NAMES = [
    ("Zoë Martin", "Zoë", "Martin"),
    ("Jan van der Berg", "Jan", "van der Berg"),
    ("Ludwig von Beethoven", "Ludwig", "von Beethoven"),
    ("María de los Ángeles", "María", "de los Ángeles"),
    ("Madonna", None, "Madonna"),
    ("Smith, John", "John", "Smith"),
    ("Smith, John Q.", "John Q.", "Smith"),
    ("Dr. Martin Luther King Jr.", "Martin Luther", "King"),
    ("山田 太郎", "太郎", "山田"),
    ("山田太郎", None, "山田太郎"),
    ("김 민준", "민준", "김"),
    ("  Ada\u00a0Lovelace ", "Ada", "Lovelace"),
    ("O'Brien, Conan", "Conan", "O'Brien"),
    ("Robert'); DROP TABLE", None, None),
    ("\u200b", None, None),
    ("", None, None),
    (",", None, None),
]


@pytest.mark.parametrize(("whole", "first", "last"), NAMES)
def test_names_are_split(whole: str, first: str | None, last: str | None) -> None:
    if last is None:
        first_name(whole), last_name(whole)  # says something, breaks nothing
    else:
        assert (first_name(whole), last_name(whole)) == (first, last)


PHONES = [
    ("+49 30 123456", None, "+4930123456"),
    ("030 / 123 456", "DE", "+4930123456"),
    ("0049 30 123456", "DE", "+4930123456"),
    ("(415) 555-2671", "US", "+14155552671"),
    ("+1 415-555-2671 ext. 89", None, "+14155552671"),
    ("\uff0b4930123456", None, "+4930123456"),
    (" ", "DE", None),
]
BAD_PHONES: list[tuple[Any, str | None]] = [
    ("030 123456", None),
    ("call me", "DE"),
    ("12", "US"),
    ("+999999999999999999", None),
    ("9" * 5000, "US"),
    (5, "US"),
]


@pytest.mark.parametrize(("written", "region", "expected"), PHONES)
def test_phones_become_e164(written: str, region: str | None, expected: str | None) -> None:
    assert phone(written, region) == expected


@pytest.mark.parametrize(("written", "region"), BAD_PHONES)
def test_what_is_no_phone_is_refused(written: Any, region: str | None) -> None:
    with pytest.raises(ValueError, match="is not a phone number"):
        phone(written, region)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.shop.acme.co.uk/a?b", "acme.co.uk"),
        ("acme.com:8080", "acme.com"),
        ("http://user:pw@a.b.Acme.DE.", "acme.de"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        ("http://127.0.0.1/", "127.0.0.1"),
        ("http://[::1]:80/", "::1"),
        ("co.uk", "co.uk"),
        ("  ", None),
    ],
)
def test_the_registered_domain_of_a_url(url: str, expected: str | None) -> None:
    assert registered_domain(url) == expected


@pytest.mark.parametrize("value", ["a b", "http://[", "...", 5])
def test_what_is_no_url_has_no_domain(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        registered_domain(value)


@pytest.mark.parametrize(
    ("written", "decimal", "expected"),
    [
        ("1.234,5", None, 1234.5),
        ("1,234.5", None, 1234.5),
        ("1.234.567", None, 1234567),
        ("1,234,567", None, 1234567),
        ("12,34,567", None, 1234567),
        ("1'234.50", None, 1234.5),
        ("1 234,50", ",", 1234.5),
        ("1,5", ",", 1.5),
        ("1.234", ",", 1234),
        ("1.234", None, 1.234),
        ("EUR 1.000,50", None, 1000.5),
        ("1.000,50 €", None, 1000.5),
        ("-$5", None, -5),
        ("$-5", None, -5),
        ("\u22125", None, -5),
        ("1e3", None, 1000),
        ("0", None, 0),
        (".5", None, 0.5),
        ("  ", None, None),
        ("", None, None),
        ("123456789012345678", None, 123456789012345678),
        ("1234567890123456.78", None, "1234567890123456.78"),
        ("0.1", None, 0.1),
    ],
)
def test_numbers_from_text_are_never_rounded(written: str, decimal: str | None, expected: Any) -> None:
    found = number(written, decimal)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    "value",
    ["1,5", "1,23,4", "1,2345", "--1", "-$-5", "N/A", "n/a", "1.2.3", "12e", "٣", "0x10", "1_000", "1e99", "9" * 200, "$", "1,234'567"],
)
def test_what_can_be_read_in_two_ways_is_no_number(value: str) -> None:
    with pytest.raises(ValueError, match="text is not a number"):
        number(value)


def test_a_whole_number_is_whole_and_fits() -> None:
    assert [integer(value) for value in ("1,200", "1200.0", "", "-7")] == [1200, 1200, None, -7]
    for value in ("1.5", "99999999999999999999", "1234567890123456.78"):
        with pytest.raises(ValueError, match="not whole"):
            integer(value)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("transform", "value", "expected"),
    [
        (day, "2024-02-29", "2024-02-29"),
        (day, "2026-05-04T23:30:00.000+0000", "2026-05-04"),
        (partial(day, zone=BERLIN), "2026-05-04T23:30:00.000+0000", "2026-05-05"),
        (partial(day, zone=BERLIN), "2026-05-04", "2026-05-04"),
        (moment, "2026-05-04T09:30:11Z", "2026-05-04T09:30:11.000Z"),
        (partial(moment, zone=BERLIN), "2026-07-01T12:00:00", "2026-07-01T10:00:00.000Z"),
        (partial(moment, zone=BERLIN), "2026-10-25T02:30:00", "2026-10-25T00:30:00.000Z"),  # twice on that night: the first
        (moment, "1583-01-01T00:00:00Z", "1583-01-01T00:00:00.000Z"),
        (from_millis, 0, "1970-01-01T00:00:00.000Z"),
        (from_millis, "1714815011123", "2024-05-04T09:30:11.123Z"),
        (from_millis, -1, "1969-12-31T23:59:59.999Z"),
        (to_millis, "2024-05-04T09:30:11.123+00:00", 1714815011123),
        (to_millis, "", None),
    ],
)
def test_dates_take_the_form_of_the_target(transform: Any, value: Any, expected: Any) -> None:
    assert transform(value) == expected


@pytest.mark.parametrize(
    ("transform", "value"),
    [
        (day, "2023-02-29"),
        (day, "04.05.2026"),
        (day, "0000-00-00"),
        (moment, "0001-01-01T00:00:00+14:00"),
        (moment, "9999-12-31T23:59:59-14:00"),
        (moment, "2026-05-04T25:00:00Z"),
        (from_millis, 10**18),
        (from_millis, 1.5),
        (from_millis, True),
        (partial(day, zone=BERLIN), "0001-01-01T00:00:00+14:00"),
    ],
)
def test_what_is_no_time_is_refused(transform: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="is not a"):
        transform(value)


@given(st.datetimes(timezones=st.timezones()))
def test_a_moment_survives_the_way_to_milliseconds_and_back(value: Any) -> None:
    try:
        once = moment(value.isoformat())
    except ValueError:
        return  # before year 1 in UTC
    assert from_millis(to_millis(once)) == once == moment(once)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" Ops@Acme.Example ", "ops@acme.example"),
        ("zoë@bücher.example", "zoë@bücher.example"),
        ("", None),
    ],
)
def test_a_valid_mail_is_normal(value: str, expected: str | None) -> None:
    assert valid_mail(value) == expected


@pytest.mark.parametrize("value", ["a", "a@", "@b.org", "a b@c.org", "a@b..org", "a@b.org\nBcc: x@y.org", "a" * 400 + "@b.org", 7])
def test_what_no_mail_can_reach_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a mail address"):
        valid_mail(value)


def test_users_are_named_in_one_way() -> None:
    assert user("005Qx00000Ke4Rt") == "005Qx00000Ke4RtIAJ"
    assert user("005Qx00000Ke4RtIAJ") == "005Qx00000Ke4RtIAJ"
    assert (user(" Ops@Acme.Example"), user("FED-7"), user(" ")) == ("ops@acme.example", "FED-7", None)


STAGES = {"stages": {"s_NEW": "Prospecting", "s_QUALIFIED": "Qualification", "s_WON": "Closed Won"}}


def step(written: Any) -> Any:
    found = make_step(written, STAGES)
    assert found is not None
    return found.run


def test_a_table_is_read_both_ways_and_knows_nothing_else() -> None:
    for key, value in STAGES["stages"].items():
        assert step({"pick": "stages"})(key) == value
        assert step({"unpick": "stages"})(value) == key
    strange: list[Any] = ["s_LOST", [], 5]
    for value in strange:
        with pytest.raises(ValueError, match="is not in the table stages"):
            step({"pick": "stages"})(value)


def test_truncate_leaves_what_fits() -> None:
    assert step({"truncate": 3})("abcd") == "abc"
    assert step({"truncate": 3})("ab") == "ab"
    assert step({"truncate": 2})("a b") == "a"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("shout", "unknown transform shout"),
        (5, "is a name"),
        ({}, "one pair"),
        ({"phone": None}, "has no argument"),
        ({"phone": "XX"}, "no region"),
        ({"phone": ["DE"]}, "no region"),
        ({"number": ";"}, "decimal sign"),
        ({"date": "Mars/Base"}, "no time zone"),
        ({"date": "../../etc/passwd"}, "no time zone"),
        ({"truncate": 0}, "a length"),
        ({"truncate": True}, "a length"),
        ("truncate", "wants an argument"),
        ({"trim": 1}, "takes no argument"),
        ({"pick": "stagse"}, "no table stagse"),
        ("os:system", "no function of your own"),
        ("subprocess:run", "no function of your own"),
        ("no_such_module_here:f", "cannot be imported"),
        ("tests.support.transforms:none_such", "has no function none_such"),
        ("tests.support.transforms:SHOUT", "is no function"),
        (":", "cannot be imported"),
    ],
)
def test_a_transform_that_cannot_be_had_says_why(written: Any, message: str) -> None:
    with pytest.raises(StepError) as caught:
        make_step(written, STAGES)
    assert message in caught.value.message
    assert caught.value.remedy


def test_a_table_with_one_value_twice_cannot_be_read_backwards() -> None:
    with pytest.raises(StepError, match="backwards"):
        make_step({"unpick": "t"}, {"t": {"a": "x", "b": "x"}})


def test_functions_of_ones_own_take_an_argument_and_must_give_json() -> None:
    assert step("tests.support.transforms:shout")("a") == "A!"
    assert step({"tests.support.transforms:shout": "?"})("a") == "A?"
    with pytest.raises(ValueError, match="JSON cannot hold"):
        step("tests.support.transforms:as_set")("a")


VALUES = st.text(max_size=40) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.lists(st.text())
IDEMPOTENT = [name for name in PLAIN if name not in ("none", "first_name", "last_name", "to_millis", "from_millis")]


@given(VALUES, st.sampled_from(IDEMPOTENT))
def test_one_pass_makes_a_value_normal_or_refuses_it(value: Any, name: str) -> None:
    run = PLAIN[name]
    assert run is not None
    try:
        once = run(value)
    except ValueError as error:
        assert not isinstance(value, str) or len(value) < 5 or value not in str(error)
        return
    assert once is None or run(once) == once


@given(VALUES, st.sampled_from(["text", "number", "integer", "boolean", "date", "datetime"]))
def test_a_typed_value_has_its_type_and_keeps_it(value: Any, name: Any) -> None:
    check = type_step(name)
    assert check is not None
    try:
        once = check.run(value)
    except ValueError:
        return
    assert once is None or check.run(once) == once


def test_what_became_null_on_the_way_stays_null() -> None:
    steps = [make_step(name, {}) for name in ("trim", "phone")]
    run = compose(tuple(found for found in steps if found))
    assert run is not None
    assert run("  ") is None


@given(st.text(max_size=30))
def test_a_name_of_words_is_lost_by_no_split(value: str) -> None:
    whole = text(value)
    assert (last_name(value) is None) == (whole is None)
