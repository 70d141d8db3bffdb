"""A parent's event asks for exactly those children that show the field that changed."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.change_event import parse
from models.flow import Salesforce
from streams.engine.stage import Output
from streams.salesforce.messages import Intake
from streams.salesforce.positions import Position
from streams.salesforce.renames import Followed, parent_condition, parents_of_path
from streams.topics import Topics
from tests.support.salesforce import change

TOPICS = Topics("t")
ACCOUNT, OTHER = "001Qx00000Ke4RtIAJ", "001Qx00000Ke4RtIAK"
FIELDS = {
    "acme/Contact": ("Id", "Email", "AccountId", "Account.Name", "Account.BillingCity", "Account.Owner.Email", "Owner.Name", "Owner.Id"),
    "acme/Lead": ("Id", "Owner.Name"),
    "acme/Visit__c": ("Id", "Shop__r.Name"),
    "other/Contact": ("Id", "Account.Phone"),
}


def followed() -> Followed:
    return Followed("acme", FIELDS, TOPICS)


def asked(outputs: list[Output]) -> list[tuple[str, str, str]]:
    found = [orjson.loads(o.value or b"") for o in outputs]
    assert all(o.topic == "t.fetch.acme" and o.key == f["parents"][0].encode() for o, f in zip(outputs, found, strict=True))
    return [(f["sobject"], f["through"], *f["parents"]) for f in found]


def told(sobject: str, *names: str, ids: tuple[str, ...] = (ACCOUNT,), kind: str = "UPDATE") -> Any:
    message = change(*ids, second=1, kind=kind, sobject=sobject, replay=5)
    message["data"]["payload"]["ChangeEventHeader"]["changedFields"] = list(names)
    return message


def test_each_step_of_a_path_has_its_parent() -> None:
    assert list(parents_of_path("Contact", "Email")) == []
    assert list(parents_of_path("Contact", "Account.Id")) == []
    assert list(parents_of_path("Contact", "Account.Name")) == [("Account", "Name", "AccountId")]
    assert list(parents_of_path("Contact", "Account.Owner.Email")) == [
        ("Account", "OwnerId", "AccountId"),
        ("User", "Email", "Account.OwnerId"),
    ]
    assert list(parents_of_path("Visit__c", "Shop__r.Boss__r.Name")) == [
        ("Shop__c", "Boss__c", "Shop__c"),
        ("Boss__c", "Name", "Shop__r.Boss__c"),
    ]
    assert list(parents_of_path("Account", "Parent.Name")) == [("Account", "Name", "ParentId")]
    assert [parent for parent, *_ in parents_of_path("Task", "Who.Name")] == ["Contact", "Lead"]


@pytest.mark.parametrize(
    ("names", "through"),
    [
        (["Name", "LastModifiedDate"], ["AccountId"]),
        (["BillingAddress.City"], ["AccountId"]),
        (["BillingAddress"], ["AccountId"]),
        (["OwnerId"], ["AccountId"]),
        (["Phone", "LastModifiedDate"], []),
        (["ShippingAddress.City"], []),
        ([], []),
    ],
    ids=str,
)
def test_only_fields_that_somebody_shows_count(names: list[str], through: list[str]) -> None:
    assert asked(followed().of_event(parse(told("Account", *names)))) == [("Contact", each, ACCOUNT) for each in through]


def test_every_way_to_a_child_is_asked_for_once() -> None:
    user = "005Qx00000Ke4RtIAJ"
    outputs = followed().of_event(parse(told("User", "Name.FirstName", "Email", ids=(user,))))
    assert asked(outputs) == [("Contact", "Account.OwnerId", user), ("Contact", "OwnerId", user), ("Lead", "OwnerId", user)]
    assert asked(followed().of_event(parse(told("Shop__c", "Name")))) == [("Visit__c", "Shop__c", ACCOUNT)]


@pytest.mark.parametrize("kind", ["CREATE", "DELETE", "UNDELETE", "GAP_CREATE"])
def test_what_is_no_change_of_a_value_asks_for_nothing(kind: str) -> None:
    assert followed().of_event(parse(told("Account", "Name", kind=kind))) == []


def test_a_gap_and_a_change_without_names_may_be_a_rename() -> None:
    assert asked(followed().of_event(parse(told("Account", kind="GAP_UPDATE")))) == [("Contact", "AccountId", ACCOUNT)]


def since(outputs: list[Output]) -> list[tuple[str, str, int]]:
    found = [orjson.loads(o.value or b"") for o in outputs]
    assert all("parents" not in f and f["after"] == "" for f in found)
    assert [o.key for o in outputs] == [f"{f['sobject']}/{f['through']}".encode() for f in found]
    return [(f["sobject"], f["through"], f["since"]) for f in found]


def test_where_no_ids_are_told_children_of_all_that_changed_since_are_asked_for() -> None:
    overflow = told("Account", kind="GAP_OVERFLOW", ids=("000000000000000AAA",))
    overflow["data"]["payload"]["ChangeEventHeader"]["commitTimestamp"] = 1_700_000_000_000
    assert since(followed().of_event(parse(overflow))) == [("Contact", "AccountId", 1_700_000_000 - 300)]
    assert since(followed().of_event(parse(told("Account", "Type", ids=("001*",))))) == [("Contact", "AccountId", 0)], (
        "a converted field leaves no stamp"
    )
    assert followed().of_event(parse(told("Lead", kind="GAP_OVERFLOW"))) == []
    assert followed().since("User", 5) == [], "they are polled"
    tasks = Followed("acme", {"acme/Task": ("Who.Name", "What.Name")}, TOPICS)
    assert since(tasks.since("Contact", 5)) == [("Task", "WhoId", 0)], "of several kinds: no stamp to ask for"


@pytest.mark.parametrize(
    ("through", "parents", "second", "soql"),
    [
        ("AccountId", [ACCOUNT, OTHER], 0, f"AccountId IN ('{ACCOUNT}','{OTHER}')"),
        ("AccountId", [], 0, "AccountId != null"),
        ("AccountId", [], 1_700_000_000, "Account.SystemModstamp >= 2023-11-14T22:13:20Z"),
        ("Account.ParentId", [], 1_700_000_000, "Account.Parent.SystemModstamp >= 2023-11-14T22:13:20Z"),
        ("Shop__r.Boss__c", [], 1_700_000_000, "Shop__r.Boss__r.SystemModstamp >= 2023-11-14T22:13:20Z"),
    ],
)
def test_the_org_is_asked_in_soql(through: str, parents: list[str], second: int, soql: str) -> None:
    assert parent_condition(through, parents, second) == soql


def test_a_map_that_shows_more_is_followed_from_then_on() -> None:
    fields = dict(FIELDS)
    live = Followed("acme", fields, TOPICS)
    assert asked(live.of_event(parse(told("Account", "Phone")))) == []
    fields["acme/Lead"] = ("Id", "ConvertedAccount.Phone")
    fields["acme/Contact"] = ("Id", "Account.Phone")
    assert asked(live.of_event(parse(told("Account", "Phone")))) == [("Contact", "AccountId", ACCOUNT)]


def test_requests_are_beside_the_position_and_a_repeat_asks_no_more() -> None:
    at = Position(1, 4, 0, "00D", "https://x", 0, "new")
    intake = Intake("acme", "/data/ChangeEvents", TOPICS, {"Contact"}, at, followed().of_event)
    rename = told("Account", "Name", ids=(ACCOUNT, OTHER))
    plan = intake.plan([rename, rename], 1)
    assert asked(plan.outputs) == [("Contact", "AccountId", ACCOUNT), ("Contact", "AccountId", OTHER)]
    assert (intake.position.position, plan.repeats, plan.unrouted) == (5, 1, 0)
    assert intake.plan([rename], 2).outputs == []


@given(st.lists(st.text("abcAN._rI", max_size=12), max_size=4))
def test_odd_names_ask_for_nothing_wrong(names: list[str]) -> None:
    for sobject, through, parent in asked(followed().of_event(parse(told("Account", *names)))):
        assert (sobject, through, parent) == ("Contact", "AccountId", ACCOUNT)


def test_users_and_what_no_channel_carries_is_polled() -> None:
    auth = {"flow": "client_credentials", "client_id": "a", "client_secret": "b"}

    def polled(**channels: Any) -> list[str]:
        config = Salesforce.model_validate({"type": "salesforce", "auth": auth} | channels)
        return sorted(followed().polled(config, list(config.channels)))

    assert polled() == ["User"]
    assert polled(channels=["/data/ContactChangeEvent", "/data/AccountChangeEvent"]) == ["Shop__c", "User"]
    assert polled(poll={"Account": 60}) == ["Account", "User"], "whatever the channel might carry"
    assert polled(channels={"/data/Sales__chn": ["Contact", "Shop__c"]}) == ["Account", "User"]
