"""Messages of a poll become records, dead letters or counted drops; nothing vanishes, nothing comes twice, positions only move on."""

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.envelope import Envelope, Kind
from models.errors import FatalError
from models.record_id import id18
from streams.publish import MAX_RECORD
from streams.salesforce.cometd import loads
from streams.salesforce.incidents import parse_incident
from streams.salesforce.messages import Intake, Plan, dump, parts
from streams.salesforce.positions import Position
from streams.topics import Topics
from tests.support.salesforce import change

TOPICS = Topics("t")
A, B = "003Qx00000Ke4RtIAJ", "003Qx00000Ke4RuIAJ"
CONTACTS = "t.in.acme.Contact"


def intake(position: int | None = 100, second: int | None = 1000) -> Intake:
    at = Position(1, position, second, "00D", "https://x", 5_000, "new")
    return Intake("acme", "/data/ChangeEvents", TOPICS, {"Contact"}, at)


def records(plan: Plan) -> list[tuple[str, int, int, int]]:
    found = [(o, Envelope.from_headers(o.headers)) for o in plan.outputs if o.topic == CONTACTS]
    return [((o.key or b"").decode(), e.epoch, e.position or 0, e.index) for o, e in found]


def dead(plan: Plan) -> list[Any]:
    return [orjson.loads(o.value or b"") for o in plan.outputs if o.topic == TOPICS.dead_letters]


def test_an_event_keeps_its_message_and_carries_what_we_know() -> None:
    message = change(A, second=1001, replay=101, Title="x")
    [out] = intake().plan([message], 42).outputs
    assert orjson.loads(out.value or b"") == message
    assert Envelope.from_headers(out.headers) == Envelope(
        kind=Kind.CHANGE, reason=Envelope.from_headers(out.headers).reason, received=42, channel="/data/ChangeEvents", epoch=1, position=101
    )


def test_a_merged_event_is_one_record_per_id_with_its_index() -> None:
    assert records(intake().plan([change(A, B, second=1001, replay=101)], 0)) == [(A, 1, 101, 0), (B, 1, 101, 1)]


def test_copies_of_a_large_merged_event_grow_with_its_ids_not_with_their_square() -> None:
    ids = [id18(f"003Qx0000{n:06d}") for n in range(2000)]
    plan = intake().plan([change(*ids, second=1001, replay=101, Title="x")], 0)
    assert [key for key, *_ in records(plan)] == ids
    assert all(len(o.value or b"") < 1500 for o in plan.outputs)
    header = orjson.loads(plan.outputs[-1].value or b"")["data"]["payload"]["ChangeEventHeader"]
    assert header["recordIds"] == ids[-1:]


def test_repeats_are_dropped_and_counted() -> None:
    at = intake()
    plan = at.plan([change(A, second=1001, replay=101)] * 2 + [change(A, second=1000, replay=100), change(A, second=999, replay=7)], 0)
    assert (records(plan), plan.repeats, at.position.position) == ([(A, 1, 101, 0)], 3, 101)


def test_a_repeat_committed_a_second_later_than_its_neighbour_does_not_raise_the_epoch() -> None:
    at = intake()
    first, second = change(A, second=1002, replay=101), change(A, second=1001, replay=102)
    at.plan([first, second], 0)
    plan = at.plan([first], 0)
    assert (plan.outputs, plan.repeats, at.position.epoch, at.position.position) == ([], 1, 1, 102)


def test_ids_that_start_anew_raise_the_epoch() -> None:
    at = intake()
    plan = at.plan([change(A, second=2000, replay=5), change(A, second=2000, replay=6)], 0)
    assert (records(plan), plan.epoch_rose) == ([(A, 2, 5, 0), (A, 2, 6, 0)], True)
    assert (at.position.epoch, at.position.position, at.position.second) == (2, 6, 2000)


def test_enriched_siblings_with_one_replay_id_all_come_in_also_over_two_polls() -> None:
    at = intake()
    assert records(at.plan([change(A, second=1001, replay=101)], 0)) == [(A, 1, 101, 0)]
    plan = at.plan([change(B, second=1001, replay=101), change(A, second=1001, replay=101)], 0)
    assert (records(plan), plan.repeats) == ([(B, 1, 101, 0)], 1)


def test_a_reply_out_of_order_is_put_in_order() -> None:
    messages = [change(A, second=1001, replay=n) for n in (105, 103, 104)]
    assert [p for _, _, p, _ in records(intake().plan(messages, 0))] == [103, 104, 105]


@given(st.lists(st.integers(101, 140), min_size=1, max_size=60), st.integers(1, 9), st.randoms())
def test_a_long_reply_in_any_order_with_repeats_is_kept_whole_however_it_is_cut(positions: list[int], most: int, chance: Any) -> None:
    messages = [change(A, second=1000 + p, replay=p) for p in positions]
    chance.shuffle(messages)
    at, kept = intake(), []
    for part in parts(messages, most):
        assert len(part) <= most
        kept += [p for _, _, p, _ in records(at.plan(part, 0))]
    assert kept == sorted(set(positions))


def test_before_the_first_position_what_is_older_than_the_start_is_dropped_without_becoming_a_position() -> None:
    at = intake(None, None)
    at.not_before = 900
    plan = at.plan([change(A, second=899, replay=1)], 0)
    assert (plan.outputs, plan.old, at.position.position) == ([], 1, None)
    assert records(at.plan([change(A, second=900, replay=2), change(A, second=899, replay=3)], 0)) == [(A, 1, 2, 0), (A, 1, 3, 0)]


