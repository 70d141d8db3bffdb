"""The CSV of a Bulk result becomes what REST would have said, and conditions and orders of sObjects stand as they must."""

import csv
import io
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import PermanentError, SettingsError, TemporaryError
from streams.salesforce.columns import encoder, kinds_of
from streams.salesforce.conditions import LONGEST, all_of, check_condition
from streams.salesforce.parents import parents_first, parents_of

KINDS = {
    "Id": "id",
    "Name": "string",
    "IsDeleted": "boolean",
    "Amount": "currency",
    "Count__c": "double",
    "Size": "int",
    "SystemModstamp": "datetime",
    "CloseDate": "date",
    "Account.Name": "string",
    "Account.Owner.IsActive": "boolean",
    "Account.Owner.Email": "email",
}
LINE = ["001", 'Né "x"\r\ny', "false", "12.50", "7", "3", "2026-01-02T03:04:05.000Z", "2026-01-02", "Acme", "true", ""]


def row(line: list[str], kinds: dict[str, str] = KINDS, header: list[str] | None = None) -> Any:
    key, value = encoder("Opportunity", header or list(kinds), kinds)(line)
    found = orjson.loads(value)
    assert key.decode() == found["Id"]
    return found


def test_types_nulls_and_relationships_are_those_of_rest() -> None:
    assert row(LINE) == {
        "attributes": {"type": "Opportunity"},
        "Id": "001",
        "Name": 'Né "x"\r\ny',
        "IsDeleted": False,
        "Amount": 12.5,
        "Count__c": 7.0,
        "Size": 3,
        "SystemModstamp": "2026-01-02T03:04:05.000+0000",
        "CloseDate": "2026-01-02",
        "Account": {"Name": "Acme", "Owner": {"IsActive": True, "Email": None}},
    }


def test_an_empty_cell_is_null_and_a_parent_of_which_nothing_is_there_too() -> None:
    found = row(["001", *[""] * 10])
    assert {name: value for name, value in found.items() if value is not None} == {"Id": "001", "attributes": {"type": "Opportunity"}}
    assert found["Account"] is None


@pytest.mark.parametrize(
    ("text", "json"),
    [
        ("12345678901234567890.123456789", b"12345678901234567890.123456789"),
        ("1.5E7", b"1.5E7"),
        ("5", b"5.0"),
        ("-0.10", b"-0.10"),
        ("n/a", b'"n/a"'),
        (".5", b'".5"'),
        ("1,5", b'"1,5"'),
        ("NaN", b'"NaN"'),
        ('1,"x":1', b'"1,\\"x\\":1"'),
    ],
)
def test_a_number_goes_over_digit_for_digit_and_what_is_none_as_text(text: str, json: bytes) -> None:
    _, value = encoder("X", ["Id", "Amount"], {"Id": "id", "Amount": "currency"})(["1", text])
    assert b'"Amount":' + json + b"," in value


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=3, max_size=3))
def test_any_text_comes_through_csv_and_json_as_it_was(texts: list[str]) -> None:
    kinds = {"Id": "id", "A": "string", "B": "textarea", "C.D": "string"}
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerow(["1", *texts])
    [line] = csv.reader(io.StringIO(out.getvalue(), newline=""))
    found = row(line, kinds)
    assert [found["A"], found["B"], (found["C"] or {"D": None})["D"]] == [text or None for text in texts]


def test_columns_are_found_by_name_in_any_order_and_case() -> None:
    assert row(["x", "1"], {"Id": "id", "Name": "string"}, ["NAME", "ID"])["Name"] == "x"


def test_a_result_without_a_column_and_a_line_of_another_width_are_refused() -> None:
    with pytest.raises(PermanentError, match="no column Name"):
        encoder("X", ["Id", "<html>"], {"Id": "id", "Name": "string"})
    with pytest.raises(TemporaryError, match="1 columns, not 2"):
        encoder("X", ["Id", "Name"], {"Id": "id", "Name": "string"})(["1"])


