"""What people hold: words, names, and what a damaged record says."""

import pytest

from models.errors import SettingsError
from streams.held_view import held_of
from streams.pauses import Pause, named, parse_pause
from streams.topics import Topics
from tests.support.flows import CONTACTS, PEOPLE, flow

FLOW = flow(contacts=CONTACTS, people=PEOPLE, acme=CONTACTS | {"object": "other"})


def test_a_pause_survives_its_topic() -> None:
    pause = Pause("target", "warehouse", 5, "moving “home”")
    output = pause.output(Topics("t"))
    assert parse_pause(output.key, output.value) == pause
    gate = Pause("route", "people", 5, "gate: …", "null Title")
    assert parse_pause(b"route/people", gate.output(Topics("t")).value) == gate
    assert output.partition == 0, "all in one order"
    assert parse_pause(output.key, None) is None


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"5", b'{"since": "x"}', b'{"because": "y"}', b"\xff"])
def test_a_damaged_pause_still_pauses_and_says_so(value: bytes) -> None:
    found = parse_pause(b"route/people", value)
    assert found is not None
    assert found.key == "route/people"
    assert "resume" in found.because


@pytest.mark.parametrize("key", [None, b"", b"route", b"flow/x", b"\xff/x"])
def test_a_record_that_is_no_pause_is_none(key: bytes | None) -> None:
    found = parse_pause(key, b'{"since": 1, "because": ""}')
    assert found is None or found.name == ""


def test_a_name_means_what_has_it_and_one_of_several_must_be_said() -> None:
    assert named(FLOW, "people") == ("route", "people")
    assert named(FLOW, "warehouse") == ("target", "warehouse")
    assert named(FLOW, "shop") == ("connection", "shop")
    assert named(FLOW, "route/acme") == ("route", "acme")
    assert named(FLOW, "connection/acme") == ("connection", "acme")
    with pytest.raises(SettingsError, match="route/acme or connection/acme"):
        named(FLOW, "acme")


@pytest.mark.parametrize("name", ["", "/", "nobody", "route/warehouse", "target/", "acme/Contact", "\x1b[31m", "a" * 10_000])
def test_a_name_that_nothing_has_is_told_with_what_there_is(name: str) -> None:
    with pytest.raises(SettingsError, match="contacts"):
        named(FLOW, name)


def test_status_tells_what_waits_for_each_and_what_a_resumed_route_has_not_told_yet() -> None:
    topics = Topics("t")
    pauses = {p.key: p for p in (Pause("target", "warehouse", 1), Pause("connection", "acme", 2), Pause("route", "people", 3))}
    lags = {
        topics.writes("warehouse"): 3,
        topics.writes("warehouse", bulk=True): 4,
        topics.inbound("acme/Lead"): 5,
        topics.fetch("acme"): 1,
    }
    found = held_of(topics, FLOW, pauses, {"people": 7, "contacts": 2}, lags)
    assert {(one.what, one.name): one.waiting for one in found} == {
        ("target", "warehouse"): 7, ("connection", "acme"): 6, ("route", "people"): 7, ("route", "contacts"): 2,
    }  # fmt: skip
    assert held_of(topics, FLOW, pauses, {}, {})[0].waiting is None, "not known is not nothing"
