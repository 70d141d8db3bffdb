"""Maps, transforms, filters and quality: what goes where, what is refused, and that no reason holds a value."""

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.rules.filters import FilterError, compile_filter
from agents.rules.mapping import BUILT_IN, CompiledMap, compile_map
from agents.rules.quality import gate
from agents.rules.transforms import TRANSFORMS, boolean, day, domain, integer, kind, mail, moment, number, text
from agents.rules.ways import key_of
from models.errors import PermanentError
from tests.support.flows import PEOPLE, maps

FULL = {
    "Id": "003Qx00000Ke4RtIAJ",
    "Email": " Zoe@Example.ORG ",
    "FirstName": "Zoë",
    "LastName": "M",
    "LeadSource": "Web",
    "Status": "Open",
    "Account.Id": "001A",
    "Account.Name": "Acme",
    "Owner.Email": "o@x",
    "Owner.Name": "O",
    "Owner.IsActive": False,
    "Owner.Id": "005A",
    "Unmapped__c": "dropped",
}


def people(source: str) -> CompiledMap:
    return maps(people=PEOPLE).route("people").ways[source].map


def test_the_plain_form_reads_by_dot_and_writes_nested() -> None:
    body = people("acme/Contact").apply(FULL)
    assert body == {
        "email": "zoe@example.org",
        "dataFields": {
            "Name": {"First": "Zoë", "Last": "M"},
            "Salesforce": {"Id": "003Qx00000Ke4RtIAJ"},
            "Lead": {"Source": "Web"},
            "Company": {"Salesforce": {"Id": "001A"}, "Name": "Acme"},
            "Owner": {"Email": "o@x", "Name": "O", "Salesforce": {"Active": False, "Id": "005A"}},
        },
    }


def test_a_lead_has_no_company_key_and_a_contact_no_status() -> None:
    lead = people("acme/Lead").apply(FULL)["dataFields"]
    assert "Company" not in lead
    assert lead["Lead"] == {"Status": "Open", "Source": "Web"}
    assert "Status" not in people("acme/Contact").apply(FULL)["dataFields"]["Lead"]


def test_a_null_is_written_at_its_path_so_that_the_target_is_cleared() -> None:
    body = people("acme/Contact").apply({**FULL, "Account.Id": None, "Account.Name": None, "FirstName": None})
    assert body["dataFields"]["Company"] == {"Salesforce": {"Id": None}, "Name": None}
    assert body["dataFields"]["Name"] == {"First": None, "Last": "M"}


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(st.dictionaries(st.sampled_from(sorted(FULL)), SCALARS))
def test_mapping_depends_on_the_record_only_and_leaves_it_alone(values: dict[str, Any]) -> None:
    compiled, before = people("acme/Contact"), dict(values)
    compiled.leaves = tuple(leaf for leaf in compiled.leaves if leaf[0] != "Email")
    assert compiled.apply(values) == compiled.apply(values)
    assert values == before


@pytest.mark.parametrize(
    ("name", "sobject", "fields"),
    [
        ("contact", "Contact", "Id Email FirstName LastName Title Phone AccountId"),
        ("person", "Contact", "Id Email FirstName LastName Title Phone AccountId"),
        ("account", "Account", "Id Name Website Industry NumberOfEmployees AnnualRevenue"),
        ("opportunity", "Opportunity", "Id Name StageName CloseDate AccountId Amount"),
    ],
)
def test_built_in_maps_read_the_default_fields_and_no_others(name: str, sobject: str, fields: str) -> None:
    assert set(compile_map(BUILT_IN[name], sobject).fields) == set(fields.split())


def test_the_built_in_account_is_normalised() -> None:
    values = {"Id": "1", "Name": " Acme ", "Website": "https://www.Acme.com:8080/a", "NumberOfEmployees": "1,200", "AnnualRevenue": "1e6"}
    body = compile_map(BUILT_IN["account"], "Account").apply(values)
    assert body == {"externalId": "1", "name": "Acme", "domain": "acme.com", "employeeCount": 1200, "annualRevenue": 1_000_000}


def test_a_value_that_does_not_fit_names_its_field_and_never_itself() -> None:
    with pytest.raises(PermanentError) as caught:
        compile_map(BUILT_IN["account"], "Account").apply({"NumberOfEmployees": "s3cret"})
    assert caught.value.field == "NumberOfEmployees"
    assert "s3cret" not in caught.value.reason


