"""Fields and sObjects that the org has not, or hides, are told; those it has are not."""

from pathlib import Path
from typing import Any

import pytest

from agents.map_file import read_map
from agents.rules.mapping import Leaf, Step
from agents.rules.takes import Takes
from deploy.check_org import Judged, Org
from models.errors import PausedError, PermanentError, TemporaryError


def field(name: str, link: str | None = None, *to: str) -> dict[str, Any]:
    return {"name": name, "relationshipName": link, "referenceTo": list(to)}


ORG: dict[str, dict[str, Any]] = {
    "Contact": {
        "queryable": True,
        "fields": [
            field("Id"),
            field("Email"),
            field("FirstName"),
            field("AccountId", "Account", "Account"),
            field("OwnerId", "Owner", "Group", "User"),
            field("SecretId", "Secret", "Hidden__c"),
        ],
    },
    "Account": {"queryable": True, "fields": [field("Name"), field("OwnerId", "Owner", "User")]},
    "Group": {"queryable": True, "fields": [field("Name")]},
    "User": {"queryable": True, "fields": [field("Name"), field("Email")]},
    "Share": {"queryable": False, "fields": []},
}
asked: list[str] = []


async def describe(sobject: str) -> dict[str, Any]:
    asked.append(sobject)
    if sobject == "Away":
        raise TemporaryError("away")
    if sobject == "Denied":
        raise PausedError("Salesforce answered 403 INSUFFICIENT_ACCESS_OR_READONLY; an administrator must grant this")
    if sobject not in ORG:
        raise PermanentError("NOT_FOUND")
    return ORG[sobject]


async def told(sobject: str, *paths: str) -> list[tuple[str | None, str, str]]:
    return [(misfit.path, misfit.message, misfit.remedy) for misfit in await Org("acme", describe).misfits(sobject, paths)]


async def test_what_the_org_has_is_no_misfit() -> None:
    assert await told("Contact", "Id", "Email", "Account.Name", "Account.Owner.Email", "Owner.Email", "Owner.Name") == []


@pytest.mark.parametrize(
    ("path", "message", "remedy"),
    [
        ("Emial", "no field Emial", "did you mean Email?"),
        ("email", "in this spelling", "did you mean Email?"),
        ("Fax", "no field Fax, or hides it", "grant the field"),
        ("Acount.Name", "no relationship Acount", "did you mean Account?"),
        ("AccountId.Name", "no relationship AccountId", "did you mean Account?"),
        ("Account.Nam", "Account has no field Nam", "did you mean Name?"),
        ("Account.Owner.Fax", "User has no field Fax", "grant"),
        ("Secret.Name", "leads to nothing", "give the user Read"),
        ("", "no field ", "check"),
        ("Account.", "no field Account.", "grant"),
        (".", "no field .", "check"),
    ],
)
async def test_a_field_that_is_not_there_is_told_with_a_remedy(path: str, message: str, remedy: str) -> None:
    ((culprit, what, how),) = await told("Contact", path)
    assert culprit == path and message in what and remedy in how


@pytest.mark.parametrize(
    ("sobject", "message"), [("Contct", "knows no sObject Contct"), ("Share", "cannot be queried"), ("Denied", "hides it")]
)
async def test_an_sobject_that_is_not_there_is_one_misfit(sobject: str, message: str) -> None:
    ((culprit, what, _),) = await told(sobject, "A", "B")
    assert culprit is None and message in what


async def test_an_org_that_is_away_is_no_misfit_of_the_flow() -> None:
    with pytest.raises(TemporaryError):
        await told("Away", "Id")


async def test_each_sobject_is_described_once() -> None:
    asked.clear()
    org = Org("acme", describe)
    await org.misfits("Contact", ["Account.Name", "Account.Owner.Name"])
    await org.misfits("Contact", ["Owner.Email", "Nothing.X"])
    await org.misfits("Nowhere", ["A"])
    await org.misfits("Nowhere", ["A"])
    assert sorted(asked) == sorted(set(asked))


TYPED: dict[str, dict[str, Any]] = {
    "Deal__c": {
        "fields": [
            {"name": "Amount__c", "type": "currency", "scale": 2},
            {"name": "Count__c", "type": "double", "scale": 0},
            {"name": "Open__c", "type": "boolean"},
            {"name": "Day__c", "type": "date"},
            {"name": "At__c", "type": "datetime"},
            {"name": "Mail__c", "type": "email"},
            {
                "name": "Stage__c",
                "type": "picklist",
                "picklistValues": [{"value": "New"}, {"value": "Won"}, {"value": "Old", "active": False}],
            },
            {"name": "OwnerId", "type": "reference", "relationshipName": "Owner", "referenceTo": ["Nobody", "User"]},
        ]
    },
    "User": {"fields": [{"name": "IsActive", "type": "boolean"}]},
}