async def test_types_are_looked_up_along_relationships_and_through_whichever_parent_has_the_field() -> None:
    asked: list[str] = []
    described = {
        "Case": [
            {"name": "OwnerId", "type": "reference", "relationshipName": "Owner", "referenceTo": ["Group", "User"]},
            {"name": "IsClosed", "type": "boolean"},
        ],
        "User": [{"name": "IsActive", "type": "boolean"}],
    }

    async def describe(name: str) -> Any:
        asked.append(name)
        if name == "Group":
            raise PermanentError("hidden")
        return {"fields": described[name]}

    kinds = await kinds_of("Case", ["IsClosed", "Owner.IsActive", "owner.Nope", "Nope"], describe)
    assert kinds == {"IsClosed": "boolean", "Owner.IsActive": "boolean", "owner.Nope": "string", "Nope": "string"}
    assert sorted(asked) == ["Case", "Group", "User"]


@pytest.mark.parametrize(
    "text",
    ["Email != null", "(A = 1 OR B = 2) AND C = 'it\\'s (fine'", "CreatedDate >= 2026-01-01T00:00:00Z", "A = ')'", "A = '\\\\'"],
)
def test_a_whole_condition_stands(text: str) -> None:
    assert check_condition(f"  {text} ") == text
    assert all_of([text, "", "B = 1"]) == f"({text}) AND (B = 1)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "A = 1)",
        "(A = 1",
        "A = 1) OR (B = 2",
        "A = 'x",
        "A = 'x\\'",
        "A = 1)--(",
        "A = 1\nLIMIT 1",
        "x" * (LONGEST + 1),
        "é" * 800,
        "\x00",
    ],
)
def test_a_condition_that_could_end_the_where_it_stands_in_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--where"):
        check_condition(text)


@pytest.mark.parametrize(
    ("sobjects", "parents", "order"),
    [
        (["Contact", "Account"], {"Contact": {"Account"}}, ["Account", "Contact"]),
        (["Task", "Opportunity", "Contact", "Account"],
         {"Task": {"Contact", "Lead", "Opportunity"}, "Opportunity": {"Account", "Contact"}, "Contact": {"Account", "Contact"},
          "Account": {"Account"}},
         ["Account", "Contact", "Opportunity", "Task"]),
        (["Contact", "Account"], {"Contact": {"Account"}, "Account": {"Contact"}}, ["Contact", "Account"]),
        (["C", "B", "A"], {"C": {"A", "B"}, "B": {"A"}, "A": {"B"}}, ["B", "A", "C"]),
        (["B", "A"], {}, ["B", "A"]),
        ([], {}, []),
    ],
)  # fmt: skip
def test_parents_come_before_children_and_a_circle_is_broken_where_least_is_missing(
    sobjects: list[str], parents: dict[str, set[str]], order: list[str]
) -> None:
    assert parents_first(sobjects, parents) == order


@given(st.dictionaries(st.sampled_from("ABCDEFG"), st.sets(st.sampled_from("ABCDEFG"))), st.permutations("ABCDEFG"))
def test_every_sobject_is_read_once_and_no_child_before_a_parent_that_does_not_need_it(
    parents: dict[str, set[str]], names: list[str]
) -> None:
    order = parents_first(names, parents)
    assert sorted(order) == sorted(names)

    def above(name: str) -> set[str]:
        found: set[str] = set()
        left = [name]
        while left:
            for parent in parents.get(left.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    left.append(parent)
        return found

    if not any(name in above(name) for name in names):
        assert all(order.index(parent) < order.index(name) for name in names for parent in parents.get(name, ()))


def test_parents_are_what_fields_refer_to() -> None:
    assert parents_of({"fields": [{"referenceTo": ["Account"]}, {"referenceTo": []}, {}, {"referenceTo": None}]}) == {"Account"}
    assert parents_of({}) == set()
