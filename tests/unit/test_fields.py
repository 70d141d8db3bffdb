"""`headrace fields`: which fields are told, in which order, and how often the org is asked for them."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli import main
from deploy.fields import fields_of
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from models.errors import PermanentError, SettingsError
from models.settings import Settings
from streams.salesforce import described
from streams.salesforce.auth import Login
from streams.salesforce.columns import types_of
from streams.salesforce.rest import Rest
from tests.support.salesforce import acme, flow_for, org


def field(name: str, label: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "label": label, "type": "string", "custom": name.endswith("__c"), "updateable": True, "length": 80} | more


FOUND = [
    field("Zip__c", "äpfel"),
    field("BillingAddress", "Address", type="address"),
    field("Place__c", "Place", type="location"),
    field("BillingCity", "city"),
    field("Id", "Record ID", type="id", updateable=False),
    field("Total__c", "Total", type="double", length=0, updateable=False),
    field("Stage", "Age", picklistValues=[{"value": "New", "active": True}, {"value": "Old", "active": False}]),
]


def test_standard_before_custom_each_by_label_and_no_compound() -> None:
    found = fields_of({"fields": FOUND})
    assert [f.name for f in found] == ["Stage", "BillingCity", "Id", "Total__c", "Zip__c"]
    assert [(f.length, f.picklist) for f in found[:1]] == [(80, ("New",))]
    assert found[3].length is None
    assert [f.name for f in fields_of({"fields": FOUND}, writable=True)] == ["Stage", "BillingCity", "Zip__c"]


@given(st.permutations(FOUND))
def test_the_order_of_a_describe_does_not_matter(shuffled: list[dict[str, Any]]) -> None:
    assert fields_of({"fields": shuffled}) == fields_of({"fields": FOUND})


@pytest.mark.parametrize("odd", [{}, {"fields": None}, {"fields": ["x", None, {}, {"name": "A", "picklistValues": [None], "length": "x"}]}])
def test_an_odd_describe_breaks_nothing(odd: dict[str, Any]) -> None:
    assert [f.name for f in fields_of(odd)] in ([], ["A"])


def by_name(fields: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {field["name"]: field for field in fields}


async def test_two_commands_ask_the_org_once_and_a_refresh_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    async with org() as desk:
        auth = f"{{flow: client_credentials, client_id: {CLIENT_ID}, client_secret: {CLIENT_SECRET}}}"
        file = tmp_path / "flow.yaml"
        file.write_text(
            f"connections: {{acme: {{type: salesforce, url: '{desk.url}', auth: {auth}}}}}\n"
            "targets: {warehouse: {type: postgres, dsn: postgresql://x}}\nroutes: {c: {from: acme/Contact, to: warehouse, map: person}}\n"
        )
        monkeypatch.setenv("HEADRACE_STATE_DIR", str(tmp_path / "state"))

        async def ask(*more: str) -> list[dict[str, Any]]:
            sobject, *options = more if more[:1] == ("Contact",) else ("Account", *more)
            monkeypatch.setattr("sys.argv", ["headrace", "fields", f"acme/{sobject}", "--json", "--flow", str(file), *options])
            with pytest.raises(SystemExit) as ended:
                await asyncio.to_thread(main)
            assert not ended.value.code
            return list(orjson.loads(capsys.readouterr().out.splitlines()[-1]))

        async def calls() -> int:
            return int((await desk.state())["counts"].get("rest requests", 0))

        found = await ask()
        assert {"BillingCity", "Name"} <= {f["name"] for f in found} and "BillingAddress" not in {f["name"] for f in found}
        assert await ask() == found
        assert await calls() == 1
        assert all(f["updateable"] for f in await ask("--writable", "--refresh"))
        assert await calls() == 2
        assert {name for name, f in by_name(await ask("Contact")).items() if f["routes"] == ["c"]} >= {"Id", "Email", "AccountId"}
        file.write_text(file.read_text().replace("map: person", "map: person, fields: all"))
        whole = by_name(await ask("Contact"))
        assert whole["Department"]["routes"] == ["c"] and whole["IsDeleted"]["routes"] == []
        file.write_text(file.read_text().replace("map: person", "map: nothing"))
        assert by_name(await ask("Contact")).keys() == whole.keys(), "which helps to mend it"
        assert await calls() == 3
        for wrong in ("Account WHERE", "../../x", "Nothing"):
            from deploy.fields import fields

            with pytest.raises(SettingsError):
                await asyncio.to_thread(fields, file, f"acme/{wrong}", False, False, True)


async def test_a_process_asks_for_a_describe_once_until_something_tells_of_a_change() -> None:
    async with org() as desk:
        config = acme(flow_for(desk.url))
        rest = Rest("acme", config, Login("acme", config, "."))
        try:
            first, again = await rest.describe("Contact"), await rest.describe("Contact")
            assert again is first
            assert rest.calls["describe"] == 1
            await rest.describe("Contact", age=0)
            assert rest.calls["describe"] == 2, "who must know asks anew"
            with pytest.raises(PermanentError):
                await rest.query("SELECT Nothing__c FROM Contact", "fetch")
            assert rest.reshaped.is_set(), "a field that is refused tells of a change"
            await desk.call("POST", "objects", Contact={"Score__c": "double"})
            assert "Score__c" in {field["name"] for field in (await rest.describe("Contact"))["fields"]}
            kinds = await types_of("Contact", ["Score__c", "Owner.Email", "Owner.Nothing__c", "Nothing__r.X"], rest.describe)
            assert kinds == {"Score__c": "double", "Owner.Email": "email", "Owner.Nothing__c": None, "Nothing__r.X": None}
        finally:
            await rest.close()


def test_a_command_takes_what_another_kept_for_an_hour_unless_somebody_forgets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, said = Settings(installation="t", state=tmp_path), {"fields": [{"name": "Id"}]}
    described.keep(settings, "acme", "Contact", "https://a", said)
    described.keep(settings, "other", "Contact", "https://a", said)
    assert described.kept(settings, "acme", "Contact", "https://a") == said
    assert described.kept(settings, "acme", "Contact", "https://another.org") is None
    described.forget(settings, "acme")
    assert described.kept(settings, "acme", "Contact", "https://a") is None
    assert described.kept(settings, "other", "Contact", "https://a") == said
    monkeypatch.setattr(described, "DESCRIBED_SECONDS", -1.0)
    assert described.kept(settings, "other", "Contact", "https://a") is None
