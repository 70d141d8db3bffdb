"""Map documents: what each line does to a record, and that every mistake is told with its line and a remedy."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.map_file import read_map
from agents.rules.explain import explain
from agents.rules.mapping import CompiledMap, Map, compile_map

DOCUMENT = Path(__file__).parent.parent / "data" / "maps" / "person-document.yaml"
RECORD = {
    "Id": "00QQx00000Ke4RtIAJ",
    "Email": " Zoe@Example.org",
    "Name": "Zoë van der Berg",
    "Phone": "030 / 123 456",
    "Status": "Working",
    "NumberOfEmployees": "1,200",
    "Owner.FederationIdentifier": None,
    "Owner.Username": "Ops@Acme.Example",
    "OwnerId": "005Qx00000Ke4Rt",
    "Description": " met at the fair ",
    "Unmapped__c": "dropped",
}
GOLDEN = {
    "externalId": "00QQx00000Ke4RtIAJ",
    "email": "zoe@example.org",
    "name": {"first": "Zoë", "last": "van der Berg"},
    "phone": "+4930123456",
    "stage": "active",
    "size": 1200,
    "owner": "ops@acme.example",
    "about": "met at the",
}


def loaded(path: Path) -> Map:
    found, problems = read_map(path)
    assert problems == []
    assert found is not None
    return found


def compiled() -> CompiledMap:
    return compile_map(loaded(DOCUMENT), "Lead")


def test_a_document_does_what_its_lines_say() -> None:
    assert compiled().apply(RECORD) == GOLDEN


def test_without_values_there_are_nulls_defaults_and_no_keys() -> None:
    assert compiled().apply(dict.fromkeys(RECORD)) == {
        "externalId": None,
        "email": None,
        "name": {"first": None, "last": None},
        "stage": "new",
        "size": None,
        "owner": None,
        "about": None,
    }
    assert compiled().apply({}) == {"stage": "new"}


def test_a_source_is_asked_only_while_those_before_give_nothing() -> None:
    values = {"Owner.FederationIdentifier": "FED-1", "Owner.Username": "a@b.org", "OwnerId": "005Qx00000Ke4Rt"}
    asked = compiled()
    assert asked.apply(values)["owner"] == "FED-1"
    assert asked.apply(values | {"Owner.FederationIdentifier": " "})["owner"] == "a@b.org"
    assert asked.apply({"OwnerId": "005Qx00000Ke4Rt"})["owner"] == "005Qx00000Ke4RtIAJ"
    assert {"Owner.FederationIdentifier", "Owner.Username", "OwnerId"} <= set(asked.fields)


def test_a_line_may_be_of_some_objects_only(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("Id: [id, {to: lead.id, only: Lead}, {to: other, only: [Task, Case]}]\nStage__c: {to: stage, only: Contact}")
    found, record = loaded(path), {"Id": "1", "Stage__c": "x"}
    assert compile_map(found, "Lead", ("Contact", "Lead")).apply(record) == {"id": "1", "lead": {"id": "1"}}
    assert compile_map(found, "Lead").fields == ("Id",)
    assert compile_map(found, "Contact").apply(record) == {"id": "1", "stage": "x"}
    assert compile_map(found, "Case").apply(record) == {"id": "1", "other": "1"}
    assert compile_map(found, "").apply(record) == {"id": "1"}
    assert set(found.columns(("Contact", "Lead"))) == {"id", "lead", "stage"}
    assert [line.why for line in explain(found, "Contact", record) if not line.written] == [
        "only of Lead: left out",
        "only of Task and Case: left out",
    ]


def test_required_paths_and_types_are_told() -> None:
    assert compiled().required == (("email",),)
    columns = loaded(DOCUMENT).columns(())
    assert (columns["size"], columns["phone"], columns["email"], columns["name"]) == ("number", "text", "text", "json")


def test_the_plain_form_may_map_fields_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("version: a\nfields: b\ntables: {to: c}\n")
    assert [leaf.source for leaf in loaded(path).leaves] == ["version", "fields", "tables"]


MISTAKES = [
    ("version: 1", 1, "at least one line"),
    ("version: 2\nfields: {a: b}", 1, "in which form"),
    ("version: true\nfields: {a: b}", 1, "in which form"),
    ("fields: {a: b}", 1, "in which form"),
    ("version: 1\nfield: {a: b}\nfields: {c: d}", 2, "unknown part field"),
    ("version: 1\nfields:\n  a: {to: b, transform: [trim, shout]}", 3, "unknown transform shout"),
    ("version: 1\nfields:\n  a: {to: b, transform: {phone: XX}}", 3, "no region"),
    ("version: 1\nfields:\n  a: {to: b, type: float}", 3, "unknown type float"),
    ("version: 1\nfields:\n  a: {to: b, type: [text]}", 3, "unknown type"),
    ("version: 1\nfields:\n  a: {to: b, nulls: drop}", 3, "unknown policy drop"),
    ("version: 1\nfields:\n  a: {to: b, required: maybe}", 3, "true or false"),
    ("version: 1\nfields:\n  a: {to: b, type: number, default: lots}", 3, "does not fit its type number"),
    ("version: 1\nfields:\n  a: {to: b, default: 99999999999999999999}", 3, "larger than 64 bits"),
    ("version: 1\nfields:\n  a: {to: b, or: [c d]}", 3, "must be a path"),
    ("version: 1\nfields:\n  a: [b, {to: b}]", 3, "is written by a too"),
    ("version: 1\nfields:\n  a: b\n  c: {to: b}", 4, "is written by a too"),
    ("version: 1\nfields:\n  a: b\n  c: b.d", 4, "cannot hold fields"),
    ("version: 1\ntables: [a]\nfields: {a: b}", 2, "must have names"),
    ("version: 1\ntables:\n  t: {}\nfields: {a: b}", 3, "pairs of values"),
    ("version: 1\ntables:\n  t: {a: {b: c}}\nfields: {a: b}", 3, "pairs of values"),
    ("version: 1\ntables:\n  t: {a: x, b: x}\nfields:\n  a: {to: b, transform: {unpick: t}}", 5, "backwards"),
    ("version: 1\nfields:\n  a: []", 3, "goes nowhere"),
    ("version: 1\nfields:\n  a: {to: b, only: []}", 3, "only of which objects"),
    ("version: 1\nfields:\n  a: {to: b, only: [Lead, {}]}", 3, "only of which objects"),
]


@pytest.mark.parametrize(("written", "line", "message"), MISTAKES)
def test_a_mistake_in_a_document_has_line_and_remedy(tmp_path: Path, written: str, line: int, message: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(written)
    _, problems = read_map(path)
    assert any(message in problem.message and problem.line == line and problem.remedy for problem in problems), problems


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["a", "b.c", "trim", "phone", "x y", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["to", "or", "transform", "type", "nulls", "default", "required", "a", "pick", "phone"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(PARTS, PARTS)
def test_no_structure_breaks_the_reading(tmp_path_factory: pytest.TempPathFactory, fields: Any, tables: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(orjson.dumps({"version": 1, "fields": fields, "tables": tables}))
    found, problems = read_map(path)
    assert found is not None or problems


@given(st.lists(st.dictionaries(st.sampled_from(sorted(RECORD)), st.none() | st.just("Open"), max_size=5), max_size=5))
def test_one_record_in_is_one_body_out_in_order(records: list[dict[str, Any]]) -> None:
    plain = compile_map(Map("m", tuple(leaf for leaf in loaded(DOCUMENT).leaves if not leaf.steps)), "Lead")
    bodies = [plain.apply(record) for record in records]
    assert bodies == [{"externalId": record["Id"]} if "Id" in record else {} for record in records]


def test_where_nulls_keep_there_is_no_key_and_the_writer_is_told(tmp_path: Path) -> None:
    text = "version: 1\nfields:\n  Phone: {to: deep.phone, nulls: keep}\n  Fax: {to: fax, nulls: keep, default: none}\n  Title: title\n"
    found, problems = read_map(tmp_path / "m.yaml", text=text)
    assert found is not None and not problems
    compiled = compile_map(found, "Contact")
    assert compiled.keeps == ("deep.phone", "fax")
    assert compiled.apply({"Phone": None, "Fax": None, "Title": None}) == {"fax": "none", "title": None}
    assert compiled.apply({"Phone": "1", "Fax": "2"}) == {"deep": {"phone": "1"}, "fax": "2"}