@pytest.mark.parametrize(
    ("kind", "ids", "cause", "since", "named"),
    [
        ("GAP_UPDATE", (A, B, A), "gap", 0, (A, B)),
        ("GAP_CREATE", (A[:15],), "gap", 0, (A,)),
        ("GAP_OVERFLOW", ("000000000000000AAA",), "overflow", 701, ()),
        ("UPDATE", ("003*",), "wildcard", 0, ()),
    ],
)
def test_what_says_that_something_changed_but_not_what_is_an_incident(
    kind: str, ids: tuple[str, ...], cause: str, since: int, named: tuple[str, ...]
) -> None:
    at = intake()
    plan = at.plan([change(*ids, second=1001, replay=101, kind=kind)], 42)
    [incident] = plan.incidents
    assert (records(plan), dead(plan), at.position.position) == ([], [], 101)
    assert (incident.source, incident.cause, incident.since, incident.ids, incident.opened) == ("acme/Contact", cause, since, named, 42)
    [out] = [o for o in plan.outputs if o.topic == TOPICS.incidents]
    assert parse_incident(out.key, out.value or b"") == incident


def test_the_same_event_is_the_same_incident_and_another_is_another() -> None:
    def named(replay: int) -> list[str]:
        return [i.id for i in intake().plan([change(A, second=1001, replay=replay, kind="GAP_UPDATE")], replay).incidents]

    assert named(101) == named(101) != named(102)


def test_an_id_that_is_none_among_those_of_a_gap_is_a_dead_letter_and_the_others_are_read_again() -> None:
    plan = intake().plan([change("nonsense", B, second=1001, replay=101, kind="GAP_DELETE")], 0)
    assert [i.ids for i in plan.incidents] == [(B,)]
    assert ["is no id" in letter["reason"] for letter in dead(plan)] == [True]


def test_a_gap_of_nothing_but_nonsense_is_no_incident() -> None:
    plan = intake().plan([change("nonsense", second=1001, replay=101, kind="GAP_DELETE")], 0)
    assert (plan.incidents, len(dead(plan))) == ([], 1)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"null", b'{"id": "x"}', b'{"id":"x","source":"a/b","cause":"gap","detail":"","ids":5}']
)
def test_a_damaged_incident_ends_the_process(raw: bytes) -> None:
    with pytest.raises(FatalError, match="damaged"):
        parse_incident(b"x", raw)


def test_an_object_that_no_route_reads_is_counted_and_the_position_moves() -> None:
    at = intake()
    plan = at.plan([change("00QQx00000Lm5NzMAJ", second=1001, replay=101, sobject="Lead")], 0)
    assert (plan.outputs, plan.unrouted, at.position.position) == ([], 1, 101)


DAMAGED: list[Any] = [
    None,
    [],
    "x",
    5,
    {},
    {"data": None},
    {"data": {"event": {"replayId": 101}}},
    {"data": {"event": {"replayId": 101}, "payload": {"ChangeEventHeader": []}}},
    {"data": {"event": {"replayId": True}, "payload": {}}},
    {"data": {"event": {"replayId": -5}, "payload": change(A, second=1, replay=1)["data"]["payload"]}},
    change(second=1001, replay=101),
    change(A, second=1001, replay=101, kind="WHATEVER"),
    change(A, second=1001, replay=101, sobject=""),
    loads('{"data": {"event": {"replayId": 101}, "payload": "\\ud800"}}'),
    change("not an id", second=1001, replay=101),
    change("003Qx00000Ke4Rt\ud800AJ", second=1001, replay=101),
]


@pytest.mark.parametrize("message", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_message_is_a_dead_letter_with_its_bytes_and_its_neighbours_come_in(message: Any) -> None:
    at = intake()
    plan = at.plan([message, change(A, second=1001, replay=102)], 0)
    [letter] = dead(plan)
    assert base64.b64decode(letter["value"]) == dump(message)
    assert (records(plan), at.position.position) == ([(A, 1, 102, 0)], 102)


def test_an_event_too_large_for_kafka_is_an_incident_of_its_record() -> None:
    plan = intake().plan([change(A, second=1001, replay=101, Description="x" * MAX_RECORD)], 0)
    assert [(i.cause, i.ids) for i in plan.incidents] == [("too large", (A,))]
    assert sum(len(o.value or b"") for o in plan.outputs) < MAX_RECORD


@given(st.lists(st.tuples(st.integers(90, 130), st.sampled_from([A, B])), max_size=30), st.integers(1, 5))
def test_however_often_and_in_whatever_pieces_events_come_each_is_kept_once(events: list[tuple[int, str]], piece: int) -> None:
    stream = sorted(dict.fromkeys(position for position, _ in events))
    messages = [change(A, second=1000 + p, replay=p) for p in stream]
    at, kept = intake(89, 1000), []
    for start in range(0, len(messages), piece):
        polls = messages[max(0, start - 2) : start + piece]  # each poll repeats the end of the one before
        kept += [p for _, _, p, _ in records(at.plan(polls, 0))]
    assert kept == stream
    assert at.position.epoch == 1


@pytest.mark.parametrize(
    ("short", "long"), [("0015f00002JUZPD", "0015f00002JUZPDAA5"), ("001Qx00000Ab1Cd", "001Qx00000Ab1CdIAJ"), ("0" * 15, "0" * 15 + "AAA")]
)
def test_ids_of_15_characters_get_their_checksum(short: str, long: str) -> None:
    assert (id18(short), id18(long)) == (long, long)


def test_a_schema_that_no_event_had_before_tells_that_the_fields_are_others() -> None:
    at, told = intake(), list[bool]()
    for replay, schema in enumerate(("one", "one", "two", "one", "two", None, 5), 101):
        message = change(A, second=1001, replay=replay)
        message["data"]["schema"] = schema
        told.append(at.plan([message], 0).reshaped)
    assert told == [True, False, True, False, False, False, False], "of the first one nobody knows"
