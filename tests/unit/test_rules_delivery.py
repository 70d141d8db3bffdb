"""Writes on the wire, and what a writer decides: stale, winner, turn, rename, and a state that survives."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agents.rules import delivery
from agents.rules.delivery import GONE, Decision, Delivered
from agents.rules.writes import NULL, Json, WriteFormatError, decode_write, encode_write
from agents.tables import BUCKET_MS, BUCKETS, Seen
from models.errors import FatalError
from models.write import Op, Write

WRITE = Write(op=Op.WRITE, route="r", object="o", key="k", source="acme/Contact/1", order=0, revision=5, body={"a": 1}, on_delete="delete")
RELEASE = replace(WRITE, op=Op.RELEASE, body=None, revision=6)
BODY = Json(b'{"a":1}')
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def apply(state: Delivered, write: Write, lane: Any, offset: int, **options: Any) -> Decision:
    """Of the bytes the write has in Kafka."""
    return delivery.apply(state, decode_write(encode_write(write)), lane, offset, **options)


@given(
    body=st.dictionaries(st.text(max_size=5), JSON, max_size=4),
    revision=st.integers(0, 2**60),
    always=st.booleans(),
    run=st.none() | st.text(),
    renamed=st.booleans(),
)
def test_a_write_survives_the_wire(body: dict[str, Any], revision: int, always: bool, run: str | None, renamed: bool) -> None:
    write = replace(WRITE, body=body, revision=revision, always=always, run=run, position=2**62, committed=0, received=1)
    carried = replace(RELEASE, successor="b", then=replace(write, renamed_from="k")) if renamed else write
    assert decode_write(encode_write(carried)).whole() == carried


@pytest.mark.parametrize("raw", [None, b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff", b"{}"])
def test_what_is_no_write_is_refused(raw: bytes | None) -> None:
    with pytest.raises(WriteFormatError):
        decode_write(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "drop"},
        {"revision": "5"},
        {"revision": True},
        {"body": [1]},
        {"body": None},
        {"on_delete": "explode"},
        {"key": None},
        {"always": "yes"},
        {"then": {}},
        {"op": "release"},
        {"op": "release", "body": None, "then": 5},
    ],
)
def test_a_write_with_one_wrong_field_is_refused_and_not_quoted(change: dict[str, Any]) -> None:
    plain = orjson.loads(encode_write(replace(WRITE, body={"a": "s3cret"}))) | change
    with pytest.raises(WriteFormatError) as caught:
        decode_write(orjson.dumps(plain))
    assert "s3cret" not in str(caught.value)


def test_a_release_carries_one_write_and_that_carries_none() -> None:
    nested = orjson.loads(encode_write(replace(RELEASE, then=WRITE)))
    nested["then"]["op"], nested["then"]["body"], nested["then"]["then"] = "release", None, {}
    with pytest.raises(WriteFormatError):
        decode_write(orjson.dumps(nested))


def test_the_lower_revision_is_stale_and_the_equal_one_is_not() -> None:
    state = Delivered.decode(None)
    assert apply(state, WRITE, "live", 10).call
    assert apply(state, replace(WRITE, revision=4, body={"a": 0}), "bulk", 0).stale
    again = apply(state, replace(WRITE, body={"a": 2}), "live", 11)
    assert (again.stale, again.body) == (False, Json(b'{"a":2}'))


def test_a_turn_grows_with_each_offset_and_never_shrinks_at_a_redelivery() -> None:
    state = Delivered.decode(None)
    turns = [apply(state, WRITE, lane, offset).turn for lane, offset in (("bulk", 0), ("live", 0), ("live", 7), ("live", 3), ("bulk", 1))]
    assert turns == sorted(turns)
    assert turns[3] == turns[2]


def test_ignore_makes_no_call_once_nobody_speaks_and_lets_the_next_source_win_before() -> None:
    state = Delivered.decode(None)
    apply(state, WRITE, "live", 0)
    apply(state, replace(WRITE, source="acme/Lead/2", order=1, body={"a": 9}), "live", 1)
    assert apply(state, replace(RELEASE, on_delete="ignore"), "live", 2).body == Json(b'{"a":9}')
    last = apply(state, replace(RELEASE, source="acme/Lead/2", order=1, on_delete="ignore"), "live", 3)
    assert (last.call, last.body) == (False, None)


def test_a_rename_happens_only_when_nobody_else_speaks() -> None:
    then = replace(WRITE, key="b", revision=6, renamed_from="k")
    carrying = replace(RELEASE, successor="b", then=then)
    for others, expected in ((0, "b"), (1, None)):
        state = Delivered.decode(None)
        apply(state, WRITE, "live", 0)
        state.wrote(1, BODY)
        if others:
            apply(state, replace(WRITE, source="acme/Lead/2", order=1), "live", 1)
        decision = apply(state, carrying, "live", 2)
        assert decision.rename_to == expected
    state = Delivered.decode(None)
    apply(state, replace(WRITE, revision=9), "live", 0)
    late = apply(state, carrying, "live", 1)
    assert (late.stale, late.call, late.rename_to) == (True, True, None)


def test_where_nothing_of_ours_stands_a_release_renames_nothing() -> None:
    """What is there came by another record's rename, whose write is still to come."""
    state = Delivered.decode(None)
    carrying = replace(RELEASE, successor="b", then=replace(WRITE, key="b", renamed_from="k"))
    assert apply(state, carrying, "live", 0).rename_to is None
    state.wrote(1, None)
    assert apply(state, carrying, "live", 1).rename_to is None