@pytest.mark.parametrize(
    ("transform", "value", "expected"),
    [
        (number, "1,000", 1000),
        (number, "$1,000.50", 1000.5),
        (number, "-5", -5),
        (number, "", None),
        (number, "123456789012345678", 123456789012345678),
        (number, 3.0, 3.0),
        (integer, "1200.0", 1200),
        (integer, 3.0, 3),
        (domain, "acme.com", "acme.com"),
        (domain, "http://www.bücher.example/x?y", "xn--bcher-kva.example"),
        (domain, "HTTPS://user:pw@Sub.Acme.co.uk:443", "sub.acme.co.uk"),
        (domain, "  ", None),
        (day, "2026-05-04", "2026-05-04"),
        (day, "2024-02-29", "2024-02-29"),
        (day, "2026-05-04T09:30:11.000+0000", "2026-05-04"),
        (moment, "2026-05-04T09:30:11.000+0200", "2026-05-04T07:30:11.000Z"),
        (moment, "2026-05-04T09:30:11", "2026-05-04T09:30:11.000Z"),
        (text, "\u00a0 a b\u200b", "a b"),
        (boolean, "True", True),
        (boolean, False, False),
        (mail, " A@B ", "a@b"),
    ],
)
def test_transforms(transform: Any, value: Any, expected: Any) -> None:
    assert transform(value) == expected
    assert type(transform(value)) is type(expected)


@pytest.mark.parametrize(
    ("transform", "value"),
    [
        (transform, value)
        for transform, values in cast(
            "list[tuple[Any, list[Any]]]",
            [
                (number, ["N/A", "NaN", "Infinity", "1e999999", True, [], "--1"]),
                (integer, ["1.5", 2.5, {}]),
                (day, ["2025-02-29", "soon", 5]),
                (domain, ["http://[", "a b", 5, "...", "." * 300 + "ü"]),
                (mail, [5]),
                (boolean, ["yes"]),
                (moment, [{}]),
            ],
        )
        for value in values
    ],
)
def test_what_a_transform_cannot_read_is_refused_by_class(transform: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(text|blank text|number|boolean|object|list) is not"):
        transform(value)


@given(st.text())
def test_mails_and_texts_are_normal_after_one_pass(value: str) -> None:
    for transform in (mail, text, TRANSFORMS["lowercase"]):
        assert transform is not None
        once = transform(value)
        assert once is None or transform(once) == once


@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.text()))
def test_no_transform_raises_anything_but_a_value_error(value: Any) -> None:
    for transform in TRANSFORMS.values():
        if transform is not None and value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            try:
                transform(value)
            except ValueError as error:
                assert str(error).split(" is ")[0] == kind(value) or isinstance(value, str | float)


RECORD = {
    "Email": "A@x.org",
    "Amount": 10,
    "Stage": "Closed Won",
    "Won": True,
    "Empty": "",
    "Null": None,
    "Day": "2026-05-04",
    "At": "2026-05-04T09:30:11.000Z",
}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("Email != null", True),
        ("Email = 'a@X.ORG'", True),
        ("Empty = null AND Null = null AND Missing = null", True),
        ("Null != 'x'", True),
        ("Null < 5 OR Null >= 5 OR Null LIKE '%'", False),
        ("Amount >= 10 AND Amount <= 10.0 AND NOT Amount > 10", True),
        ("Amount <> 11", True),
        ("Amount = 10 OR Email = null AND Amount = 11", True),
        ("(Amount = 10 OR Email = null) AND Amount = 11", False),
        ("Stage LIKE 'closed%'", True),
        ("Stage LIKE 'c_osed Won'", True),
        ("Stage LIKE 'closed'", False),
        ("Stage LIKE 'clos\\\\%'", False),
        ("Stage IN ('Open', 'closed won')", True),
        ("Stage NOT IN ('Open', null)", True),
        ("Null IN ('a', null)", True),
        ("Won = true and not Won = false", True),
        ("Won = 1", False),
        ("Day = 2026-05-04", True),
        ("Day > 2026-05-03 AND At > 2026-05-04T09:30:10Z AND At < 2026-05-04T11:30:12+02:00", True),
        ("Email < 'b'", True),
        ("Email > 5", False),
        ("notes = null AND android__c = null", True),
    ],
)
def test_filters_compare_as_soql_does(where: str, expected: bool) -> None:
    assert compile_filter(where).matches(RECORD) is expected


