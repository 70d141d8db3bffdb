"""What change events, rows and hooks say: compound fields, nulls, enrichment, large texts, gaps; and every way they can be wrong."""

import hashlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.rules.compound import apply_diff, parts, tidy
from agents.rules.merge import RecordState, merge
from agents.rules.message import Message, from_event, from_hook, from_row
from agents.rules.plan import Plan, make_plan
from models.change_event import Change, ChangeEventError, parse
from models.envelope import Envelope, Kind, Reason
from models.errors import PermanentError

ID = "003Qx00000Ke4RtIAJ"
RECORDED = [
    json.loads(line)
    for name in ("cometd-documentation", "cometd-emp-connector", "cometd-clients")
    for line in (Path(__file__).parent.parent / f"data/sandbox/{name}.jsonl").read_text().splitlines()
]
CONTACT = make_plan("Contact", ("Email", "Title", "Name", "MailingStreet", "MailingCity", "Description", "Owner.Email"))


def message(change: object, body: dict[str, Any], position: int = 10, second: int = 1000, **header: Any) -> dict[str, Any]:
    head = {"entityName": "Contact", "recordIds": [ID], "changeType": change, "commitTimestamp": second * 1000, "changedFields": []}
    if change == "UPDATE":
        head["changedFields"] = list(body)
    payload = {"ChangeEventHeader": head | header, **body}
    return {"data": {"schema": "x", "payload": payload, "event": {"replayId": position}}, "channel": "/data/ChangeEvents"}


def tell(state: RecordState, *args: Any, plan: Plan = CONTACT, **more: Any) -> Any:
    event = parse(message(*args, **more))
    return merge(state, from_event(event, ID, plan, 1), plan, "live", state.live + 1)


def fresh() -> RecordState:
    return RecordState.decode(None, ID)


def row(state: RecordState, began: int, second: str, plan: Plan = CONTACT, **body: Any) -> Any:
    envelope = Envelope(kind=Kind.ROW, reason=Reason.FETCH, received=1, epoch=1, began=began)
    found = from_row({"Id": ID, "IsDeleted": False, "SystemModstamp": second, **body}, envelope, plan)
    return merge(state, found, plan, "live", state.live + 1)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: r["source"][:40])
def test_every_recorded_change_event_merges_or_says_why_not(recorded: dict[str, Any]) -> None:
    found = recorded["message"]
    event = parse(found if "data" in found else {"data": found, "channel": "/data/ChangeEvents"})
    assert event.position >= 0
    assert 2010 < 1970 + event.committed / 31_556_952_000 < 2030
    plan = make_plan(event.sobject, [name for name in event.body if isinstance(name, str)])
    for id in event.ids:
        try:
            told = from_event(event, id, plan, 1)
        except PermanentError as error:
            assert "needs re-read" in error.reason
            continue
        state = RecordState.decode(None, id)
        done = merge(state, told, plan, "live", 0)
        assert done.moved or not (told.values or told.deleted is not None)
        assert RecordState.decode(state.encode(), id).values == state.values


def test_absent_is_unchanged_in_an_update_and_null_is_emptied() -> None:
    state = fresh()
    tell(state, "CREATE", {"Email": "a@x", "Title": "CEO"})
    assert tell(state, "UPDATE", {"Title": None}, position=11).changed == {"Title"}
    assert (state.values["Email"], state.values["Title"]) == ("a@x", None)


def test_absent_is_empty_in_a_create_except_what_only_rows_know() -> None:
    state = fresh()
    tell(state, "CREATE", {"Email": "a@x", "OwnerId": "005"})
    assert state.values["Title"] is None
    assert "Owner.Email" not in state.values
    assert not state.knows(CONTACT.needed)


def test_an_empty_relationship_needs_no_row() -> None:
    plan = make_plan("Contact", ("Account.Name",))
    state = fresh()
    tell(state, "CREATE", {"Email": "a@x"}, plan=plan)
    assert state.values["Account.Name"] is None
    assert state.knows(plan.needed)


