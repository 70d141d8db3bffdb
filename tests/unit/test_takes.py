"""What a target takes and what it refused: what a gate stops, how far a refusal is generalised, and how it is forgotten."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import rejections as module
from agents.catalogue import takes_of
from agents.maps import Maps
from agents.rejections import Rejections
from agents.rules.mapping import Leaf
from agents.rules.quality import QualityError
from agents.rules.takes import IN_A_ROW, LEARNED, TEXTS, Known, Refusal, Takes, class_of, learn, target_gate
from agents.rules.writes import encode_write, write_json
from agents.writer import writer_stage
from models.errors import TemporaryError
from models.learned import HOLD_MS, Learned
from models.write import Op, Outcome, Write, WriteResult
from streams.engine.stage import Output
from streams.rejections import learned_of, output_of
from tests.support import toy_target
from tests.support.flows import CONTACTS, Shapes, flow, maps
from tests.support.memory import Log, MemoryPartition, run
from tests.support.pipeline import SETTINGS, TOPICS

NOW = 1_700_000_000_000
S = "acme/Contact/003A"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def faults(takes: Mapping[str, Takes], body: dict[str, Any], *learned: Learned, version: int = 0) -> list[tuple[str, str, str]]:
    leaves = [Leaf(name, tuple(name.split("."))) for name in {**takes, **{one.field: 0 for one in learned}}]
    gate = target_gate(leaves, "", takes, learned, version)
    try:
        if gate is not None:
            gate.check(body, S, "003A")
    except QualityError as error:
        assert "s3cret" not in str(error)
        return [(fault.field, fault.rule, fault.found) for fault in error.faults]
    return []


@pytest.mark.parametrize(
    ("takes", "good", "bad", "rule"),
    [
        (Takes(length=8), [None, "", "s3cret88", "s3cret88   ", 123456789, "\U0001f600" * 8], ["s3cret889", " s3cret88 x"], "length"),
        (Takes(values=frozenset({"new", "won"})), [None, "new", 3], ["s3cret", "New", "", "new "], "picklist"),
        (Takes(required=True), ["", 0, False, [], "x"], [None], "required"),
        (Takes(classes=TEXTS), [None, "s", "", "2026-01-01", "12", [], ["s"], [None]], [1, 1.5, True, {}, [1]], "type"),
        (Takes(classes=frozenset({"date as text"})), ["2026-01-01", "2026-01-01T00:00:00.000Z"], ["soon", "", "12", 1], "type"),
        (Takes(classes=frozenset({"whole number"})), [1, -1, 2.0, [3, None]], [1.5, "1", True], "type"),
        (Takes(unique=True), [None, "s3cret", 1], [], ""),
    ],
)
def test_what_a_field_takes_passes_and_what_it_does_not_is_told_by_field_rule_and_class(
    takes: Takes, good: list[Any], bad: list[Any], rule: str
) -> None:
    assert [value for value in good if faults({"a": takes}, {"a": value})] == []
    for value in bad:
        [(field, told, found)] = faults({"a": takes}, {"a": value})
        assert (field, told) == ("a", f"{rule} in target")
        assert found in ("null", "text", "blank text", "number", "boolean", "list", "object")
        assert [fault[0] for fault in faults({"a.b": takes}, {"a": {"b": value}})] == ["a.b"]


def test_what_a_map_gives_surely_is_not_looked_at_again() -> None:
    leaves = [Leaf("Email", ("email",)), Leaf("N", ("n",), type="integer"), Leaf("D", ("d",), type="datetime"), Leaf("X__c", ("x",))]
    said = {
        "email": Takes(classes=TEXTS),
        "n": Takes(classes=frozenset({"whole number", "number"})),
        "d": Takes(classes=frozenset({"date as text"})),
        "other": Takes(length=1),
    }
    assert target_gate(leaves, "Contact", said, [], 0) is None
    gate = target_gate(leaves, "Contact", {**said, "x": Takes(classes=TEXTS)}, [], 0)
    assert gate is not None
    assert [check.path for check in gate.checks] == ["x"]


def test_a_null_that_the_writer_fills_in_is_not_stopped() -> None:
    null = learn(Refusal("aimed", "t", "required", None, S, 0), Takes(required=True).print, NOW, class_=False)
    for keeps in (True, False):
        gate = target_gate([Leaf("T", ("t",), nulls="keep" if keeps else "clear")], "", {"t": Takes(required=True)}, [null], 0)
        assert (gate is None) is keeps


def stops(learned: Learned, value: Any, source: str) -> bool:
    return Known.of([learned]).stopping(value, source) is not None


def refusal(rule: Any, value: Any, source: str = S, version: int = 0) -> Refusal:
    return Refusal("aimed", "title", rule, value, source, version)


@given(VALUES, VALUES, st.sampled_from(["length", "picklist", "required", "unique", "type", "value"]), st.booleans())
def test_what_was_refused_is_stopped_and_a_single_refusal_stops_nothing_but_what_surely_goes(
    a: Any, b: Any, rule: Any, class_: bool
) -> None:
    learned = learn(refusal(rule, a), "", NOW, class_=class_)
    assert stops(learned, a, S)
    if stops(learned, b, S) and not (class_ and rule == "type"):
        longer = rule == "length" and isinstance(b, str) and isinstance(a, str) and len(b) >= len(a)
        assert longer or a == b
    if rule == "unique" and a is not None:
        assert not stops(learned, a, "acme/Contact/003B"), "the record that holds the value must not be stopped"
    assert b"s3cret" not in (output_of(TOPICS, learn(refusal(rule, "s3cret"), "", NOW, class_=class_)).value or b"s3cret")


def test_the_class_of_a_value_is_never_the_value() -> None:
    values: list[Any] = ["s3cret", "12", "2026-01-01", " ", 1, 1.5, 2.0, True, None, {}, ["x"], []]
    assert {class_of(value) for value in values} == {
        "list",
        "text", "number as text", "date as text", "blank text", "whole number", "number", "boolean", "null", "object",
    }  # fmt: skip


class Target:
    """Says what a test says; `errors` are raised by the next describes."""

    def __init__(self) -> None:
        self.said: dict[str, Takes] = {}
        self.errors: list[Exception] = []

    async def describe(self, object: str) -> Mapping[str, Takes]:
        if self.errors:
            raise self.errors.pop(0)
        return dict(self.said)


class Desk:
    """A worker's knowledge, and the topic."""

    def __init__(self, version: int = 0) -> None:
        route = CONTACTS | {"quality": ["required", "target"]}
        self.target, self.topic, self.at = Target(), dict[bytes, bytes](), NOW
        self.maps: Maps = maps(aimed=route, plain=CONTACTS | {"object": "other"})
        self.rejections = Rejections(SETTINGS, flow(aimed=route, plain=CONTACTS), {"warehouse": self.target}, lambda: self.maps)  # type: ignore[dict-item]
        self.rejections._followed = self  # type: ignore[assignment]

    async def all_of(self, _number: int) -> dict[bytes, bytes]:
        return self.topic

    def send(self, outputs: list[Output]) -> int:
        for output in outputs:
            assert (output.topic, output.partition) == (TOPICS.rejections, 0)
            self.topic.pop(output.key or b"", None)
            if output.value is not None:
                self.topic[output.key or b""] = output.value
        return len(outputs)

    async def stopped(self, source: str = S, **body: Any) -> list[str]:
        """Rules by which a body is stopped."""
        await self.rejections.look()
        ways = {way.route: way for way in self.rejections.gates(self.maps.ways("acme/Contact"))}
        assert ways["plain"].beyond is None
        try:
            if ways["aimed"].beyond is not None:
                ways["aimed"].beyond.check(body, source, source.rpartition("/")[2])
        except QualityError as error:
            return [fault.rule for fault in error.faults]
        return []


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk()
    monkeypatch.setattr(module, "_now", lambda: made.at)
    return made