@pytest.mark.parametrize(
    ("where", "line", "column"),
    [
        ("", 1, 1),
        ("Email", 1, 6),
        ("Email =", 1, 8),
        ("Email == 'x'", 1, 8),
        ("Email = 'x", 1, 9),
        ("(a = 1", 1, 7),
        ("a = 1)", 1, 6),
        ("a = 1\nAND b LIKE 5", 2, 12),
        ("a IN ()", 1, 7),
        ("a > null", 1, 3),
        ("a = TODAY", 1, 5),
        ("a = 2026-13-40", 1, 5),
        ("a = 1; DROP TABLE x", 1, 6),
        ("(" * 5000 + "a = 1" + ")" * 5000, 1, 1),
        ("NOT " * 4000 + "a = 1", 1, 1),
        ("x" * 30_000, 1, 1),
    ],
)
def test_a_filter_that_cannot_be_used_says_where(where: str, line: int, column: int) -> None:
    with pytest.raises(FilterError) as caught:
        compile_filter(where)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_filter_names_the_paths_it_reads() -> None:
    assert compile_filter("Owner.Email != null AND (A = 1 OR Owner.Email = 'x')").fields == ("Owner.Email", "A")


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_a_filter_error(where: str) -> None:
    try:
        compile_filter(where).matches(RECORD)
    except FilterError as error:
        assert error.line >= 1


@given(
    st.dictionaries(st.sampled_from("abc"), SCALARS), st.sampled_from(["a = 1", "b != null AND a < 5", "a LIKE '%x%' OR c IN (1, null)"])
)
def test_a_filter_or_its_negation_holds_never_both(record: dict[str, Any], where: str) -> None:
    assert compile_filter(where).matches(record) is not compile_filter(f"NOT ({where})").matches(record)


def required(entity: str | None, body: dict[str, Any], id: str) -> None:
    gate(["required"], entity, {}).check(body, id)


@pytest.mark.parametrize("email", [None, "", " ", "a@x"])
@pytest.mark.parametrize("first", [None, "Zoë"])
@pytest.mark.parametrize("last", [None, "M"])
@pytest.mark.parametrize("id", [None, "1"])
def test_a_person_needs_an_id_and_a_mail_or_both_names(email: str | None, first: str | None, last: str | None, id: str | None) -> None:
    body = {"externalId": id, "email": email, "firstName": first, "lastName": last}
    good = id is not None and (email == "a@x" or (first is not None and last is not None))
    if good:
        required("person", body, "003")
        return
    with pytest.raises(PermanentError) as caught:
        required("person", body, "003")
    assert "003" in caught.value.reason
    assert ("externalId: required" in caught.value.reason) == (id is None)


@pytest.mark.parametrize(
    ("entity", "needed"), [("account", ("externalId", "name")), ("opportunity", ("externalId", "name", "accountExternalId"))]
)
def test_several_faults_give_several_reasons(entity: str, needed: tuple[str, ...]) -> None:
    for mask in range(2 ** len(needed)):
        missing = [name for bit, name in enumerate(needed) if not mask >> bit & 1]
        body = {name: "s3cret" for name in needed if name not in missing}
        if not missing:
            required(entity, body, "1")
            continue
        with pytest.raises(PermanentError) as caught:
            required(entity, body, "1")
        assert [name for name in needed if f"{name}: required, found null" in caught.value.reason] == missing
        assert "s3cret" not in caught.value.reason


def test_a_plain_map_has_no_required_fields() -> None:
    required(None, {}, "1")


@pytest.mark.parametrize(("key", "expected"), [("a", "1"), ("n.m", "x"), ("{a}-{n.m}", "1-x")])
def test_a_key_is_a_path_or_a_template(key: str, expected: str) -> None:
    assert key_of({"a": 1, "n": {"m": "x"}}, key) == expected


@pytest.mark.parametrize("value", [None, "", "  ", True, [], {"x": 1}])
def test_a_body_without_its_key_is_refused(value: Any) -> None:
    with pytest.raises(PermanentError, match="which names the record in the target"):
        key_of({"a": value}, "a")
