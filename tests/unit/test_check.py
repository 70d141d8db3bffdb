"""`headrace check` tells every mistake once, at its line, with a remedy, and asks the org and the targets what no file can show."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from deploy.check import check_files, check_online, run_check
from models.settings import Settings

FLOWS = Path(__file__).parent.parent / "data" / "flows"
TWENTY = FLOWS / "twenty.yaml"
EXAMPLE = Path(__file__).parent.parent.parent / "deploy" / "examples" / "demo.yaml"
ENVIRON = {
    "SF_URL": "http://127.0.0.1:9",
    "SF_CLIENT_ID": "client",
    "SF_CLIENT_SECRET": "hunter2",
    "FORMS_SECRET": "whsec_aHVudGVyMg==",
    "DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:9/x",
    "ITERABLE_API_KEY": "hunter2",
    "ITERABLE_URL": "http://127.0.0.1:9",
}


def expected() -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(TWENTY.read_text().splitlines(), 1):
        if found := re.search(r"#! (.+) \| (.+)$", line):
            yield number, found[1], found[2]


def test_a_file_with_twenty_different_mistakes_gives_one_message_for_each_with_line_and_remedy() -> None:
    wanted = list(expected())
    assert len(wanted) >= 20
    told = sorted(set(check_files(TWENTY, {"SF_CLIENT_ID": "x", "DATABASE_URL": "x"}).document.mistakes))
    for line, message, remedy in wanted:
        matching = [mistake for mistake in told if mistake.line == line and message in mistake.message]
        assert len(matching) == 1, (line, message, [str(mistake) for mistake in told if mistake.line == line])
        assert remedy in matching[0].remedy
    assert len(told) == len(wanted), [str(mistake) for mistake in told]


def test_the_example_flow_has_no_mistake() -> None:
    assert check_files(EXAMPLE, ENVIRON).document.mistakes == []


def test_the_exit_code_and_the_json_say_whether_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(EXAMPLE, offline=True, as_json=True, environ=ENVIRON) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "mistakes": [], "notes": []}
    assert run_check(TWENTY, offline=True, as_json=True, environ=ENVIRON) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and all(mistake.keys() == {"file", "line", "message", "remedy"} for mistake in found["mistakes"])
    assert run_check(TWENTY, offline=True, as_json=False, environ=ENVIRON) == 1
    assert "twenty.yaml:5: url is no address" in capsys.readouterr().out


def test_mistakes_inside_a_map_file_are_told_at_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        "connections: {acme: {type: salesforce, auth: {flow: jwt, client_id: c, username: u, key_file: k}}}\n"
        "targets: {warehouse: {type: postgres, dsn: x}}\n"
        "routes: {people: {from: acme/Contact, to: warehouse, map: m.yaml}}\n"
    )
    (tmp_path / "k").write_text("-----BEGIN PRIVATE KEY-----\n")
    (tmp_path / "m.yaml").write_text("Email: email\nFirstName: {to: first, transfrom: mail}\nLastName: 3\nFax: email\n")
    found = check_files(tmp_path / "flow.yaml", {}).document.mistakes
    assert sorted((Path(mistake.file).name, mistake.line) for mistake in found) == [("m.yaml", 2), ("m.yaml", 3), ("m.yaml", 4)]


def test_two_routes_through_different_maps_to_one_table_are_told(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        "connections: {acme: {type: salesforce, auth: {flow: jwt, client_id: c, username: u, key_file: k}}}\n"
        "targets: {warehouse: {type: postgres, dsn: x}}\n"
        "routes:\n"
        "  one: {from: acme/Contact, to: warehouse, map: person, object: people}\n"
        "  two: {from: acme/Contact, to: warehouse, map: contact, object: people}\n"
    )
    (tmp_path / "k").write_text("-----BEGIN PRIVATE KEY-----\n")
    (mistake,) = check_files(tmp_path / "flow.yaml", {}).document.mistakes
    assert mistake.line == 5 and "routes one and two both write acme/Contact" in mistake.message


@pytest.mark.parametrize("text", ["", "[]", "connections: [", "a: b", "\x00", "connections: {}\ntargets: {}\nroutes: {}"])
def test_what_is_no_flow_is_told_and_nothing_is_asked(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flow.yaml").write_text(text)
    assert run_check(tmp_path / "flow.yaml", offline=False, as_json=True, environ={}) == 1
    assert json.loads(capsys.readouterr().out)["mistakes"]


async def test_an_org_and_targets_that_are_away_are_told_without_secrets() -> None:
    found = check_files(EXAMPLE, ENVIRON)
    await check_online(found, Settings())
    told = [str(mistake) for mistake in found.document.mistakes]
    assert len(told) == 3
    assert any("connection acme" in text for text in told)
    assert any("target warehouse" in text for text in told)
    assert any("target marketing" in text for text in told)
    assert "hunter2" not in str(told)


FIELDS: dict[str, list[str]] = {
    "Contact": ["Id", "Email", "FirstName", "LastName", "Title", "Phone", "MobilePhone", "AccountId", "CreatedDate", "LastModifiedDate"],
    "Account": ["Id", "Name"],
}


SEES_ALL = [True]


async def org(request: web.Request) -> web.Response:
    if request.path.endswith("/token"):
        return web.json_response({"access_token": "00D000000000001!x", "instance_url": f"http://{request.host}"})
    if request.path.endswith("/query"):
        seen = {"PermissionsViewAllData": SEES_ALL[0]} if "UserPermissionAccess" in request.query["q"] else None
        return web.json_response({"totalSize": 1, "done": True, "records": [seen] if seen else []})
    name = request.path.split("/")[-2]
    if name not in FIELDS:
        return web.json_response([{"errorCode": "NOT_FOUND", "message": "The requested resource does not exist"}], status=404)
    fields: list[dict[str, object]] = [{"name": field, "relationshipName": None, "referenceTo": []} for field in FIELDS[name]]
    return web.json_response({"name": name, "queryable": True, "fields": fields})


@pytest.mark.parametrize("sees_all", [True, False])
async def test_what_the_org_has_not_or_withholds_is_told_at_the_line_that_asks_for_it(tmp_path: Path, sees_all: bool) -> None:
    SEES_ALL[0] = sees_all
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", org)
    async with TestServer(app) as server:
        (tmp_path / "flow.yaml").write_text(
            "connections:\n"
            f"  acme: {{type: salesforce, url: 'http://127.0.0.1:{server.port}',\n"
            "    poll: {Account: 60s}, auth: {flow: client_credentials, client_id: c, client_secret: s}}\n"
            "targets: {warehouse: {type: postgres, dsn: 'postgresql://127.0.0.1:9/x'}}\n"
            "routes:\n"
            "  people: {from: acme/Contact, to: warehouse, map: m.yaml, where: \"Region__c = 'x'\"}\n"
            "  plans: {from: acme/Plan__c, to: warehouse, map: p.yaml}\n"
            "  firms: {from: acme/Account, to: warehouse, map: p.yaml, object: firm}\n"
        )
        (tmp_path / "m.yaml").write_text("Email: email\nFirstname: first\n")
        (tmp_path / "p.yaml").write_text("Name: name\n")
        found = check_files(tmp_path / "flow.yaml", {})
        assert found.document.mistakes == []
        notes = await check_online(found, Settings())
    told = sorted((Path(mistake.file).name, mistake.line, mistake.message) for mistake in found.document.mistakes)
    polled = [one for one in told if "Account cannot be polled: Account has no field" in one[2]]
    assert {one[1] for one in polled} == {3}
    told = [one for one in told if one not in polled]
    blind = [] if sees_all else [told.pop(0)]
    assert [(line, "lacks View All Data: /data/ChangeEvents brings him nothing" in text) for _, line, text in blind] == [(2, True)] * len(
        blind
    )
    assert [(file, line) for file, line, _ in told] == [("flow.yaml", 4), ("flow.yaml", 6), ("flow.yaml", 7), ("m.yaml", 2)]
    assert "target warehouse" in told[0][2] and "Region__c" in told[1][2] and "Plan__c" in told[2][2] and "Firstname" in told[3][2]
    assert any("is not deaf" in note for note in notes)