async def test_a_refusal_is_learned_by_all_and_forgotten_after_an_hour(desk: Desk) -> None:
    assert await desk.stopped(title="x" * 99) == []
    assert desk.send(desk.rejections.refused(refusal("length", "x" * 50)))
    assert await desk.stopped(title="y" * 60) == [LEARNED]
    assert await desk.stopped(title="y" * 49) == []
    desk.at += HOLD_MS - 1
    assert await desk.stopped(title="y" * 60) == [LEARNED]
    desk.send(desk.rejections.refused(refusal("length", "x" * 40)))
    desk.at += 1
    [one] = learned_of(desk.topic.items(), desk.at).values()
    assert (one.times, one.least, one.since) == (2, 40, NOW)
    desk.at += HOLD_MS
    assert await desk.stopped(title="y" * 60) == [], "it is tried again"
    assert learned_of(desk.topic.items(), desk.at) == {}


async def test_what_the_target_took_is_forgotten_at_once(desk: Desk) -> None:
    desk.send(desk.rejections.refused(refusal("value", "s3cret")))
    assert await desk.stopped(title="s3cret") == [LEARNED]
    assert desk.send(desk.rejections.took("aimed", S, write_json({"title": "other"}))) == 0
    assert desk.send(desk.rejections.took("aimed", S, write_json({"title": "s3cret"}))) == 1
    assert await desk.stopped(title="s3cret") == []
    assert desk.topic == {}


async def test_of_a_type_the_class_is_learned_after_several_in_a_row_with_none_taken(desk: Desk) -> None:
    for n in range(IN_A_ROW - 1):
        desk.send(desk.rejections.refused(refusal("type", f"words {n}")))
    assert await desk.stopped(title="other words") == []
    desk.send(desk.rejections.took("aimed", S, write_json({"title": "a good one"})))
    for n in range(IN_A_ROW - 1):
        desk.send(desk.rejections.refused(refusal("type", f"more {n}")))
    assert await desk.stopped(title="other words") == [], "one was taken between"
    desk.send(desk.rejections.refused(refusal("type", "the third")))
    assert await desk.stopped(title="other words") == [LEARNED]
    assert await desk.stopped(title="12") == [], "a number as text is another class"


