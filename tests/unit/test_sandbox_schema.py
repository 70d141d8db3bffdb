"""Ids and custom fields of the sandbox org, and its fault switchboard."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.sandbox.faults import Faults, Kind, UnknownFaultError
from deploy.sandbox.salesforce import ids
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import channel_name, load

DATA = Path(__file__).parents[1] / "data" / "sandbox"


def test_the_checksum_fits_every_recorded_id() -> None:
    text = "".join(p.read_text() for p in DATA.glob("cometd-*.jsonl"))
    found = {i for i in re.findall(r'"([A-Za-z0-9]{18})"', text) if i[:3] in ("001", "003", "005", "500") or i[0] == "a"}
    assert len(found) > 10
    assert all(ids.normalize(i) == i == ids.normalize(i[:15]) for i in found)
    assert ids.extend("0" * 15) == ids.NULL_ID


@given(st.integers(0, 62**9 - 2), st.sampled_from(["001", "003", "a00"]))
def test_made_ids_are_valid_and_grow_with_their_number(number: int, prefix: str) -> None:
    first, second = ids.make(prefix, number), ids.make(prefix, number + 1)
    assert ids.normalize(first) == first
    assert first < second


@given(st.text(max_size=20))
def test_no_other_text_is_taken_for_an_id(text: str) -> None:
    found = ids.normalize(text)
    assert found is None or found[:15] == text[:15]


def test_custom_fields_and_objects_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "fields.yaml"
    file.write_text(
        "Contact:\n  Score__c: double\n  Boss__c: {type: reference, references: User}\nFoo__c:\n  Size__c: {type: int, required: true}\n"
    )
    org = Org(load(file))
    contact, foo = org.schema.objects["Contact"], org.schema.objects["Foo__c"]
    assert (contact.fields["Score__c"].type, contact.fields["Boss__c"].relationship, foo.channel) == (
        "double",
        "Boss__r",
        "/data/Foo__ChangeEvent",
    )
    transaction = org.begin("005000000000000AAA")
    made = transaction.create(foo, {"Name": "x", "Size__c": 3})
    org.commit(transaction)
    assert made.startswith("a00")
    (event,) = org.bus.after(0)
    assert json.loads(event.data)["payload"]["Size__c"] == 3
    assert channel_name("Account") == "AccountChangeEvent"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("5", "expected a map"),
        ("Contact: [x]", "Contact"),
        ("Contact: {Score: double}", "Contact.Score"),
        ("Contact: {Score__c: nonsense}", "Contact.Score__c"),
        ("Contact: {Score__c: {type: double, nope: 1}}", "nope"),
        ("Nope: {Score__c: double}", "Nope"),
        ("1x__c: {}", "1x__c"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "fields.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(names)):
        load(file)


def test_a_fault_strikes_as_often_as_it_was_armed_for() -> None:
    faults = Faults({"a": Kind("x", ("one", "two"), times=2), "b": Kind("y", times=None)})
    faults.arm("a")
    faults.arm("b")
    assert [faults.take("a", "two"), faults.peek("a", "two")] == [None, None]
    assert [faults.take("a") is not None for _ in range(3)] == [True, True, False]
    assert [faults.take("b") is not None for _ in range(3)] == [True] * 3
    faults.clear("b")
    assert faults.take("b") is None
    assert faults.fired == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    "given",
    [
        {"name": "nope"},
        {"name": "a", "variant": "x"},
        {"name": "a", "times": -1},
        {"name": "a", "seconds": 601},
        {"name": "a", "times": True},
        {},
    ],
)
def test_a_fault_that_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there are|has no variant|number|times"):
        Faults({"a": Kind("x")}).arm_given(given)
    with pytest.raises(UnknownFaultError):
        Faults({"a": Kind("x")}).clear("nope")


def test_fields_come_and_go_while_the_org_runs_and_events_say_by_which_they_were_made() -> None:
    org, schemas = Org(load(None)), []
    contact = org.schema.objects["Contact"]
    for fields in ({"Score__c": "double", "Boss__c": {"type": "reference", "references": "User"}}, {"Score__c": None, "Boss__c": None}, {}):
        org.extend({"Contact": fields} if fields else {"Lead": {"Score__c": "double"}})
        transaction = org.begin("005000000000000AAA")
        transaction.create(contact, {"LastName": "x"})
        org.commit(transaction)
        schemas.append(json.loads(org.bus.after(0)[-1].data)["schema"])
        there = {"Score__c", "Boss__c"} & contact.fields.keys()
        assert bool(there) == (len(schemas) == 1)
        assert ("boss__r" in contact.relationships, "score__c" in contact.by_lower) == (bool(there), bool(there))
    assert schemas[0] != schemas[1] == schemas[2]
    org.extend({"Contact": {"Never__c": None, "LastName": "string"}})
    assert contact.fields["LastName"].length == 80, "what is there stays as it is"
