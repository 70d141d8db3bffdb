"""Quality: which records pass, what a type becomes, and that the sums of every batch hold, whatever came."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.rules import quality
from agents.rules.quality import QualityError, gate
from agents.rules.takes import Takes, mark_of, target_gate
from agents.rules.transforms import Transform, kind
from agents.rules.ways import Way
from deploy.quality import shown_of
from models.envelope import Reason
from models.learned import Learned
from streams.engine.stage import Chunk, Result
from streams.quality import Batch, Counted, batches_of, rows_of
from streams.refills import Step
from tests.support.flows import CONTACTS, flow, maps
from tests.support.memory import MemoryRecord
from tests.support.pipeline import TOPICS, Pipeline
from tests.unit.test_process import ROW
from tests.unit.test_refill import Desk, of

ACCOUNT = {
    "employeeCount": "integer",
    "annualRevenue": "number",
    "closeDate": "date",
    "occurredAt": "datetime",
    "email": "mail",
    "name": "text",
}
STRICT = CONTACTS | {"quality": ["required", "duplicates", "types"], "key": "email"}


@pytest.mark.parametrize(
    ("field", "given", "becomes"),
    [
        ("employeeCount", "1,200", 1200),
        ("employeeCount", "1200.0", 1200),
        ("employeeCount", "-3", -3),
        ("employeeCount", "", None),
        ("annualRevenue", "$1,000.50", 1000.5),
        ("annualRevenue", "1e6", 1_000_000),
        ("closeDate", "2026-02-28T23:00:00.000+0000", "2026-02-28"),
        ("closeDate", "2028-02-29", "2028-02-29"),
        ("occurredAt", "2026-11-25T08:00:00.000+0000", "2026-11-25T08:00:00.000Z"),
        ("email", " A@X.org ", "a@x.org"),
        ("name", "\u00a0Acme ", "Acme"),
        ("name", "  ", None),
    ],
)
def test_a_value_becomes_what_its_field_holds(field: str, given: str, becomes: Any) -> None:
    body: dict[str, Any] = {field: given}
    types = gate(["types"], None, ACCOUNT)
    types.check(body, "1")
    assert body == {field: becomes}
    types.check(body, "1")
    assert body == {field: becomes}, "twice is once"


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("employeeCount", "n/a"),
        ("employeeCount", True),
        ("closeDate", "2026-02-29"),
        ("closeDate", "soon"),
        ("name", {"a": "s3cret"}),
        ("email", 7),
    ],
)
def test_what_does_not_fit_fails_by_field_and_class_and_never_by_value(field: str, given: Any) -> None:
    with pytest.raises(QualityError) as caught:
        gate(["types"], None, ACCOUNT).check({field: given, "other": "s3cret"}, "001", "account")
    [fault] = caught.value.faults
    assert (fault.field, fault.rule, fault.found) == (field, ACCOUNT[field], kind(given))
    assert "s3cret" not in str(caught.value)
    assert "001" in str(caught.value)


def test_faults_of_all_stages_are_told_together_and_texts_inside_are_trimmed() -> None:
    strict = gate(["required", "duplicates", "types"], "account", {"employeeCount": "integer", "more": "json"})
    with pytest.raises(QualityError) as caught:
        strict.check({"externalId": "1", "employeeCount": "many"}, "1")
    assert [(f.field, f.rule) for f in caught.value.faults] == [("name", "required"), ("employeeCount", "integer")]
    body: dict[str, Any] = {"externalId": "1", "name": "x", "more": {"a": " b ", "c": [" d", 1]}}
    strict.check(body, "1")
    assert body["more"] == {"a": "b", "c": ["d", 1]}


def test_a_stage_that_is_not_named_checks_nothing() -> None:
    body = {"employeeCount": "many"}
    gate([], "account", ACCOUNT).check(body, "1")
    assert body == {"employeeCount": "many"}


@given(st.text(alphabet="aB@ \u00a0\t", max_size=6), st.text(max_size=8))
def test_types_twice_are_types_once(mail: str, name: str) -> None:
    types, body = gate(["types"], None, ACCOUNT), {"email": mail, "name": name}
    types.check(body, "1")
    once = dict(body)
    types.check(body, "1")
    assert body == once


MISSING = st.sampled_from([(), (None,), ("",), (" \u00a0",)])
"""As what a field is not filled: it is absent, null, or blank."""
NEEDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "person": (("externalId", "email", "firstName", "lastName"), lambda has: has[0] and (has[1] or (has[2] and has[3]))),
    "account": (("externalId", "name"), all),
    "opportunity": (("externalId", "name", "accountExternalId"), all),
    "task": (("externalId",), all),
    "case": (("externalId",), all),
}


@pytest.mark.parametrize(
    ("entity", "has"),
    [(entity, has) for entity, (names, _) in NEEDS.items() for has in itertools.product((False, True), repeat=len(names))],
)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_the_truth_table_of_required_fields(entity: str, has: tuple[bool, ...], data: st.DataObject) -> None:
    names, passes = NEEDS[entity]
    body: dict[str, Any] = {"other": "x"}
    for name, filled in zip(names, has, strict=True):
        body.update((name, value) for value in (("x",) if filled else data.draw(MISSING)))
    strict = gate(["required"], entity, {})
    gate([], entity, {}).check(body, "1", entity)
    if passes(has):
        strict.check(body, "1", entity)
        return
    with pytest.raises(QualityError) as caught:
        strict.check(body, "1", entity)
    lacking = {name for name, filled in zip(names, has, strict=True) if not filled}
    if entity == "person":
        nameless = not (has[1] or (has[2] and has[3]))
        lacking = (lacking & {"externalId"}) | ({"email"} if nameless else set())
    assert {fault.field for fault in caught.value.faults} == lacking


VALUES = st.sampled_from([None, "", " ", "x", "Zoë"])
EVENT = st.tuples(st.sampled_from("abc"), VALUES, VALUES, VALUES, st.sampled_from(["CREATE", "UPDATE", "DELETE"]))


@given(st.lists(EVENT, min_size=1, max_size=12), st.integers(min_value=1, max_value=5), st.sampled_from(["", "run-1"]))
@settings(max_examples=100)
def test_input_is_passed_and_failed_and_removed_in_every_batch(events: list[Any], size: int, run_id: str) -> None:
    p = Pipeline(flow(contacts=STRICT, others=CONTACTS), maps(contacts=STRICT, others=CONTACTS), with_target)
    results: list[MemoryRecord] = []
    emitted = 0
    for start in range(0, len(events), size):
        chunk = []
        for n, (id, first, last, email, what) in enumerate(events[start : start + size], start):
            body = (
                {}
                if what == "DELETE"
                else {"FirstName": first, "LastName": last, "Email": email, "Title": "t", "Phone": "1", "AccountId": "2"}
            )
            chunk.append(p.change("Contact", id, what, 10 + n, 1000 + n, body, **({"run": run_id} if run_id else {})))
        result = asyncio.run(_handle(p, chunk))
        for table, changes in result.state.items():
            p.partition.keep(table, changes)
        made = p.take(result.outputs)
        told = [out for out in result.outputs if out.topic == TOPICS.quality]
        assert len(told) <= 1, "one record per chunk at most"
        results += [MemoryRecord(out.topic, len(results), out.key, out.value) for out in told]
        passed = sum(write.op == "write" for write in made)
        chunks = msgspec.json.decode(told[0].value, type=Batch).chunk.values() if told and told[0].value else ()
        assert sum(one.passed for one in chunks) == passed
        for one in chunks:
            assert one.came == one.passed + one.failed + one.removed
            assert len(one.failures) == one.failed
        emitted += passed
    rows = rows_of(batches_of(results))
    assert {row.batch for row in rows} <= {run_id or "2023-11-14 22:00Z"} or not run_id
    assert all(row.total.came == row.total.passed + row.total.failed + row.total.removed for row in rows)
    assert sum(row.total.passed for row in rows) == emitted
    assert sum(row.total.failed for row in rows) == len(p.dead)
    assert not [letter for letter in p.dead if "Zoë" in letter.reason]


def with_target(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """The route `contacts` has a target that takes two characters, and refused a last name."""
    learned = Learned("contacts", "lastName", "value", "text", 1, 1, mark=mark_of("x"))
    takes = {"firstName": Takes(length=2), "email": Takes(required=True)}
    gates = {way.route: target_gate(way.map.written, "Contact", takes, [learned], 0) for way in ways if way.route == "contacts"}
    return tuple(replace(way, beyond=gates.get(way.route)) for way in ways)


async def test_what_a_target_would_refuse_fails_and_comes_again_when_it_changes_and_a_redrive_asks_the_target() -> None:
    routes = {"contacts": CONTACTS, "open": CONTACTS | {"object": "o"}}
    p = Pipeline(flow(**routes), maps(**routes), with_target)
    whole = {"Email": "a@x", "FirstName": "Zoë", "LastName": "M", "Title": "t", "Phone": "1", "AccountId": "2"}
    assert [w.route for w in await p.feed(p.change("Contact", "003", "CREATE", 10, 1000, whole))] == ["open"]
    [letter] = p.dead
    assert (letter.field, letter.stage, letter.route) == ("firstName", "process", "contacts")
    assert "firstName: length in target, found text (the target takes at most 2 characters)" in letter.reason
    assert "Zoë" not in letter.reason
    again = p.change("Contact", "003", "UPDATE", 20, 1010, {"Phone": "2"}, reason=Reason.REDRIVE, run="r", route="contacts")
    assert "contacts" in [w.route for w in await p.feed(again)], "what a person redrives the target itself answers"
    assert [w.route for w in await p.feed(p.change("Contact", "003", "UPDATE", 30, 1020, {"Phone": "3"}))] == ["open"]
    mended = await p.feed(p.change("Contact", "003", "UPDATE", 40, 1030, {"FirstName": "Al"}))
    assert [w.route for w in mended] == ["contacts", "open"]
    assert len(p.dead) == 2


async def _handle(p: Pipeline, records: list[MemoryRecord]) -> Result:
    return await p.stage.handler(Chunk(records[0].topic, 0, records), p.partition)


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("bad", [{"Email": None, "FirstName": None}, {"LastName": {"a": "b"}}, {"Email": 7}])
async def test_no_way_into_a_target_leads_past_the_stages(reason: Reason, bad: dict[str, Any]) -> None:
    desk = Desk(contacts=STRICT | {"key": "{externalId}"})
    row = ROW | bad
    more = {} if reason in (Reason.LIVE, Reason.FETCH) else {"run": "r", "route": "contacts"}
    await desk.feed(desk.row("Contact", of(1), 10, 1000, row, reason=reason, **more))
    desk.ask(Step("contacts", "run"))
    await desk.all()
    assert desk.topics
    assert not [topic for topic in desk.topics if ".writes." in topic or ".duplicates" in topic]
    assert len(desk.dead) == 2, "once as it came, once as it was refilled"


async def test_five_updates_of_one_record_in_a_chunk_are_one_write_and_four_duplicates() -> None:
    p = Pipeline(flow(contacts=STRICT), maps(contacts=STRICT))
    whole = {"Email": "a@x", "FirstName": "Z", "LastName": "M", "Title": "t", "Phone": "1", "AccountId": "2"}
    records = [p.change("Contact", "003", "CREATE", 10, 1000, whole)]
    records += [p.change("Contact", "003", "UPDATE", 20 + n, 1010 + n, {"Title": f"t{n}"}) for n in range(4)]
    [write] = await p.feed(*records)
    assert write.body is not None
    assert write.body["title"] == "t3"


def test_an_hour_takes_the_place_of_the_one_a_week_before_and_a_day_is_what_is_rolling() -> None:
    batches = [
        Batch("", 1000, "process", 0, 3, {"a": Counted(3, 2, 1, 0, {"x: required, found null": 1})}),
        Batch("", 1000, "process", 1, 4, {"a": Counted(1, 1), "b": Counted(1, 1)}),
        Batch("", 900, "process", 1, 2, {"a": Counted(9, 9)}),
        Batch("s", 1000, "process", 1, 1, {"a": Counted(7, 7)}),
    ]
    shown = shown_of(batches, "a", 1000 * 3600)
    assert shown.rolling == {"a": Counted(4, 3, 1, 0, {"x: required, found null": 1})}
    assert [(row.batch, row.total.came) for row in shown.batches] == [("1970-02-11 16:00Z", 4), ("1970-02-07 12:00Z", 9), ("s", 7)]


_VALUES = st.one_of(
    st.text(st.sampled_from("aB1@.+-/: \t\u00a0\u200b\ufeffé"), max_size=24),
    st.sampled_from(
        [
            "+49 30 123456",
            "https://www.Example.com:8080/a",
            "A@Example.org ",
            "005Qx000001aBcD",
            "2026-02-29",
            "2026-04-30T22:15:00Z",
            "1.234,5",
        ]
    ),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
)


@pytest.mark.parametrize(("rule", "done"), list(quality._SURE_AFTER), ids=lambda one: getattr(one, "__name__", one))
@given(value=_VALUES)
def test_what_a_map_made_sure_of_is_as_the_check_would_leave_it(rule: str, done: Transform, value: Any) -> None:
    try:
        made = done(value)
    except ValueError:
        return
    if type(made) in quality._SURE_AFTER[rule, done]:
        assert quality.TYPES[rule](made) == made