async def test_another_version_of_the_map_and_another_word_of_the_target_forget_it(desk: Desk) -> None:
    desk.send(desk.rejections.refused(refusal("value", "s3cret", version=7)))
    assert await desk.stopped(title="s3cret") == [], "learned of another version"
    desk.send(desk.rejections.refused(refusal("value", "s3cret")))
    assert await desk.stopped(title="s3cret") == [LEARNED]
    desk.target.said = {"title": Takes(length=200)}
    desk.rejections._described = float("-inf")
    assert await desk.stopped(title="s3cret") == []


async def test_what_the_target_says_is_asked_again_and_stays_while_it_does_not_answer(desk: Desk) -> None:
    desk.target.said = {"title": Takes(length=5)}
    assert await desk.stopped(title="too long") == ["length in target"]
    desk.target.said, desk.target.errors = {}, [TemporaryError("away"), TimeoutError()]
    for _ in range(2):
        desk.rejections._described = float("-inf")
        assert await desk.stopped(title="too long") == ["length in target"]
    desk.rejections._described = float("-inf")
    assert await desk.stopped(title="too long") == []


async def test_a_route_without_the_stage_learns_nothing_and_what_is_damaged_is_nothing(desk: Desk) -> None:
    assert desk.rejections.refused(refusal("value", "x")._replace(route="plain")) == []
    assert desk.rejections.took("plain", S, write_json({"title": "x"})) == []
    desk.topic |= {b"a": b"", b"b": b"{", b"c": b'{"route": 3}', b"d": b"null", b"e": b"[]"}
    assert await desk.stopped(title="x") == []


async def test_no_more_is_learned_than_can_be_looked_at(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    assert sum(desk.send(desk.rejections.refused(refusal("value", f"v{n}"))) for n in range(9)) == 3


async def test_a_writer_learns_from_what_is_refused_and_taken_in_its_own_transaction(desk: Desk) -> None:
    target = toy_target.Target("warehouse", toy_target.ToyOptions(), "t")
    route = CONTACTS | {"quality": ["required", "target"]}
    stage = writer_stage("warehouse", target, flow(aimed=route), SETTINGS, Shapes({"person": {}}), rejections=desk.rejections)
    written, partition, revisions = Log(), MemoryPartition(), itertools.count(1)

    async def write(title: str, answer: WriteResult | None = None) -> list[Output]:
        target.answers = {} if answer is None else {"k": answer}
        one = Write(
            op=Op.WRITE, route="aimed", object="person", key="k", source=S, order=0, revision=next(revisions), body={"title": title},
            on_delete="tombstone",
        )  # fmt: skip
        result = await run(stage, written.chunk(TOPICS.writes("warehouse"), (one.kafka_key, encode_write(one))), partition)
        return [output for output in result.outputs if output.topic == TOPICS.rejections]

    no = WriteResult(Outcome.DEAD, "no", "title", rule="value")
    assert desk.send(await write("s3cret", no)) == 1
    assert await desk.stopped(title="s3cret") == [LEARNED]
    assert desk.send(await write("s3cret", no)) == 1
    [one] = learned_of(desk.topic.items(), desk.at).values()
    assert one.times == 2
    assert await write("other") == [], "it proves nothing"
    assert desk.send(await write("s3cret")) == 1
    assert desk.topic == {}
    for silent in (
        WriteResult(Outcome.DEAD, "no"),
        WriteResult(Outcome.DEAD, "no", "title"),
        WriteResult(Outcome.DEAD, "no", "title", True),
    ):
        assert await write("x", silent) == [], "who does not say what it was teaches nothing"


@pytest.mark.parametrize(
    ("check", "takes"),
    [
        ("CHECK ((stage = ANY (ARRAY['new'::text, 'it''s'::text])))", Takes(values=frozenset({"new", "it's"}))),
        ("CHECK (((stage)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))", Takes(values=frozenset("ab"))),
        ("CHECK ((\"Stage\" = ANY (ARRAY['a, b'::text]))) NOT VALID", Takes(values=frozenset({"a, b"}))),
        ("CHECK ((char_length(title) <= 80))", Takes(length=80)),
        ("CHECK ((length((title)::text) < 80))", Takes(length=79)),
        ("CHECK ((score > (0)::numeric))", Takes()),
        ("CHECK (((stage = ANY (ARRAY['a'::text])) OR (title IS NULL)))", Takes()),
        ("CHECK ((stage <> ALL (ARRAY['a'::text])))", Takes()),
        ("CHECK ((stage = ANY (ARRAY['a'::text, lower('B'::text)])))", Takes()),
    ],
)
def test_a_check_is_understood_where_it_is_a_list_of_values_or_a_length(check: str, takes: Takes) -> None:
    assert takes_of(None, None, False, False, [check]) == takes