async def typed(sobject: str) -> dict[str, Any]:
    if sobject not in TYPED:
        raise PermanentError("NOT_FOUND")
    return TYPED[sobject]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Amount__c: {to: a, type: number}", None),
        ("Amount__c: {to: a, type: integer}", "is currency in the org, and the map makes it integer"),
        ("Amount__c: {to: a, type: text}", None),
        ("Amount__c: {to: a, transform: phone}", "is currency in the org, and the map makes it text (phone)"),
        ("Count__c: {to: a, type: integer}", None),
        ("Open__c: {to: a, type: date}", "is boolean in the org"),
        ("Day__c: {to: a, transform: [trim, datetime]}", "is date in the org, and the map makes it datetime"),
        ("At__c: {to: a, transform: date, type: text}", None),
        ("Mail__c: {to: a, transform: valid_mail}", None),
        ("Nothing__c: {to: a, or: Open__c, type: number}", "Open__c is boolean"),
        ("Owner.IsActive: {to: a, type: number}", "Owner.IsActive is boolean"),
        ("Stage__c: {to: a, transform: {pick: whole}}", None),
        ("Stage__c: {to: a, transform: {pick: half}}", "lacks: Won"),
        ("Open__c: {to: a, transform: 'tests.support.transforms:shout', type: number}", None),
    ],
)
async def test_a_line_that_does_not_go_with_the_type_in_the_org_is_told(tmp_path: Path, line: str, message: str | None) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f"version: 1\ntables: {{whole: {{New: a, Won: b}}, half: {{New: a}}}}\nfields:\n  {line}\n")
    found, problems = read_map(path)
    assert found is not None, problems
    told = await Org("acme", typed).map_misfits("Deal__c", found.leaves)
    assert [(message or "") in misfit.message and misfit.line == 4 and bool(misfit.remedy) for misfit in told] == [True] * bool(message), (
        told
    )


LIMITED: dict[str, Any] = {
    "fields": [
        {"name": "Title", "type": "string", "length": 128, "nillable": True},
        {
            "name": "Stage",
            "type": "picklist",
            "length": 255,
            "nillable": True,
            "picklistValues": [{"value": "a"}, {"value": "b", "active": False}],
        },
        {"name": "Code", "type": "string", "length": 5, "nillable": False, "unique": True},
    ]
}


@pytest.mark.parametrize(
    ("leaf", "takes", "told"),
    [
        (Leaf("Title", ("t",)), Takes(length=80), ["has up to 128 characters, t takes 80"]),
        (Leaf("Title", ("t",)), Takes(length=128), []),
        (Leaf("Title", ("t",), (Step("truncate 80", str),)), Takes(length=80), []),
        (Leaf("Code", ("t",)), Takes(length=80, required=True, unique=True), []),
        (Leaf("Stage", ("s", "t")), Takes(values=frozenset({"b"})), ["values that s.t does not take: a;"]),
        (Leaf("Stage", ("s", "t")), Takes(values=frozenset({"a"})), []),
        (Leaf("Title", ("t",)), Takes(required=True), ["may be empty, t takes no null"]),
        (Leaf("Title", ("t",), default="x"), Takes(required=True), []),
        (Leaf("Hidden", ("t",)), Takes(length=1, required=True), []),
    ],
)
async def test_what_the_org_may_hold_and_the_target_does_not_take_is_told(leaf: Leaf, takes: Takes, told: list[str]) -> None:
    async def described(_sobject: str) -> dict[str, Any]:
        return LIMITED

    found = await Org("acme", described).beyond("Thing__c", [leaf], {".".join(leaf.target): takes})
    assert len(found) == len(told)
    assert all(wanted in one for wanted, one in zip(told, found, strict=True))


@pytest.mark.parametrize(
    ("path", "judged", "told"),
    [
        (
            "Title",
            Judged(),
            ["Thing__c.Title may hold the same in two records, t takes it once: say `unique: t`, and `duplicates` in `quality`"],
        ),
        ("Title", Judged("email"), ["say `unique: t` (instead of email)"]),
        ("Title", Judged("t"), []),
        ("Title", Judged(key="t"), []),
        ("Code", Judged(), []),
        ("Code", Judged(sole=False), ["say `unique: t`"]),
    ],
)
async def test_what_the_target_takes_once_is_told_with_the_line_that_sees_to_it(path: str, judged: Judged, told: list[str]) -> None:
    async def described(_sobject: str) -> dict[str, Any]:
        return LIMITED

    found = await Org("acme", described).beyond("Thing__c", [Leaf(path, ("t",))], {"t": Takes(unique=True)}, judged)
    assert len(found) == len(told)
    assert all(wanted in one for wanted, one in zip(told, found, strict=True))


async def test_a_unique_column_that_takes_no_null_is_told_because_who_goes_cannot_give_up_its_value() -> None:
    async def described(_sobject: str) -> dict[str, Any]:
        return LIMITED

    takes = {"t": Takes(unique=True, required=True)}
    [found] = await Org("acme", described).beyond("Thing__c", [Leaf("Code", ("t",))], takes, Judged("t"))
    assert "cannot give up its value" in found