def test_a_new_owner_makes_what_was_read_through_the_old_one_unknown_to_older_rows_too() -> None:
    state = fresh()
    row(state, 5, "1970-01-01T00:10:00.000+0000", OwnerId="005A", Owner={"Email": "old@x"})
    assert state.values["Owner.Email"] == "old@x"
    tell(state, "UPDATE", {"OwnerId": "005B"}, position=10, second=1000)
    assert "Owner.Email" not in state.values
    row(state, 6, "1970-01-01T00:15:00.000+0000", OwnerId="005A", Owner={"Email": "old@x"})
    assert "Owner.Email" not in state.values, "an older row does not bring it back"
    row(state, 10, "1970-01-01T00:16:40.000+0000", OwnerId="005B", Owner={"Email": "new@x"})
    assert state.values["Owner.Email"] == "new@x"


def test_compound_fields_merge_part_by_part() -> None:
    state = fresh()
    tell(state, "CREATE", {"Name": {"FirstName": "Zoë", "LastName": "M"}, "MailingAddress": {"Street": "1", "City": "Lyon"}})
    assert (state.values["Name"], state.values["MailingStreet"], state.values["MailingCity"]) == ("Zoë M", "1", "Lyon")
    changed = ["Name.LastName", "MailingAddress.Street"]
    tell(state, "UPDATE", {"Name": {"LastName": "N"}, "MailingAddress": {"Street": None}}, position=11, changedFields=changed)
    assert (state.values["Name"], state.values["MailingStreet"], state.values["MailingCity"]) == ("Zoë N", None, "Lyon")


@pytest.mark.parametrize("body", [{}, {"MailingAddress": None}, {"MailingAddress": {}}])
def test_a_bare_parent_among_changed_fields_empties_all_parts(body: dict[str, Any]) -> None:
    state = fresh()
    tell(state, "CREATE", {"MailingAddress": {"Street": "1", "City": "Lyon"}})
    tell(state, "UPDATE", body, position=11, changedFields=["MailingAddress", "LastModifiedDate"])
    assert (state.values["MailingStreet"], state.values["MailingCity"]) == (None, None)


def test_a_name_whose_other_parts_are_not_known_is_read_again() -> None:
    state = fresh()
    row(state, 5, "1970-01-01T00:10:00.000+0000", Name="Zoë Q M", FirstName="Zoë", LastName="M")
    tell(state, "UPDATE", {"Name": {"LastName": "N"}}, changedFields=["Name.LastName"])
    assert "Name" not in state.values
    assert state.values["LastName"] == "N"


@pytest.mark.parametrize(
    ("sobject", "name", "part", "flat"),
    [
        ("Account", "BillingAddress", "Street", "BillingStreet"),
        ("Lead", "Address", "City", "City"),
        ("Contact", "MailingAddress", "GeocodeAccuracy", "MailingGeocodeAccuracy"),
        ("Lead", "Name", "Suffix", "Suffix"),
        ("Site__c", "Loc__c", "Latitude", "Loc__Latitude__s"),
    ],
)
def test_parts_of_compound_fields_have_rests_flat_names(sobject: str, name: str, part: str, flat: str) -> None:
    assert dict(parts(sobject, name))[part] == flat


def test_the_same_name_is_plain_for_a_business_and_compound_for_a_person_account() -> None:
    plan = make_plan("Account", ("Name", "FirstName"))
    for name, expected in (("Acme", "Acme"), ({"FirstName": "Zoë", "LastName": "M"}, "Zoë M")):
        state = fresh()
        tell(state, "CREATE", {"Name": name}, plan=plan, entityName="Account")
        assert state.values["Name"] == expected


