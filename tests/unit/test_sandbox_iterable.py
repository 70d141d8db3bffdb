"""The sandbox Iterable's project: buckets, field types and identity, held against the recorded exchanges."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.sandbox.iterable.fieldtypes import incoming
from deploy.sandbox.iterable.project import BUCKETS, Project

RECORDED = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "sandbox" / "iterable.jsonl").read_text().splitlines()]


def bulk(project: Project, *users: dict[str, Any], **options: Any) -> dict[str, Any]:
    status, body = project.bulk_update({"users": list(users), **options})
    assert status == 200, body
    found: dict[str, Any] = body
    return found


def fields(project: Project, email: str = "a@example.org") -> dict[str, Any]:
    return project.profiles[email].fields


def failed(body: dict[str, Any]) -> dict[str, list[str]]:
    return {name: who for name, who in body["failedUpdates"].items() if who}


def test_the_full_answer_has_the_keys_of_the_recorded_one() -> None:
    sample = next(r["message"]["response"]["body"] for r in RECORDED if "rudder" in r["source"] and "bulkUpdate" in r["kind"])
    body = bulk(Project(), {"email": "a@example.org"}, {"email": "shrouti"})
    assert body.keys() == sample.keys()
    assert body["failedUpdates"].keys() == sample["failedUpdates"].keys() == set(BUCKETS)
    assert (body["successCount"], body["failCount"], body["invalidEmails"], failed(body)) == (
        1,
        1,
        ["shrouti"],
        {"invalidEmails": ["shrouti"]},
    )


@pytest.mark.parametrize(
    "name",
    ["update/without_email", "update_email/when_not_found", "delete/when_not_found", "for_email/when_not_found", "forget/with_invalid"],
)
def test_recorded_refusals_come_back_with_their_code(name: str) -> None:
    message = next(r["message"] for r in RECORDED if name in r["source"])
    project, body = Project(), message["request"].get("body")
    calls = {
        "update/": lambda: project.update(body),
        "update_email/": lambda: project.update_email(body),
        "delete/": lambda: project.delete("foo@"),
        "for_email/": lambda: project.get("foo@"),
        "forget/": lambda: project.forget(body["email"]),
    }
    status, answer = next(call for key, call in calls.items() if name.startswith(key))()
    assert (status, answer["code"]) == (message["response"]["status"], message["response"]["body"]["code"])
    if "updateEmail" not in message["request"]["uri"]:
        assert answer == message["response"]["body"]


@pytest.mark.parametrize(
    ("user", "bucket", "who"),
    [
        ({"email": "bad@"}, "invalidEmails", "bad@"),
        ({"email": ""}, "invalidEmails", ""),
        ({"email": "a@example.org", "dataFields": {"email": "bad"}}, "invalidEmails", "bad"),
        ({"userId": "x" * 53}, "invalidUserIds", "x" * 53),
        ({"userId": "trailing "}, "invalidUserIds", "trailing "),
        ({"userId": "new"}, "invalidUserIds", "new"),
        ({}, "invalidUserIds", ""),
        ({"email": "a@example.org", "userId": "ünicode"}, "invalidUserIds", "ünicode"),
        ({"email": "a@example.org", "dataFields": {"": 1}}, "invalidDataEmails", "a@example.org"),
        ({"email": "a@example.org", "dataFields": {"x": "y" * 40_000}}, "invalidDataEmails", "a@example.org"),
        ({"userId": "new", "preferUserId": True, "dataFields": {"": 1}}, "invalidDataUserIds", "new"),
        ({"email": "a@example.org", "dataFields": {"email": "held@example.org"}}, "conflictEmails", "held@example.org"),
        ({"email": " Gone@example.ORG"}, "forgottenEmails", " Gone@example.ORG"),
    ],
)
def test_each_bad_user_lands_in_its_bucket_and_the_good_ones_are_written(user: dict[str, Any], bucket: str, who: str) -> None:
    project = Project()
    bulk(project, {"email": "held@example.org"})
    project.forget("gone@example.org")
    body = bulk(project, user, {"email": "good@example.org", "dataFields": {"n": 1}})
    assert (failed(body), body["successCount"], body["failCount"]) == ({bucket: [who]}, 1, 1)
    assert fields(project, "good@example.org") == {"n": 1}


def test_an_unchanged_user_is_a_success_and_named_as_no_operation() -> None:
    project = Project()
    bulk(project, {"email": "a@example.org", "dataFields": {"n": 1}})
    body = bulk(project, {"email": "A@example.org", "dataFields": {"n": 1}})
    assert (body["successCount"], body["noOpEmails"]) == (1, ["A@example.org"])


def test_new_fields_are_named_or_filtered_out() -> None:
    project = Project()
    assert bulk(project, {"email": "a@example.org", "dataFields": {"n": 1, "o": {"x": "y"}}})["createdFields"] == ["n", "o", "o.x"]
    body = bulk(project, {"email": "a@example.org", "dataFields": {"n": 2, "other": 1}}, createNewFields=False)
    assert (body["filteredOutFields"], body["createdFields"], fields(project)) == (["other"], [], {"n": 2, "o": {"x": "y"}})


def test_objects_are_replaced_unless_they_are_to_be_merged_one_level_deep() -> None:
    project = Project()
    bulk(project, {"email": "a@example.org", "dataFields": {"o": {"a": 1, "b": {"x": 1, "y": 2}, "c": 3}, "t": 1}})
    bulk(project, {"email": "a@example.org", "mergeNestedObjects": True, "dataFields": {"o": {"a": None, "c": 4}}})
    assert fields(project) == {"o": {"b": {"x": 1, "y": 2}, "c": 4}, "t": 1}
    bulk(project, {"email": "a@example.org", "mergeNestedObjects": True, "dataFields": {"o": {"b": {"x": 9}}}})
    assert fields(project)["o"] == {"b": {"x": 9}, "c": 4}
    bulk(project, {"email": "a@example.org", "dataFields": {"o": {"c": 5}, "t": None}})
    assert fields(project) == {"o": {"c": 5}}


@pytest.mark.parametrize(
    ("first", "later", "fits"),
    [
        (1, 2.5, False),
        (1, 2.0, True),
        (1.5, 2, True),
        (1, "1", False),
        ("text", "2026-01-01", True),
        ("2026-01-01T00:00:00Z", "soon", False),
        ("2026-01-01T00:00:00Z", "2020-04-13 14:04:09.000", False),
        ("2026-01-01T00:00:00Z", "2026-01-01 10:00:00 +00:00", True),
        (True, 1, False),
        ({"a": 1}, "x", False),
        ({"a": 1}, {"a": "x"}, False),
        ([1], [2], True),
        ([1], ["x"], False),
        ([], "x", True),
        ("x", None, True),
    ],
)
def test_the_first_value_fixes_the_type_of_a_field_for_the_whole_project(first: Any, later: Any, fits: bool) -> None:
    project = Project()
    bulk(project, {"email": "a@example.org", "dataFields": {"f": first}})
    before = {e: dict(p.fields) for e, p in project.profiles.items()}
    users = [{"email": "good@example.org", "dataFields": {"g": 1}}, {"email": "b@example.org", "dataFields": {"f": later}}]
    status, body = project.bulk_update({"users": users})
    assert status == (200 if fits else 400)
    if not fits:
        (detail,) = body["params"]["validationErrors"].values()
        assert body["code"] == "RequestFieldsTypesMismatched"
        assert detail.keys() == {"incomingTypes", "expectedType", "category", "offendingValue", "_type"}
        assert {e: dict(p.fields) for e, p in project.profiles.items()} == before
        assert "g" not in project.types.known


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({"users": "x"}, {"obj.users": "List value expected"}),
        ([], {"obj.users": "List value expected"}),
        (
            {"users": [{"email": "a@example.org"}, {"email": "b@example.org", "preferUserId": "x"}]},
            {"obj.users[1].preferUserId": "Boolean value expected"},
        ),
        ({"users": [5]}, {"obj.users[0]": "Object value expected"}),
        (
            {"users": [{"email": 5, "dataFields": []}]},
            {"obj.users[0].email": "String value expected", "obj.users[0].dataFields": "Object value expected"},
        ),
        ({"users": [{}], "createNewFields": "x"}, {"obj.createNewFields": "Boolean value expected"}),
    ],
)
def test_a_wrong_kind_of_value_refuses_the_whole_batch_and_names_the_place(body: Any, params: dict[str, str]) -> None:
    project = Project()
    status, answer = project.bulk_update(body)
    assert (status, answer["code"], answer["params"]) == (400, "BadJsonBody", params)
    assert project.profiles == {}


def test_no_users_at_all_is_an_error_as_recorded() -> None:
    assert Project().bulk_update({"users": []}) == (400, {"msg": "Emails invalid: ", "code": "InvalidEmailAddressError", "params": None})


def test_a_changed_address_moves_the_profile_and_is_refused_where_it_cannot() -> None:
    project = Project()
    bulk(project, {"email": "a@example.org", "dataFields": {"n": 1}}, {"email": "b@example.org"})
    project.forget("gone@example.org")
    moves = [
        ("nobody@example.org", "c@example.org"),
        ("a@example.org", "b@example.org"),
        ("a@example.org", "gone@example.org"),
        ("a@example.org", "c"),
    ]
    codes = [project.update_email({"currentEmail": a, "newEmail": b})[1]["code"] for a, b in moves]
    assert codes == ["UnknownEmailError", "EmailAlreadyExists", "ForgottenUserError", "InvalidEmailAddressError"]
    assert project.update_email({"currentEmail": "A@example.org", "newEmail": "c@example.org"})[0] == 200
    assert project.update_email({"currentEmail": "c@example.org", "newEmail": "C@example.org"})[0] == 200
    assert (sorted(project.profiles), fields(project, "c@example.org")) == (["b@example.org", "c@example.org"], {"n": 1})


def test_a_user_id_finds_its_profile_and_a_preferred_one_gets_a_placeholder() -> None:
    project = Project()
    bulk(project, {"email": "a@example.org", "userId": "7"}, {"userId": "8", "preferUserId": True, "dataFields": {"n": 1}})
    bulk(project, {"userId": "7", "dataFields": {"n": 2}}, {"email": "a@example.org", "dataFields": {"userId": "9"}})
    assert (project.profiles["a@example.org"].user_id, fields(project)) == ("9", {"n": 2})
    (placeholder,) = project.by_user_id["8"]
    assert placeholder.endswith("@placeholder.email")
    assert project.delete_by_user_id("8")[1]["msg"] == "All users associated with 8 were successfully deleted"
    assert project.delete_by_user_id("8")[1]["code"] == "BadParams"


def test_a_deletion_takes_its_time_and_what_was_written_meanwhile_with_it() -> None:
    project = Project()
    project.delete_lag = 3600
    bulk(project, {"email": "a@example.org"})
    assert project.delete("a@example.org")[0] == 200
    bulk(project, {"email": "a@example.org", "dataFields": {"n": 1}})
    project.settle()
    assert "a@example.org" in project.profiles
    project.delete_lag = 0
    project.delete("a@example.org")
    assert project.profiles == {}
    assert project.get("a@example.org") == (200, {})
    assert project.delete("a@example.org")[1]["code"] == "BadParams"


def test_a_forgotten_user_stays_away_until_unforgotten() -> None:
    project = Project()
    bulk(project, {"email": "a@example.org"})
    project.forget("a@example.org")
    assert project.update({"email": "a@example.org"})[0] == 409
    assert len(project.hashes()[1]["hashedEmails"][0]) == 64
    project.unforget("a@example.org")
    assert project.update({"email": "a@example.org"})[0] == 200


def test_a_merge_keeps_the_destination_and_renames_where_there_is_none() -> None:
    project = Project()
    bulk(project, {"email": "a@example.org", "dataFields": {"x": 1, "y": 1}}, {"email": "b@example.org", "dataFields": {"x": 2}})
    assert project.merge({"sourceEmail": "a@example.org", "destinationEmail": "b@example.org"})[0] == 200
    assert {e: p.fields for e, p in project.profiles.items()} == {"b@example.org": {"x": 2, "y": 1}}
    project.merge({"sourceEmail": "b@example.org", "destinationEmail": "c@example.org"})
    assert list(project.profiles) == ["c@example.org"]


def test_a_profile_reads_back_in_the_recorded_form() -> None:
    project = Project()
    body: dict[str, Any] = {
        "email": "caio.silveira@mailinator.com",
        "dataFields": {"userId": "testuser123", "signupDate": "2020-08-19T20:50:04.000Z", "n": 1},
    }
    project.update(body)
    user = project.get(body["email"])[1]["user"]
    assert user.keys() == {"email", "dataFields", "userId"}
    assert user["dataFields"]["signupDate"] == "2020-08-19 20:50:04 +00:00"
    assert {"email", "userId", "profileUpdatedAt", "signupSource", "itblInternal"} <= user["dataFields"].keys()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["email", "userId", "dataFields", "preferUserId", "mergeNestedObjects"]), values, max_size=5),
        max_size=4,
    )
)
def test_whatever_is_sent_each_user_has_one_fate_or_the_batch_is_refused(users: list[dict[str, Any]]) -> None:
    status, body = Project().bulk_update({"users": users})
    assert status in (200, 400)
    if status == 200:
        assert body["successCount"] + body["failCount"] == len(users)
        assert sum(map(len, body["failedUpdates"].values())) == body["failCount"]


@settings(max_examples=200)
@given(values)
def test_every_value_has_a_type_or_none(value: Any) -> None:
    assert all(isinstance(kind, str) for kind in incoming(value))
