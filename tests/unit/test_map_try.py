"""Trying a map tells what the mapper does, with its reason; a drafted map can be used as it is."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.map_draft import draft
from agents.map_file import read_map
from agents.rules.explain import body_of, explain, values_of
from agents.rules.mapping import Map, compile_map
from deploy.maps import draft_map, try_map
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from models.errors import HeadraceError, PermanentError, SettingsError
from tests.support.salesforce import org

DOCUMENT = Path(__file__).parent.parent / "data" / "maps" / "person-document.yaml"
SOURCES = (
    "Id Email Name Phone Status NumberOfEmployees Owner.FederationIdentifier Owner.Username OwnerId Description".split()  # noqa: SIM905
)


def document() -> Map:
    found, problems = read_map(DOCUMENT)
    assert found is not None, problems
    return found


VALUES = st.none() | st.sampled_from(["", " ", "Open", "a@b.org", "030 123456", "12", "Ada Lovelace"]) | st.booleans() | st.integers(0, 99)


@given(st.dictionaries(st.sampled_from(SOURCES), VALUES))
def test_what_is_told_is_what_the_mapper_does(values: dict[str, Any]) -> None:
    told = explain(document(), "Lead", values)
    compiled = compile_map(document(), "Lead")
    try:
        body = compiled.apply(values)
    except PermanentError:
        assert body_of(told) is None
        return
    refused = body.get("email") is None  # required, which the gate checks
    assert body_of(told) == (None if refused else body)


def test_every_value_has_its_reason() -> None:
    values = {"Id": "1", "Email": "A@b.org", "Name": None, "Phone": " ", "Status": "Gone", "OwnerId": "005Qx00000Ke4Rt"}
    told = {line.target: line for line in explain(document(), "Lead", values)}
    assert {name: line.why for name, line in told.items()} == {
        "externalId": "as it is",
        "email": "valid_mail",
        "name.first": "null; clears the target",
        "name.last": "null; clears the target",
        "phone": "null after trim; nulls: skip, left out",
        "stage": "pick stages: text is not in the table stages; the record becomes a dead letter",
        "size": "not in the record; left out",
        "owner": "not in the record; Owner.Username: not in the record; user",
        "about": "not in the record; left out",
    }
    assert [name for name, line in told.items() if line.fault] == ["stage"]


def test_a_record_is_read_by_dots_nested_or_flat() -> None:
    row = {"Owner": {"Email": "a"}, "Account": None, "Who.Name": "b", "Text": "c"}
    found = values_of(row, ("Owner.Email", "Account.Name", "Who.Name", "Text.Part", "None.At.All", "Owner.Fax"))
    assert found == {"Owner.Email": "a", "Account.Name": None, "Who.Name": "b"}


DESCRIBED = {
    "fields": [
        {"name": "Id", "type": "id", "label": "Contact ID"},
        {"name": "Name", "type": "string", "label": "Full Name"},
        {"name": "LastName", "type": "string", "label": "Last Name", "compoundFieldName": "Name"},
        {"name": "MailingAddress", "type": "address", "label": "Mailing Address"},
        {"name": "Email", "type": "email", "label": "Email"},
        {"name": "Email__c", "type": "email", "label": "Second\nEmail: #", "custom": True},
        {"name": "Age__c", "type": "int", "label": "Age", "custom": True},
        {"name": "age__c", "type": "double", "label": "Age, too", "custom": True},
        {"name": "IsDeleted", "type": "boolean", "label": "Deleted"},
    ]
}


@pytest.mark.parametrize("nested", [False, True])
def test_a_drafted_map_can_be_used_as_it_is(tmp_path: Path, nested: bool) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(draft("acme/Contact", "warehouse", DESCRIBED, nested))
    found, problems = read_map(path)
    assert problems == []
    assert found is not None
    assert [leaf.source for leaf in found.leaves] == ["Id", "Email", "LastName", "Age__c", "age__c", "Email__c"]
    assert ("email",) in {leaf.target for leaf in found.leaves}
    assert found.leaves[3].type == "integer"


def test_a_sample_is_tried_without_a_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = tmp_path / "r.json"
    sample.write_text('{"attributes": {"type": "Lead"}, "Id": "1", "Email": "A@b.org", "Status": "Open"}')
    assert try_map(None, str(DOCUMENT), None, sample, None, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["body"] == {"externalId": "1", "email": "a@b.org", "stage": "new"}
    sample.write_text('{"Id": "1", "Email": "A\\u001b[31m"}')
    assert try_map(None, str(DOCUMENT), None, sample, None, as_json=False) == 1
    assert "\x1b[31m" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{", '"a"', "\x00"])
def test_a_file_without_a_record_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(SettingsError, match="holds no record"):
        try_map(None, "person", None, tmp_path / "r.json", None, as_json=True)
    with pytest.raises(SettingsError, match="which record"):
        try_map(None, "person", None, None, None, as_json=True)


async def test_a_record_is_read_from_the_org_and_a_map_drafted_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with org(0) as desk:
        record = await desk.create("Zoe")
        flow, path = tmp_path / "flow.yaml", tmp_path / "contact.yaml"
        auth = f"{{flow: client_credentials, client_id: '{CLIENT_ID}', client_secret: '{CLIENT_SECRET}'}}"
        flow.write_text(
            f"connections: {{acme: {{type: salesforce, url: '{desk.url}', auth: {auth}}}}}\n"
            "targets: {warehouse: {type: postgres, dsn: x}}\n"
            "routes: {people: {from: acme/Contact, to: warehouse, map: contact.yaml}}\n"
        )
        assert await asyncio.to_thread(draft_map, flow, "acme/Contact", "warehouse", path) == 0
        with pytest.raises(SettingsError, match="is there already"):
            await asyncio.to_thread(draft_map, flow, "acme/Contact", "warehouse", path)
        capsys.readouterr()
        assert await asyncio.to_thread(try_map, flow, str(path), record, None, None, True) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["body"]["externalId"] == record
        assert told["body"]["lastName"] == "Zoe"
        for strange in ("003000000000000AAA", "'; DROP"):
            with pytest.raises(HeadraceError):
                await asyncio.to_thread(try_map, flow, str(path), strange, None, None, True)