def test_a_custom_geolocation_is_known_whole_and_by_its_parts() -> None:
    plan = make_plan("Contact", ("Loc__c", "Loc__Latitude__s"))
    state = fresh()
    tell(state, "CREATE", {"Loc__c": {"Latitude": 1.5, "Longitude": 2}}, plan=plan)
    assert (state.values["Loc__c"], state.values["Loc__Latitude__s"]) == ({"latitude": 1.5, "longitude": 2}, 1.5)


def test_enriched_values_only_fill_what_is_unknown() -> None:
    state = fresh()
    tell(state, "UPDATE", {"Title": "CEO", "Email": "later@x"}, changedFields=["Title"])
    assert state.values["Email"] == "later@x"
    tell(state, "UPDATE", {"Email": "b@x"}, position=11)
    tell(state, "UPDATE", {"Title": "CTO", "Email": "c@x"}, position=12, changedFields=["Title"])
    assert state.values["Email"] == "b@x"


def test_before_api_47_every_field_of_the_body_changed() -> None:
    found = message("UPDATE", {"Title": "CEO"})
    del found["data"]["payload"]["ChangeEventHeader"]["changedFields"]
    state = fresh()
    merge(state, from_event(parse(found), ID, CONTACT, 1), CONTACT, "live", 0)
    assert state.values["Title"] == "CEO"


def test_a_field_named_as_changed_and_not_told_is_read_again() -> None:
    state = fresh()
    tell(state, "CREATE", {"Title": "CEO"})
    tell(state, "UPDATE", {}, position=11, changedFields=["Title"])
    assert "Title" not in state.values


OLD = "first line\r\nold line\r\nlast line"
NEW = "first line\r\nnew line\r\nlast line"
DIFF = f"--- \n+++ {hashlib.sha256(NEW.encode()).hexdigest()}\n@@ -2,1 +2,1 @@\n-old line\n+new line"


def test_a_large_text_difference_is_applied_once_and_checked() -> None:
    state = fresh()
    tell(state, "CREATE", {"Description": OLD})
    for _ in range(2):  # the second time it is a duplicate
        tell(state, "UPDATE", {"Description": {"diff": DIFF}}, position=11)
        assert state.values["Description"] == NEW


@pytest.mark.parametrize("held", ["something else", "", None])
def test_a_difference_that_does_not_fit_makes_the_field_unknown(held: str | None) -> None:
    state = fresh()
    tell(state, "CREATE", {"Description": held})
    tell(state, "UPDATE", {"Description": {"diff": DIFF}}, position=11)
    assert "Description" not in state.values
    tell(state, "UPDATE", {"Description": "older"}, position=9)
    assert "Description" not in state.values, "nothing older speaks for it"


@given(st.text(max_size=60), st.text(max_size=120))
def test_no_difference_breaks_the_merge(held: str, diff: str) -> None:
    assert apply_diff(held, diff) is None or hashlib.sha256(str(apply_diff(held, diff)).encode()).hexdigest() in diff.lower()
    apply_diff(held, f"+++ x\n@@ -{len(diff)},0 +1 @@\n{diff}")


@pytest.mark.parametrize("written", ["2019-05-02T11:27:36Z", "2019-05-02T11:27:36.000Z", "2019-05-02T11:27:36.000+0000"])
def test_date_times_of_events_and_rows_become_equal(written: str) -> None:
    assert tidy(written) == "2019-05-02T11:27:36.000Z"


@pytest.mark.parametrize("value", ["2019-05-02", "2019-05-02T11:27:36.000+0200", "call at 2019-05-02T11:27:36Z", 5, None, True])
def test_nothing_else_is_taken_for_a_date_time(value: Any) -> None:
    assert tidy(value) is value


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        ("GAP_CREATE", [ID]),
        ("GAP_UPDATE", [ID, "003B"]),
        ("GAP_DELETE", [ID]),
        ("GAP_UNDELETE", [ID]),
        ("SNAPSHOT", [ID]),
        ("GAP_OVERFLOW", ["000000000000000AAA"]),
        ("UPDATE", ["003*"]),
    ],
)
def test_what_says_only_that_something_changed_must_be_read_again(change: str, ids: list[str]) -> None:
    event = parse(message(change, {}, recordIds=ids))
    assert event.gap == change.startswith("GAP_")
    assert (event.overflow, event.wildcard) == (change == "GAP_OVERFLOW", ids == ["003*"])
    with pytest.raises(PermanentError, match="needs re-read"):
        from_event(event, ids[0], CONTACT, 1)


