"""The sandbox's SOQL: what it finds is what a plain filter finds, and no text does more than be refused."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.sandbox.salesforce import query, scenario, soql
from deploy.sandbox.salesforce.errors import SalesforceError
from deploy.sandbox.salesforce.org import Org
from deploy.sandbox.salesforce.schema import Schema

API = "/services/data/v67.0"


def build(seed: int) -> Org:
    """300 records; some contacts deleted, all with an external id, most with a score."""
    made = Org(Schema({"Contact": {"Ext__c": {"type": "string", "externalId": True}, "Score__c": "double"}}), seed=seed)
    scenario.seed(made, 300, seed)
    contact = made.schema.objects["Contact"]
    for number, row in enumerate(list(made.store.tables["Contact"].rows.values())):
        made.store.put(contact, row | {"Ext__c": f"X{number}", "Score__c": number % 7 or None, "IsDeleted": number % 11 == 0})
    return made


@pytest.fixture
def org() -> Org:
    return build(3)


shared = cache(build)  # for properties, which may not change it


def found(org: Org, text: str, *, deleted: bool = False) -> list[dict[str, Any]]:
    result = query.run(org.store, text, API, deleted=deleted)
    return [result.project(row) for row in result.rows]


def ids(org: Org, text: str, *, deleted: bool = False) -> list[str]:
    return [r["Id"] for r in found(org, text, deleted=deleted)]


_WORDS = ["SELECT", "Id", ",", "FROM", "Contact", "WHERE", "(", ")", "NOT", "AND", "OR", "IN", "=", "!=", "'a'", "'", "\\", "null"]
_WORDS += ["LIMIT", "5", "COUNT()", "ORDER", "BY", "LIKE", "2026-05-04", "NULLS", "LAST"]


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(_WORDS)).map(" ".join)))
def test_any_text_is_a_query_or_is_refused_as_malformed(text: str) -> None:
    try:
        assert isinstance(soql.parse(text), soql.Query)
    except SalesforceError as error:
        assert (error.status, error.code) == (400, "MALFORMED_QUERY")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT",
        "SELECT FROM Contact",
        "SELECT Id Contact",
        "SELECT Id FROM Contact WHERE",
        "SELECT Id FROM Contact WHERE Id IN ()",
        "SELECT Id FROM Contact WHERE Name = 'open",
        "SELECT Id FROM Contact WHERE Name = 'bad \\q escape'",
        "SELECT Id FROM Contact WHERE Name = 'a' AND Name = 'b' OR Name = 'c'",
        "SELECT Id FROM Contact WHERE CreatedDate > 2026-13-40T00:00:00Z",
        "SELECT Id FROM Contact WHERE CreatedDate > 2026-05-04T09:30:11",
        "SELECT Id FROM Contact LIMIT -1",
        "SELECT Id FROM Contact LIMIT 1e3",
        "SELECT Id FROM Contact OFFSET 2001",
        "SELECT A.B.C.D.E.F.G FROM Contact",
        "SELECT Id, COUNT() FROM Contact",
        "SELECT Id FROM Contact; DROP TABLE Contact",
        "SELECT Id FROM Contact WHERE " + "NOT " * 60 + "Name = 'a'",
        "SELECT Id FROM Contact WHERE " + "(NOT " * 20_000 + "Name = 'a'" + ")" * 20_000,
        "SELECT " + "Id, " * 30_000 + "Id FROM Contact",
        "SELECT Id FROM Contact WHERE Name = '" + "x" * 4001 + "'",
        "\x00",
        "SELECT Id FROM Contact WHERE Name LIKE 5",
    ],
)
def test_what_is_no_query_is_refused_with_a_text_and_never_with_a_crash(org: Org, text: str) -> None:
    with pytest.raises(SalesforceError) as refused:
        query.run(org.store, text, API)
    assert (refused.value.status, refused.value.code) == (400, "MALFORMED_QUERY")
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SELECT Nope FROM Contact", "INVALID_FIELD"),
        ("SELECT Nope.Name FROM Contact", "INVALID_FIELD"),
        ("SELECT Id FROM Nope", "INVALID_TYPE"),
        ("SELECT Id FROM Contact WHERE Score__c = 'text'", "INVALID_FIELD"),
        ("SELECT Id FROM Contact WHERE CreatedDate = '2026-01-01T00:00:00Z'", "INVALID_FIELD"),
        ("SELECT Id FROM Contact WHERE DoNotCall > true", "INVALID_QUERY_FILTER_OPERATOR"),
        ("SELECT Id FROM Contact WHERE Id = 'nonsense'", "INVALID_QUERY_FILTER_OPERATOR"),
        ("SELECT Id FROM Contact WHERE Name < null", "INVALID_QUERY_FILTER_OPERATOR"),
    ],
)
def test_a_wrong_name_or_value_has_the_error_code_of_salesforce(org: Org, text: str, code: str) -> None:
    with pytest.raises(SalesforceError) as refused:
        query.run(org.store, text, API)
    assert refused.value.code == code


_TEXTS = ("Ops", "ops", "Web", "Buyer", "O'Farrow", "Dr.", "zzz", "back\\slash", "50%", "a_b")


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Any]:
    """A condition as SOQL and as a plain function over a row, written independently of each other."""
    if depth and draw(st.booleans()):
        word = draw(st.sampled_from(["AND", "OR", "NOT"]))
        parts = draw(st.lists(conditions(depth=depth - 1), min_size=1 if word == "NOT" else 2, max_size=1 if word == "NOT" else 3))
        if word == "NOT":
            text, test = parts[0]
            return f"(NOT ({text}))", lambda row: not test(row)
        every = all if word == "AND" else any
        return "(" + f" {word} ".join(t for t, _ in parts) + ")", lambda row: every(f(row) for _, f in parts)
    name = draw(st.sampled_from(["Title", "LeadSource", "Department", "LastName", "Salutation"]))
    value = draw(st.sampled_from(_TEXTS))
    operator = draw(st.sampled_from(["=", "!=", "<", ">=", "IN", "NOT IN", "null", "number", "boolean", "parent"]))
    low = lambda row: (row.get(name) or "").casefold()  # noqa: E731
    has = lambda row: row.get(name) is not None  # noqa: E731
    want = value.casefold()
    match operator:
        case "=":
            return f"{name} = {quoted(value)}", lambda row: has(row) and low(row) == want
        case "!=":
            return f"{name} <> {quoted(value)}", lambda row: not has(row) or low(row) != want
        case "<":
            return f"{name} < {quoted(value)}", lambda row: has(row) and low(row) < want
        case ">=":
            return f"{name} >= {quoted(value)}", lambda row: has(row) and low(row) >= want
        case "IN":
            return f"{name} IN ({quoted(value)}, 'Engineer')", lambda row: has(row) and low(row) in (want, "engineer")
        case "NOT IN":
            return f"{name} not in ({quoted(value)})", lambda row: not (has(row) and low(row) == want)
        case "null":
            return f"{name} = NULL", lambda row: not has(row)
        case "number":
            edge = draw(st.integers(0, 7))
            return f"Score__c <= {edge}", lambda row: row.get("Score__c") is not None and row["Score__c"] <= edge
        case "boolean":
            return "HasOptedOutOfEmail = false", lambda row: row["HasOptedOutOfEmail"] is False
    return "AccountId != null", lambda row: row.get("AccountId") is not None


@settings(max_examples=150)
@given(conditions(), st.booleans())
def test_a_condition_finds_what_a_plain_filter_finds(condition: tuple[str, Any], deleted: bool) -> None:
    org = shared(4)
    text, test = condition
    expected = sorted(i for i, row in org.store.tables["Contact"].rows.items() if (deleted or not row["IsDeleted"]) and test(row))
    assert ids(org, f"SELECT Id FROM Contact WHERE {text}", deleted=deleted) == expected
    assert query.run(org.store, f"SELECT COUNT() FROM Contact WHERE {text}", API, deleted=deleted).total == len(expected)


def test_pages_by_id_give_every_record_once_and_in_order(org: Org) -> None:
    every, last = [], "000000000000000"
    while page := ids(org, f"SELECT Id FROM Contact WHERE Id > '{last}' ORDER BY Id LIMIT 17"):
        every += page
        last = page[-1]
    assert every == sorted(i for i, r in org.store.tables["Contact"].rows.items() if not r["IsDeleted"])


def test_query_all_by_id_gives_deleted_rows_too_and_takes_15_characters(org: Org) -> None:
    wanted = list(org.store.tables["Contact"].rows)[:30]
    text = "SELECT Id, IsDeleted FROM Contact WHERE Id IN (" + ",".join(f"'{i[:15]}'" for i in wanted) + ", '003000000000000')"
    assert ids(org, text, deleted=True) == sorted(wanted)
    assert ids(org, text) == sorted(i for i in wanted if not org.store.tables["Contact"].rows[i]["IsDeleted"])


def test_an_external_id_finds_deleted_records_only_in_query_all(org: Org) -> None:
    row = next(r for r in org.store.tables["Contact"].rows.values() if r["IsDeleted"])
    text = f"SELECT Id FROM Contact WHERE Ext__c = '{row['Ext__c'].lower()}'"
    assert (ids(org, text), ids(org, text, deleted=True)) == ([], [row["Id"]])


def test_parents_are_nested_with_their_attributes_and_null_where_there_is_none(org: Org) -> None:
    records = found(org, "SELECT Id, Owner.Name, Account.Name, Account.Owner.Email FROM Contact")
    for record in records:
        row = org.store.tables["Contact"].rows[record["Id"]]
        assert record["Owner"]["attributes"]["type"] == "User"
        if row["AccountId"] is None:
            assert record["Account"] is None
        else:
            account = org.store.tables["Account"].rows[row["AccountId"]]
            owner = org.store.tables["User"].rows[account["OwnerId"]]
            assert record["Account"]["Name"] == account["Name"]
            assert record["Account"]["attributes"] == {"type": "Account", "url": f"{API}/sobjects/Account/{account['Id']}"}
            assert record["Account"]["Owner"]["Email"] == owner["Email"]
    assert {r["Account"] is None for r in records} == {True, False}


def test_order_puts_nulls_first_unless_told_otherwise_and_ignores_case(org: Org) -> None:
    names = [r["Title"] for r in found(org, "SELECT Title FROM Contact ORDER BY Title")]
    assert names == sorted(names, key=lambda n: (n is not None, (n or "").casefold()))
    last = [r["Title"] for r in found(org, "SELECT Title FROM Contact ORDER BY Title DESC NULLS LAST, Id")]
    filled = [n for n in last if n is not None]
    assert last[len(filled) :] == [None] * (len(last) - len(filled))
    assert filled == sorted(filled, key=str.casefold, reverse=True)


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("O'F%", True),
        ("%farrow", True),
        ("o_farr%w", True),
        ("O\\_farrow", False),
        ("%", True),
        ("", False),
        ("%" * 30 + "w", True),
        ("%z", False),
    ],
)
def test_like_knows_any_text_one_character_and_escapes(org: Org, pattern: str, hits: bool) -> None:
    contact = org.schema.objects["Contact"]
    row = next(r for r in org.store.live(contact))
    org.store.put(contact, row | {"LastName": "O'Farrow"})
    literal = pattern.replace("'", "\\'")
    text = f"SELECT Id FROM Contact WHERE Id = '{row['Id']}' AND LastName LIKE '{literal}'"
    assert bool(ids(org, text)) is hits


def test_a_hostile_like_pattern_ends_soon(org: Org) -> None:
    contact = org.schema.objects["Contact"]
    row = next(r for r in org.store.live(contact))
    org.store.put(contact, row | {"Description": "a" * 2000})
    assert ids(org, f"SELECT Id FROM Contact WHERE Description LIKE '{'%a' * 1000}b'") == []


def test_aggregates_count_and_name_the_extremes(org: Org) -> None:
    live = [r for r in org.store.tables["Contact"].rows.values() if not r["IsDeleted"]]
    (record,) = found(org, "SELECT COUNT(Id) n, MAX(SystemModstamp) FROM Contact")
    newest = max(r["SystemModstamp"] for r in live)
    assert record == {"attributes": {"type": "AggregateResult"}, "n": len(live), "expr0": newest[:-1] + "+0000"}
    assert query.run(org.store, "SELECT count() FROM Contact", API).total == len(live)


def test_dates_are_compared_as_moments_whatever_their_zone(org: Org) -> None:
    row = next(r for r in org.store.live(org.schema.objects["Contact"]))
    utc = row["CreatedDate"][:19]
    assert row["Id"] in ids(org, f"SELECT Id FROM Contact WHERE CreatedDate = {utc}Z")
    assert row["Id"] in ids(org, f"SELECT Id FROM Contact WHERE CreatedDate = {utc}+00:00")
    assert row["Id"] not in ids(org, f"SELECT Id FROM Contact WHERE CreatedDate = {utc}+01:00")


def test_a_range_of_ids_is_counted_with_its_newest_stamp_and_an_empty_one_has_none(org: Org) -> None:
    rows = org.store.tables["Contact"].rows
    order = sorted(rows)
    low, high = order[20], order[90]
    inside = [rows[i]["SystemModstamp"] for i in order[20:90] if not rows[i]["IsDeleted"]]
    text = "SELECT COUNT(Id), MAX(SystemModstamp) FROM Contact WHERE Id >= '{}' AND Id < '{}'"
    (record,) = found(org, text.format(low, high))
    assert record == {"attributes": {"type": "AggregateResult"}, "expr0": len(inside), "expr1": max(inside)[:-1] + "+0000"}
    (none,) = found(org, text.format(high, low))
    assert (none["expr0"], none["expr1"]) == (0, None)


@pytest.mark.parametrize(
    "order", ["SystemModstamp", "SystemModstamp, Id", "SystemModstamp DESC", "SystemModstamp DESC, Id DESC", "Id DESC"]
)
@pytest.mark.parametrize("deleted", [False, True])
def test_an_order_by_an_index_is_the_order_of_a_sort(org: Org, order: str, deleted: bool) -> None:
    rows = [r for r in org.store.tables["Contact"].rows.values() if deleted or not r["IsDeleted"]]
    edge = sorted(r["SystemModstamp"] for r in rows)[40]
    wanted = sorted((r for r in rows if r["SystemModstamp"] >= edge), key=lambda r: str(r["Id"]), reverse=order.endswith("Id DESC"))
    if order != "Id DESC":
        wanted.sort(key=lambda r: str(r["SystemModstamp"]), reverse="DESC" in order)
    text = f"SELECT Id FROM Contact WHERE SystemModstamp >= {edge} ORDER BY {order}"
    assert ids(org, text, deleted=deleted) == [r["Id"] for r in wanted]
    assert ids(org, text + " LIMIT 7 OFFSET 2", deleted=deleted) == [r["Id"] for r in wanted][2:9]


@pytest.mark.parametrize("operator", [">", ">=", "<", "<=", "="])
def test_a_range_of_stamps_has_the_rows_of_a_plain_filter_also_where_many_share_a_stamp(org: Org, operator: str) -> None:
    contact = org.schema.objects["Contact"]
    for number, row in enumerate(list(org.store.tables["Contact"].rows.values())):
        org.store.put(contact, row | {"SystemModstamp": f"2026-01-0{1 + number % 3}T00:00:00.000Z"})
    edge = "2026-01-02T00:00:00.000Z"
    tests = {
        ">": lambda v: v > edge,
        ">=": lambda v: v >= edge,
        "<": lambda v: v < edge,
        "<=": lambda v: v <= edge,
        "=": lambda v: v == edge,
    }
    rows = org.store.tables["Contact"].rows
    wanted = sorted(i for i, r in rows.items() if tests[operator](r["SystemModstamp"]))
    assert ids(org, f"SELECT Id FROM Contact WHERE SystemModstamp {operator} {edge}", deleted=True) == wanted
    low = wanted[len(wanted) // 2]
    text = f"SELECT Id FROM Contact WHERE Id > '{low}' AND SystemModstamp {operator} {edge} ORDER BY Id LIMIT 5"
    assert ids(org, text, deleted=True) == [i for i in wanted if i > low][:5]


def test_the_index_of_stamps_follows_every_change(org: Org) -> None:
    contact = org.schema.objects["Contact"]
    org.store.stamps(contact)
    for number, row in enumerate(list(org.store.tables["Contact"].rows.values())[:50]):
        org.store.put(contact, row | {"SystemModstamp": f"2027-01-{1 + number % 28:02d}T00:00:00.000Z", "IsDeleted": number % 2 == 0})
    rows = org.store.tables["Contact"].rows.values()
    assert org.store.stamps(contact) == sorted((r["SystemModstamp"], r["Id"]) for r in rows)
    assert query.run(org.store, "SELECT COUNT() FROM Contact", API).total == sum(not r["IsDeleted"] for r in rows)


def test_groups_have_a_record_each_with_their_key_and_their_figures(org: Org) -> None:
    rows = [r for r in org.store.tables["Contact"].rows.values() if not r["IsDeleted"]]
    records = found(
        org, "SELECT OwnerId, COUNT(Id) n, MAX(Score__c), SUM(Score__c) FROM Contact GROUP BY OwnerId ORDER BY COUNT(Id) DESC, OwnerId"
    )
    for record in records:
        scores = [r["Score__c"] for r in rows if r["OwnerId"] == record["OwnerId"] and r["Score__c"] is not None]
        assert record["n"] == sum(r["OwnerId"] == record["OwnerId"] for r in rows)
        assert (record["expr0"], record["expr1"]) == (max(scores), sum(scores))
    assert [r["OwnerId"] for r in records] == [r["OwnerId"] for r in sorted(records, key=lambda r: (-r["n"], r["OwnerId"]))]
    assert sum(r["n"] for r in records) == len(rows)
    by_source = found(org, "SELECT LeadSource, COUNT_DISTINCT(OwnerId) FROM Contact GROUP BY LeadSource ORDER BY LeadSource")
    assert by_source[0]["LeadSource"] is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT Name, COUNT(Id) FROM Contact",
        "SELECT Name FROM Contact GROUP BY OwnerId",
        "SELECT COUNT(Id) FROM Contact GROUP BY OwnerId ORDER BY Name",
        "SELECT COUNT() FROM Contact GROUP BY OwnerId",
        "SELECT SUM(Name) FROM Contact",
        "SELECT FIELDS(ALL) FROM Contact",
        "SELECT FIELDS(ALL) FROM Contact LIMIT 201",
        "SELECT FIELDS(SOME) FROM Contact LIMIT 1",
        "SELECT Id FROM Contact ORDER BY COUNT(Id)",
    ],
)
def test_what_cannot_be_grouped_is_malformed(org: Org, text: str) -> None:
    with pytest.raises(SalesforceError) as error:
        query.run(org.store, text, API)
    assert error.value.code == "MALFORMED_QUERY"


def test_all_fields_can_be_asked_for_by_one_word(org: Org) -> None:
    (record,) = found(org, "SELECT FIELDS(ALL) FROM Contact LIMIT 1")
    assert record.keys() == org.schema.objects["Contact"].fields.keys() | {"attributes"}


def test_a_column_that_is_not_there_is_shown_in_the_query(org: Org) -> None:
    with pytest.raises(SalesforceError) as error:
        query.run(org.store, "SELECT Id, Nope__c FROM Contact", API)
    assert error.value.message.startswith(
        "\nSELECT Id, Nope__c FROM Contact\n           ^\nERROR at Row:1:Column:12\nNo such column 'Nope__c' on entity 'Contact'."
    )