def test_what_is_only_marked_keeps_its_fields_and_what_is_removed_keeps_none() -> None:
    for kept, image in ((True, BODY), (False, NULL)):
        state = Delivered.decode(None)
        state.wrote(1, BODY)
        state.wrote(2, None, kept=kept)
        assert (state.image, state.stands) == (image, False)


def test_after_a_rename_the_winner_is_written_even_by_a_stale_write() -> None:
    state = Delivered.decode(None)
    apply(state, replace(RELEASE, key="b", revision=9), "live", 0)
    state.wrote(1, None)
    assert state.same()
    decision = apply(state, replace(WRITE, key="b", revision=6, renamed_from="k"), "live", 1)
    assert (decision.stale, decision.call, decision.body) == (True, True, None)
    assert not state.same(), "what stands under the key is not known"


def test_what_routes_of_another_flow_wrote_no_longer_speaks() -> None:
    state = Delivered.decode(None)
    apply(state, replace(WRITE, route="renamed"), "live", 0)
    assert apply(state, replace(RELEASE, route="r"), "live", 1, routes={"r"}).body is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans(), st.integers(0, 50)), max_size=8))
def test_the_state_of_a_key_survives_its_encoding_at_every_step(steps: list[tuple[int, int, bool, int]]) -> None:
    state = Delivered.decode(None)
    for source, revision, gone, offset in steps:
        base = RELEASE if gone else replace(WRITE, body={"n": revision})
        decision = apply(state, replace(base, source=f"s{source}", revision=revision), "live", offset)
        if offset % 2:
            state.wrote(decision.turn, decision.body, id=f"id{offset}")
        elif offset % 3:
            state.may_hold(decision.body)
        assert Delivered.decode(state.encode()) == state


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"[2]",
        b"[2,[],0,0,0,null,null]",
        b"[4,[],0,0,0,null,null,null]",
        b"[2,[[1]],0,0,0,null,null,null]",
        b'[2,[["s","r",0,1,{}]],0,0,0,null,null,null]',
        b'{"f":2}',
        b'{"f":1,"h":[[1]],"o":[0,0],"w":0,"p":null,"id":null,"i":null}',
    ],
)
def test_a_state_that_cannot_be_read_is_fatal(raw: bytes) -> None:
    with pytest.raises(FatalError):
        Delivered.decode(raw)


@pytest.mark.parametrize(
    ("fingerprint", "image", "stood", "held"),
    [
        ("42a94dc65947f607cfed", True, BODY, BODY),
        ("00", {"a": 2}, Json(b'"00"'), Json(b'{"a":2}')),
        ("-", None, GONE, NULL),
        (None, {"a": True}, NULL, Json(b'{"a":true}')),
    ],
)
def test_a_state_of_the_first_format_says_what_it_said(fingerprint: str | None, image: Any, stood: Json, held: Json) -> None:
    old = {"f": 1, "h": [["acme/Contact/1", "r", 0, 5, {"a": 1}, 7, None, 8, "live"]], "o": [3, -1], "w": 4, "p": fingerprint, "id": "x"}
    state = Delivered.decode(orjson.dumps(old | {"i": image}))
    assert (state.turn, state.written, state.id, state.stood, state.image) == (4, 4, "x", stood, held)
    assert state.same() is (stood is not NULL and stood == BODY)
    assert apply(state, replace(WRITE, revision=4), "live", 4).stale
    assert Delivered.decode(state.encode()) == state


@pytest.mark.parametrize("body", [b'{"a":"\xff"}', b'{"\xff":1}', b'{"a":1]', b'{"a":01}', b'{"a":"\\x"}'])
def test_a_body_that_is_no_json_is_refused_though_nobody_reads_it(body: bytes) -> None:
    with pytest.raises(WriteFormatError):
        decode_write(encode_write(WRITE).replace(b'{"a":1}', body))


def test_deliveries_are_known_until_they_age_out_and_the_first_sight_counts() -> None:
    seen = Seen()
    assert seen.first("d", 5, 0) == 5
    assert Seen.decode(seen.encode()).first("d", 9, BUCKET_MS) == 5
    assert seen.first("other", 10, BUCKET_MS * (BUCKETS + 1)) == 10
    assert seen.first("d", 11, BUCKET_MS * (BUCKETS + 1)) == 11, "aged out"
    with pytest.raises(FatalError):
        Seen.decode(b'{"f":9}')


VALUES = st.fixed_dictionaries({"a": st.sampled_from((None, 1, 2)), "b": st.sampled_from((None, 3)), "in": st.sampled_from((None, 5, 6))})


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_where_nulls_keep_the_last_value_that_was_none_stands_and_elsewhere_a_null_does(course: list[dict[str, Any]]) -> None:
    state, last = Delivered.decode(None), dict[str, Any]()
    for offset, found in enumerate(course):
        body = {"b": found["b"]} | ({} if found["a"] is None else {"a": found["a"]})
        body |= {} if found["in"] is None else {"deep": {"in": found["in"]}}
        write = replace(WRITE, revision=offset + 1, body=body, keeps=("a", "deep.in", "b.x"))
        decision = apply(state, write, "live", offset)
        assert apply(state, write, "live", offset).body == decision.body, "again after a crash"
        last |= {name: value for name, value in found.items() if value is not None}
        wanted = {"b": found["b"]} | ({"a": last["a"]} if "a" in last else {}) | ({"deep": {"in": last["in"]}} if "in" in last else {})
        assert decision.body is not None and orjson.loads(bytes(decision.body)) == wanted
        state = Delivered.decode(state.encode())
    apply(state, replace(RELEASE, revision=100), "live", 100)
    decision = apply(state, replace(WRITE, revision=101, body={"b": 1}, keeps=("a",)), "live", 101)
    assert decision.body == Json(b'{"b":1}'), "what was taken back is not kept"
