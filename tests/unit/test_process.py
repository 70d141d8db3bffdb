"""The processing agent: who is emitted when, what is read again, what is a dead letter and of which route, and that nothing vanishes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import process
from agents.maps import load_maps
from agents.rules.merge import merge
from models.envelope import Envelope, Kind, Reason
from models.errors import FatalError, SettingsError
from models.write import Op
from streams.engine.stage import Chunk
from streams.map_versions import MapText, MapVersion
from tests.support.flows import CONTACTS, PEOPLE, TARGETS, flow, maps
from tests.support.memory import MemoryPartition, MemoryRecord
from tests.support.pipeline import TOPICS, Pipeline
from tests.support.rules_world import run

ID = "003Qx00000Ke4RtIAJ"
WHOLE = {
    "Email": "a@x.org",
    "Name": {"FirstName": "Zoë", "LastName": "M"},
    "Title": "CEO",
    "Phone": "1",
    "AccountId": "001",
    "OwnerId": "005",
}
ROW = {
    "Email": "a@x.org",
    "FirstName": "Zoë",
    "LastName": "M",
    "Title": "CEO",
    "Phone": "1",
    "AccountId": "001",
    "OwnerId": "005",
    "LeadSource": None,
    "Account": {"Id": "001", "Name": "Acme"},
    "Owner": {"Email": "o@x", "Name": "O", "IsActive": True, "Id": "005"},
}
BOTH = {"contacts": CONTACTS, "people": PEOPLE}
ORDERS = {"from": ["shop"], "to": "warehouse", "map": "maps/order.yaml"}


def pipeline(**routes: dict[str, Any]) -> Pipeline:
    routes = routes or {"contacts": CONTACTS}
    return Pipeline(flow(**routes), maps(**routes))


def create(p: Pipeline, position: int = 10, **more: Any) -> MemoryRecord:
    return p.change("Contact", ID, "CREATE", position, 1000, WHOLE, **more)


async def test_a_query_route_asks_for_the_row_and_the_row_emits_to_it_and_asks_no_more() -> None:
    p = pipeline(**BOTH)
    assert [w.route for w in await p.feed(create(p))] == ["contacts"], "what needs no row does not wait for it"
    assert p.fetches == [({"sobject": "Contact", "id": ID}, {"epoch": "1", "position": "10"})]
    writes = await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    assert [w.route for w in writes] == ["people"]
    assert (writes[0].body or {})["dataFields"]["Owner"]["Salesforce"]["Active"] is True
    assert len(p.fetches) == 1
    assert await p.feed(p.row("Contact", ID, 10, 1000, ROW)) == [], "the same row again tells nothing"


async def test_a_query_route_is_asked_for_at_any_event_even_of_fields_that_are_not_mapped() -> None:
    p = pipeline(people=PEOPLE)
    await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    assert await p.feed(p.change("Contact", ID, "UPDATE", 20, 1010, {"Score__c": 5})) == []
    assert len(p.fetches) == 1
    await p.feed(p.change("Contact", ID, "UPDATE", 20, 1010, {"Score__c": 5}))
    assert len(p.fetches) == 1, "a duplicate asks for nothing"


async def test_a_delete_reaches_a_query_route_without_a_row() -> None:
    p = pipeline(people=PEOPLE)
    await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    [release] = await p.feed(p.change("Contact", ID, "DELETE", 20, 1010))
    assert (release.op, release.key) == (Op.RELEASE, "a@x.org")
    assert p.fetches == []


async def test_many_events_of_a_record_in_one_chunk_ask_once() -> None:
    p = pipeline(people=PEOPLE)
    await p.feed(create(p), *(p.change("Contact", ID, "UPDATE", 20 + n, 1010, {"Title": str(n)}) for n in range(5)))
    [(_, headers)] = p.fetches
    assert headers == {"epoch": "1", "position": "24"}, "only what was read behind the last of them answers"


async def test_an_incomplete_record_is_written_nowhere_and_read_again() -> None:
    p = pipeline()
    assert await p.feed(p.change("Contact", ID, "UPDATE", 10, 1000, {"Title": "x"})) == []
    assert p.fetches == [({"sobject": "Contact", "id": ID}, {"epoch": "1", "position": "10"})]
    [write] = await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    assert write.op is Op.WRITE


async def test_a_row_read_by_id_that_lacks_a_needed_field_is_a_dead_letter_and_no_loop() -> None:
    p = pipeline()
    short = {name: value for name, value in ROW.items() if name != "Title"}
    assert await p.feed(p.row("Contact", ID, 10, 1000, short)) == []
    assert p.fetches == []
    [dead] = p.dead
    assert "Title" in dead.reason
    assert await p.feed(p.row("Contact", ID, 10, 1000, short, bulk=True, reason=Reason.SNAPSHOT, run="s")) == []
    assert len(p.fetches) == 1, "a row of another kind is read by id first"


@pytest.mark.parametrize("reason", [Reason.SNAPSHOT, Reason.REPAIR, Reason.REPLAY, Reason.REDRIVE])
async def test_what_carries_a_run_always_emits_and_floods_take_the_bulk_lane(reason: Reason) -> None:
    p = pipeline()
    await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    bulk = reason in (Reason.SNAPSHOT, Reason.REPLAY)
    [write] = await p.feed(p.row("Contact", ID, 10, 1000, ROW, reason=reason, run="r", bulk=bulk))
    assert (write.always, write.run, write.reason) == (True, "r", reason.value)
    assert p.writes[-1][0] == TOPICS.writes("warehouse", bulk=bulk)


async def test_a_route_header_limits_the_output_only_when_nothing_changed() -> None:
    routes = {"a": CONTACTS, "b": CONTACTS | {"object": "other"}}
    p = pipeline(**routes)
    await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    same = await p.feed(p.row("Contact", ID, 10, 1000, ROW, reason=Reason.REDRIVE, run="r", route="b"))
    assert [w.route for w in same] == ["b"]
    other = await p.feed(p.row("Contact", ID, 11, 1001, ROW | {"Title": "new"}, reason=Reason.REDRIVE, run="r", route="b"))
    assert [w.route for w in other] == ["a", "b"]


async def test_the_empty_row_of_a_redrive_emits_the_record_as_it_is_now() -> None:
    p = pipeline(**BOTH)
    await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    envelope = Envelope(kind=Kind.ROW, reason=Reason.REDRIVE, received=1, run="r", route="people")
    [write] = await p.feed(p.record("acme/Contact", ID, {"Id": ID}, envelope))
    assert (write.route, write.key) == ("people", "a@x.org")
    assert p.dead == []


async def test_a_replayed_change_event_asks_a_query_route_with_its_run_and_route() -> None:
    p = pipeline(people=PEOPLE)
    await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    replayed = create(p, 10, reason=Reason.REPLAY, run="r", route="people", bulk=True)
    assert await p.feed(replayed) == []
    [(_, headers)] = p.fetches
    assert headers == {"reason": "replay", "run": "r", "route": "people"}
    [write] = await p.feed(p.row("Contact", ID, 10, 1000, ROW, reason=Reason.REPLAY, run="r", route="people"))
    assert p.writes[-1] == (TOPICS.writes("marketing", bulk=True), write)


async def test_a_record_that_fails_in_one_route_is_its_dead_letter_and_goes_on_in_the_others() -> None:
    p = pipeline(contacts=CONTACTS, mails={"from": ["acme/Contact"], "to": "marketing", "map": "person"})
    body = {name: value for name, value in WHOLE.items() if name != "Email"}
    [write] = await p.feed(p.change("Contact", ID, "CREATE", 10, 1000, body))
    assert write.route == "contacts"
    [dead] = p.dead
    assert (dead.route, dead.stage, dead.redrive_to) == ("mails", "process", TOPICS.inbound("acme/Contact"))
    assert "email" in dead.reason
    [_, mended] = await p.feed(p.change("Contact", ID, "UPDATE", 20, 1010, {"Email": "a@x.org"}))
    assert (mended.route, mended.op) == ("mails", Op.WRITE)


async def test_a_failing_quality_rule_is_a_dead_letter_without_values() -> None:
    p = pipeline(c=CONTACTS)
    assert await p.feed(p.change("Contact", ID, "CREATE", 10, 1000, {"Name": {"LastName": "Sécret"}})) == []
    [dead] = p.dead
    assert ID in dead.reason
    assert "Sécret" not in dead.reason


POISON: list[tuple[bytes | None, str]] = [
    (None, "has no value"),
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[]", "must be an object"),
    (b'{"data":{}}', "must be an object"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("value", "reason"), POISON, ids=range(len(POISON)))
async def test_a_poison_event_reaches_the_dead_letters_with_its_bytes_and_stops_nobody(value: bytes | None, reason: str) -> None:
    p = pipeline()
    envelope = Envelope(kind=Kind.CHANGE, reason=Reason.LIVE, received=1, epoch=1, position=1)
    poison = p.record("acme/Contact", ID, value, envelope)
    [write] = await p.feed(poison, create(p))
    assert write.op is Op.WRITE
    [dead] = p.dead
    assert dead.original_value == value
    assert dead.original_headers == envelope.headers()
    assert reason in dead.reason


@pytest.mark.parametrize(
    ("headers", "key", "reason"),
    [
        ([], ID.encode(), "is missing"),
        ([("kind", b"change"), ("reason", b"because"), ("received", b"1")], ID.encode(), "cannot be read"),
        ([("kind", b"change"), ("reason", b"live"), ("received", b"soon")], ID.encode(), "cannot be read"),
        ([("kind", b"hook"), ("reason", b"live"), ("received", b"1")], ID.encode(), "put there by somebody else"),
        ([("kind", b"change"), ("reason", b"live"), ("received", b"1")], None, "has no key"),
        ([("kind", b"change"), ("reason", b"live"), ("received", b"1")], b"\xff", "none of them is the record's key"),
    ],
)
async def test_a_record_of_somebody_else_is_a_dead_letter(headers: list[tuple[str, bytes]], key: bytes | None, reason: str) -> None:
    p = pipeline()
    record = create(p)
    record.headers, record.key = headers, key
    assert await p.feed(record) == []
    assert reason in p.dead[0].reason
    assert p.partition.store("records").values == {}


@pytest.mark.parametrize("change", ["GAP_UPDATE", "GAP_CREATE", "GAP_OVERFLOW"])
async def test_a_gap_is_a_dead_letter_that_asks_for_a_re_read(change: str) -> None:
    p = pipeline()
    assert await p.feed(p.change("Contact", ID, change, 10, 1000)) == []
    assert "needs re-read" in p.dead[0].reason


async def test_records_of_a_source_without_a_route_are_counted_and_passed_over() -> None:
    p = pipeline()
    assert await p.feed(p.change("Case", "500A", "CREATE", 10, 1000)) == []
    assert p.dead == []


async def test_a_state_that_cannot_be_read_is_fatal() -> None:
    p = pipeline()
    await p.feed(create(p))
    [key] = [key for key in p.partition.store("records").values if not key.startswith(b"\x01")]
    p.partition.store("records").values[key] = b'{"f":99}'
    with pytest.raises(FatalError):
        await p.feed(create(p, 11))


def test_a_route_from_an_unknown_connection_is_refused() -> None:
    made = flow(contacts=CONTACTS | {"from": ["elsewhere/Contact"]})
    with pytest.raises(SettingsError, match="elsewhere"):
        Pipeline(made, maps(contacts=CONTACTS | {"from": ["elsewhere/Contact"]}))


def hook(p: Pipeline, body: Any, delivery: str = "d1", **more: Any) -> MemoryRecord:
    known: dict[str, Any] = {"kind": Kind.HOOK, "reason": Reason.LIVE, "received": 1000, "delivery": delivery, **more}
    return p.record("shop", "order-1", body, Envelope(**known), timestamp=1_700_000_000_000)


async def test_a_delivery_that_is_repeated_acts_once_and_one_that_is_redelivered_acts_again() -> None:
    p = pipeline(orders=ORDERS)
    first = hook(p, {"order": {"id": "order-1", "total": 5}})
    [write] = await p.feed(first)
    assert (write.key, write.body, write.source) == ("shop/order-1", {"id": "order-1", "total": 5}, "shop/order-1")
    assert await p.feed(hook(p, {"order": {"id": "order-1", "total": 5}})) == []
    assert [w.body for w in await p.feed(first)] == [write.body], "Kafka's redelivery of the first"
    [other] = await p.feed(hook(p, {"order": {"id": "order-1"}}, "d2"))
    assert other.body == {"id": "order-1"}, "the body replaces the record whole"
    [again] = await p.feed(hook(p, {"order": {"id": "order-1", "total": 5}}, "d1", reason=Reason.REDRIVE, run="r", route="orders"))
    assert again.body == {"id": "order-1"}, "a redriven hook emits, and does not overwrite a newer one"


async def test_a_hook_that_is_no_object_is_a_dead_letter() -> None:
    p = pipeline(orders=ORDERS)
    assert await p.feed(hook(p, [1, 2])) == []
    assert "must be a JSON object" in p.dead[0].reason


async def test_a_number_no_target_could_be_told_is_a_dead_letter_and_moves_no_key() -> None:
    p = pipeline(orders=ORDERS)
    assert await p.feed(hook(p, b'{"order": {"id": "order-1", "total": 1e400}}')) == [] or p.writes
    assert len(p.dead) + len(p.writes) == 1


@given(
    value=st.binary(max_size=60),
    key=st.binary(max_size=20),
    headers=st.lists(st.tuples(st.sampled_from(["kind", "reason", "received", "epoch"]), st.binary(max_size=6))),
)
def test_no_record_whatsoever_ends_the_process_or_vanishes(value: bytes, key: bytes, headers: list[tuple[str, bytes]]) -> None:
    p = pipeline()
    record = MemoryRecord(TOPICS.inbound("acme/Contact"), 0, key, value, headers)
    result = run(p.stage.handler(Chunk(record.topic, 0, [replace(record)]), MemoryPartition()))
    assert len(result.outputs) == 1


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_merge_that_fails_half_way_leaves_nothing_behind(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p, clean = pipeline(), pipeline()

    def failing(state: Any, message: Any, *args: Any) -> Any:
        done = merge(state, message, *args)
        if message.values.get("Title") == "bad":
            raise ZeroDivisionError
        return done

    monkeypatch.setattr(process, "merge", failing)
    await p.feed(create(p))
    await clean.feed(create(clean))
    news = [{"Phone": "2"}, {"Email": "b@x.org"}]
    poisoned = [*news[:at], {"Title": "bad", "Phone": "3"}, *news[at:]]
    told = [p.change("Contact", ID, "UPDATE", 20 + n, 1010, body) for n, body in enumerate(poisoned)]
    wanted = [record for n, record in enumerate(told) if n != at]
    assert await p.feed(*told) == await clean.feed(*wanted)
    assert p.partition.store("records").values == clean.partition.store("records").values
    assert len(p.dead) == 1
    more = p.change("Contact", ID, "UPDATE", 30, 1020, {"Title": "good"})
    assert await p.feed(more) == await clean.feed(more)


async def test_a_chunk_whose_transaction_failed_starts_from_the_state_before_it() -> None:
    p, clean = pipeline(), pipeline()
    await p.feed(create(p))
    await clean.feed(create(clean))
    lost = p.change("Contact", ID, "UPDATE", 20, 1010, {"Phone": "2"})
    await p.feed(lost, commit=False, keep=False)
    assert await p.feed(lost) == await clean.feed(lost)
    assert p.partition.store("records").values == clean.partition.store("records").values


async def test_a_record_of_which_only_a_parents_field_is_mapped_is_read_when_it_is_made() -> None:
    """Found by the property that event and query agree: of such a record no value became another one, so it was told to nobody."""
    route = {"from": ["acme/Contact"], "to": "warehouse", "map": "m.yaml"}
    made = flow(route=route)
    p = Pipeline(made, load_maps(made, TARGETS, {"route": MapVersion("route", 1, MapText.of("m.yaml", "Owner.Email: owner\n"))}))
    await p.feed(create(p))
    assert [asked["id"] for asked, _ in p.fetches] == [ID]
    [write] = await p.feed(p.row("Contact", ID, 10, 1000, ROW))
    assert write.body == {"owner": "o@x"}