def test_a_merged_event_speaks_for_each_of_its_ids_and_for_no_other() -> None:
    event = parse(message("UPDATE", {"Title": "Hot"}, recordIds=[ID, "003B"]))
    assert event.merged
    assert from_event(event, "003B", CONTACT, 1).values == {"Title": "Hot"}
    with pytest.raises(PermanentError, match="none of them is the record's key"):
        from_event(event, "003C", CONTACT, 1)


def test_numbers_beyond_double_precision_and_unknown_header_keys_pass() -> None:
    sent = message("DELETE", {}, commitNumber=1773696751765225473, somethingNew={"a": 1})
    event = parse(orjson.loads(orjson.dumps(sent | {"data": sent["data"] | {"event": {"replayId": 1773696751765225473}}})))
    assert (event.change, event.position) == (Change.DELETE, 1773696751765225473)


def _broken() -> list[tuple[Any, str]]:
    def without(*path: str) -> Any:
        found = message("UPDATE", {"Title": "x"})
        at = found
        for step in path[:-1]:
            at = at[step]
        del at[path[-1]]
        return found

    head = ("data", "payload", "ChangeEventHeader")
    return [
        (None, "the message must be an object"),
        ([], "the message must be an object"),
        ("text", "the message must be an object"),
        ({}, "data must be an object, found nothing"),
        (without("data", "payload"), "data.payload must be an object"),
        (without("data", "event"), "data.event must be an object"),
        (without(*head), "ChangeEventHeader must be an object, found nothing"),
        (without(*head, "entityName"), "entityName must be a text, found nothing"),
        (without(*head, "recordIds"), "recordIds must list at least one id, found nothing"),
        (without(*head, "changeType"), "changeType is 'None'"),
        (without(*head, "commitTimestamp"), "commitTimestamp must be a whole number, found nothing"),
        (without("data", "event", "replayId"), "replayId must be a whole number, found nothing"),
        (message("UPDATE", {}, recordIds=[]), "found an empty list"),
        (message("UPDATE", {}, recordIds=[5]), "recordIds must list"),
        (message("UPDATE", {}, changedFields="Title"), "changedFields must list names, found str"),
        (message("UPDATE", {}, commitTimestamp=True), "commitTimestamp must be a whole number, found bool"),
        (message("EXPLODE", {}), "changeType is 'EXPLODE'"),
        (message({"a": 1}, {}), "changeType is"),
    ]


@pytest.mark.parametrize(("found", "reason"), _broken())
def test_what_is_no_change_event_says_what_is_missing(found: Any, reason: str) -> None:
    with pytest.raises(ChangeEventError) as caught:
        parse(found)
    assert reason in str(caught.value)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.sampled_from(["Name", "diff", "Street"]), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["Email", "Title", "Name", "MailingAddress", "Description", "OwnerId", "Loc__c", "Other", "Name.LastName", "SystemModstamp"]
)


@given(
    body=st.dictionaries(NAMES, JSON),
    changed=st.lists(NAMES | st.text(max_size=12)),
    change=st.sampled_from(["CREATE", "UPDATE", "DELETE"]),
)
def test_whatever_a_body_holds_the_merge_is_idempotent_and_its_state_survives(body: Any, changed: list[str], change: str) -> None:
    state = fresh()
    tell(state, "CREATE", {"Email": "a@x", "Description": OLD}, position=5)
    told = parse(message(change, body, changedFields=changed))
    merge(state, from_event(told, ID, CONTACT, 1), CONTACT, "live", 1)
    once = RecordState.decode(state.encode(), ID)
    again = merge(state, from_event(told, ID, CONTACT, 1), CONTACT, "live", 2)
    assert (again.changed, again.redelivery) == (set(), False)
    assert state.values == once.values
    assert state.revision == once.revision + 1


