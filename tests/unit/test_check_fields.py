"""What a route with `fields: all` is going to take is told before it does: exactly what its map then takes, and of the rest why not."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.maps import load_maps
from agents.org_fields import followed
from agents.targets import find_target
from deploy.check import check_files, check_online
from deploy.check_fields import NAMED, foretold
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, USERNAME
from models.settings import Settings
from streams.map_versions import MapText, MapVersion, OrgFields
from tests.support.flows import flow
from tests.support.salesforce import org

TARGETS: dict[str, Any] = {"warehouse": find_target("postgres"), "marketing": find_target("iterable")}
CONTACT, LEAD = "acme/Contact", "acme/Lead"
ALL: dict[str, Any] = {"from": [CONTACT], "to": "warehouse", "map": "person", "fields": "all"}


def described(**types: str) -> dict[str, Any]:
    return {"fields": [{"name": name, "type": kind, "calculated": name == "Total__c"} for name, kind in types.items()]}


ODD = described(
    Email="email", IsDeleted="boolean", SystemModstamp="datetime", MailingAddress="address", MailingCity="string", Photo__c="base64",
    Total__c="currency", LastActivityDate="date", email="string", _key="string", Score__c="double",
)  # fmt: skip


def test_what_is_taken_is_named_and_what_is_left_out_has_its_reason() -> None:
    taken, left = foretold(flow(whole=ALL | {"fetch": "event"}), TARGETS, {CONTACT: ODD})
    assert taken == "route whole: `fields: all` takes 2 fields of acme/Contact beside the map: Score__c, MailingCity"
    assert left.startswith("route whole: left out of acme/Contact: ")
    reasons = dict(one.rstrip(")").split(" (", 1) for one in left.split(": ", 2)[2].split("; "))
    assert reasons == {
        "IsDeleted, SystemModstamp": "Headrace's own, or of the user who looks",
        "MailingAddress": "compound: its parts are fields",
        "Photo__c": "no column holds base64",
        "Total__c, LastActivityDate": "no event carries it: `fetch: query` brings it",
        "email": "a line of the map writes email",
        "_key": "_key is a column that Headrace writes itself",
    }
    taken, left = foretold(flow(whole=ALL | {"fetch": "query"}), TARGETS, {CONTACT: ODD})
    assert "takes 4 fields" in taken and "Total__c, Score__c, MailingCity, LastActivityDate" in taken and "Total__c" not in left


def test_of_two_sources_the_second_s_field_of_another_type_is_left_out() -> None:
    both = flow(whole=ALL | {"from": [CONTACT, LEAD]})
    notes = foretold(both, TARGETS, {CONTACT: described(Score__c="double"), LEAD: described(Score__c="string", Rating="picklist")})
    assert notes == [
        "route whole: `fields: all` takes 1 field of acme/Contact beside the map: Score__c",
        "route whole: `fields: all` takes 1 field of acme/Lead beside the map: Rating",
        "route whole: left out of acme/Lead: Score__c (the column is number already, and the field text)",
    ]


def test_of_routes_without_it_and_of_sources_that_are_not_known_nothing_is_said() -> None:
    assert foretold(flow(whole=ALL | {"fields": None}), TARGETS, {CONTACT: ODD}) == []
    assert foretold(flow(whole=ALL), TARGETS, {}) == []


@pytest.mark.parametrize(
    ("number", "end"), [(0, "beside the map"), (NAMED, "F19__c"), (NAMED + 1, "1 more (`headrace fields acme/Contact`)")]
)
def test_of_many_fields_some_are_named(number: int, end: str) -> None:
    [note] = foretold(flow(whole=ALL), TARGETS, {CONTACT: described(**{f"F{n}__c": "string" for n in range(number)})})
    assert f"takes {number} field" in note and note.endswith(end)


kinds = st.sampled_from(("string", "double", "int", "boolean", "date", "address", "location", "base64", "complexvalue", "anyType", "None"))
names = st.sampled_from(
    ("Email", "Id", "LastName", "LastViewedDate", "LastActivityDate", "Total__c", "A__c", "email", "full_name", "_turn")
)


@given(st.dictionaries(names, kinds), st.sampled_from(("warehouse", "marketing")), st.sampled_from(("event", "query")))
def test_what_is_foretold_is_what_the_map_then_takes(shown: dict[str, str], to: str, fetch: str) -> None:
    text = "person" if to == "warehouse" else "maps/iterable-user.yaml"
    made, told = flow(whole=ALL | {"to": to, "map": text, "fetch": fetch}), described(**shown)
    fields = followed(made.routes["whole"], OrgFields(), told, frozenset())
    [way] = load_maps(made, TARGETS, {"whole": MapVersion("whole", 1, MapText(text, None, "", {CONTACT: fields}))}).ways(CONTACT)
    [lines] = load_maps(made, TARGETS).ways(CONTACT)
    taken, *left = foretold(made, TARGETS, {CONTACT: told})
    assert {name for name in taken.partition("map: ")[2].split(", ") if name} == way.added - lines.fields
    out = shown.keys() - way.added - lines.fields
    assert all(name in left[0] for name in out) if out else not left


async def test_check_asks_the_org_and_a_field_that_its_user_does_not_see_is_not_foretold(tmp_path: Path) -> None:
    async with org() as desk:
        auth = f"{{flow: client_credentials, client_id: {CLIENT_ID}, client_secret: {CLIENT_SECRET}}}"
        (tmp_path / "flow.yaml").write_text(
            f"connections: {{acme: {{type: salesforce, url: '{desk.url}', auth: {auth}}}}}\n"
            "targets: {warehouse: {type: postgres, dsn: 'postgresql://127.0.0.1:9/x'}}\n"
            "routes:\n  whole: {from: acme/Contact, to: warehouse, map: person, fields: all}\n"
            "  other: {from: acme/Account, to: warehouse, map: account}\n"
        )

        async def notes() -> list[str]:
            return [one for one in await check_online(check_files(tmp_path / "flow.yaml", {}), Settings()) if "acme/" in one]

        taken, left = await notes()
        assert "`fields: all` takes " in taken and "OtherCity" in taken
        assert "MailingAddress, OtherAddress (compound: its parts are fields)" in left
        await desk.call("POST", "users", username=USERNAME, hidden={"Contact": ["OtherCity"]})
        hidden, _ = await notes()
        assert "OtherCity" not in hidden and number(hidden) == number(taken) - 1


def number(note: str) -> int:
    return int(note.partition("takes ")[2].split()[0])