@given(st.permutations(range(5)))
def test_events_of_one_epoch_end_the_same_in_any_order(order: list[int]) -> None:
    events = [("CREATE", {"Email": "a", "Title": "1"})] + [
        ("UPDATE", {name: str(n)}) for n, name in enumerate(("Title", "Email", "Title", "Phone"))
    ]
    state = fresh()
    for n in order:
        tell(state, *events[n], position=10 + n, second=1000 + n)
    assert (state.values["Email"], state.values["Title"]) == ("1", "2")


@pytest.mark.parametrize(
    ("found", "began", "reason"),
    [
        ([], 1, "must be a JSON object"),
        ("x", 1, "must be a JSON object"),
        ({"Id": ID, "Email": "x"}, 1, "needs SystemModstamp"),
        ({"Id": ID, "SystemModstamp": "yesterday"}, 1, "needs SystemModstamp"),
        ({"Id": ID, "SystemModstamp": "2020-01-01T00:00:00Z"}, None, "lacks the header began"),
        ({"Id": ID, "Email": "x"}, None, "lacks the header began"),
    ],
)
def test_a_row_that_does_not_say_how_old_it_is_is_refused(found: Any, began: int | None, reason: str) -> None:
    with pytest.raises(PermanentError, match=reason):
        from_row(found, Envelope(kind=Kind.ROW, reason=Reason.FETCH, received=1, began=began), CONTACT)


def test_the_empty_row_of_a_redrive_speaks_for_nothing() -> None:
    told = from_row({"Id": ID}, Envelope(kind=Kind.ROW, reason=Reason.REDRIVE, received=1, run="r", route="x"), CONTACT)
    state = fresh()
    tell(state, "CREATE", {"Email": "a"})
    before = dict(state.values)
    assert merge(state, told, CONTACT, "live", 5).changed == set()
    assert state.values == before
    assert state.revision == 5 + 1


def test_a_gone_row_deletes_and_speaks_for_no_field() -> None:
    state = fresh()
    tell(state, "CREATE", {"Email": "a"})
    envelope = Envelope(kind=Kind.ROW, reason=Reason.FETCH, received=1, epoch=1, began=10, gone=1001)
    assert merge(state, from_row({"Id": ID}, envelope, CONTACT), CONTACT, "live", 1).changed == {""}
    assert (state.deleted, state.values["Email"]) == (True, "a")


def _hook(state: RecordState, body: Any, offset: int, **more: Any) -> Any:
    plan = make_plan("", ("order.total", "mail"), hook=True)
    envelope = Envelope(**{"kind": Kind.HOOK, "reason": Reason.LIVE, "received": 1000, **more})
    told: Message = from_hook(body, envelope, plan, offset)
    return merge(state, told, plan, "live", offset)


def test_a_hook_replaces_its_record_whole_and_a_replayed_one_does_not_overwrite_a_newer() -> None:
    state = fresh()
    _hook(state, {"order": {"total": 5}, "mail": "a"}, 3)
    assert _hook(state, {"order": {"total": 6}}, 4).changed == {"order.total", "mail"}
    assert "mail" not in state.values
    assert _hook(state, {"order": {"total": 5}, "mail": "a"}, 9, reason=Reason.REPLAY, run="r", position=3).changed == set()
    assert _hook(state, {"order": {"total": 5}, "mail": "a"}, 10, reason=Reason.REDRIVE, run="r").changed == set()
    assert state.values["order.total"] == 6
    with pytest.raises(PermanentError, match="must be a JSON object"):
        _hook(state, [1], 11)
