"""The sandbox's logins and REST on the wire: what is granted, what is refused and in which words."""

import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, USERNAME
from tests.support.sandbox_wire import Wire, names, org

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


async def token(at: Wire, **form: Any) -> tuple[int, dict[str, Any]]:
    async with at.http.post(f"{at.sandbox.url}/services/oauth2/token", data=form) as reply:
        return reply.status, await reply.json()


async def by_jwt(at: Wire, key: Any = KEY, algorithm: str = "RS256", **claims: Any) -> tuple[int, dict[str, Any]]:
    given = {"iss": CLIENT_ID, "sub": USERNAME, "aud": "https://login.salesforce.com", "exp": int(time.time()) + 120} | claims
    body = {k: v for k, v in given.items() if v is not None}
    return await token(at, grant_type=BEARER, assertion=jwt.encode(body, key, algorithm))


async def test_a_token_reply_has_no_expiry_and_names_the_org_under_a_host_name() -> None:
    async with org() as at:
        status, body = await token(at, grant_type="client_credentials", client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
        assert status == 200
        assert body.keys() == {"access_token", "signature", "scope", "instance_url", "id", "token_type", "issued_at"}
        assert body["instance_url"] == at.sandbox.url == f"http://localhost:{at.sandbox.listener.port}"
        assert body["access_token"].startswith(at.sandbox.org.id[:15] + "!")


async def test_a_signed_assertion_for_this_org_gives_a_token_that_works() -> None:
    async with org() as at:
        await at.control("POST", "apps", {"public_key": PEM})
        for audience in ("https://login.salesforce.com", "https://test.salesforce.com", at.sandbox.url):
            status, body = await by_jwt(at, aud=audience)
            assert (status, set(body)) == (200, {"access_token", "scope", "instance_url", "id", "token_type"})
            at.token = body["access_token"]
            assert (await at.rest("GET", "/limits"))[0] == 200


@pytest.mark.parametrize(
    ("claims", "error", "text"),
    [
        ({"aud": "https://elsewhere.example.org"}, "invalid_grant", "audience is invalid"),
        ({"exp": 1}, "invalid_grant", "assertion has expired"),
        ({"exp": int(time.time()) + 86_400}, "invalid_grant", "assertion expires too far in the future"),
        ({"exp": None}, "invalid_grant", "invalid assertion"),
        ({"sub": "nobody@example.org"}, "invalid_grant", "user hasn't approved this consumer"),
        ({"iss": "unknown"}, "invalid_client_id", "client identifier invalid"),
        ({"key": OTHER}, "invalid_grant", "invalid assertion"),
        ({"key": "x" * 40, "algorithm": "HS256"}, "invalid_grant", "invalid assertion"),
        ({"key": None, "algorithm": "none"}, "invalid_grant", "invalid assertion"),
    ],
)
async def test_an_assertion_that_does_not_fit_is_refused(claims: dict[str, Any], error: str, text: str) -> None:
    async with org() as at:
        await at.control("POST", "apps", {"public_key": PEM})
        assert await by_jwt(at, **claims) == (400, {"error": error, "error_description": text})


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "password"}, "invalid_client_id"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, "invalid_client_id"),
        ({"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": "wrong"}, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": CLIENT_ID}, "invalid_client"),
        ({"grant_type": BEARER, "assertion": "no.jwt"}, "invalid_grant"),
        ({"grant_type": BEARER}, "invalid_grant"),
    ],
)
async def test_a_login_that_does_not_fit_is_refused(form: dict[str, str], error: str) -> None:
    async with org() as at:
        status, body = await token(at, **form)
        assert (status, body["error"]) == (400, error)


async def test_nothing_is_answered_without_a_token_but_the_versions() -> None:
    async with org() as at:
        at.token = ""
        refused = (401, [{"message": "Session expired or invalid", "errorCode": "INVALID_SESSION_ID"}])
        for path in ("/limits", "/sobjects", "/query?q=SELECT Id FROM Contact", "/sobjects/Contact/003", "/nope"):
            assert await at.rest("GET", path) == refused
        assert (await at.rest("GET", "/services/data"))[0] == 200


async def test_a_query_comes_in_pages_that_together_are_the_whole() -> None:
    async with org(records=700) as at:
        query = {"q": "SELECT Id, Name, CreatedDate FROM Contact"}
        status, page = await at.rest("GET", "/query", params=query, headers={"Sforce-Query-Options": "batchSize=200"})
        assert (status, page["done"], len(page["records"])) == (200, False, 200)
        records = page["records"]
        while not page["done"]:
            assert page["totalSize"] > len(records)
            _, page = await at.rest("GET", page["nextRecordsUrl"], headers={"Sforce-Query-Options": "batchSize=200"})
            records += page["records"]
        live = [r["Id"] for r in (await at.control("GET", "records?type=Contact"))["records"]]
        assert [r["Id"] for r in records] == live
        assert "nextRecordsUrl" not in page
        assert all(r["CreatedDate"].endswith(".000+0000") for r in records)
        assert records[0]["attributes"] == {"type": "Contact", "url": f"/services/data/v67.0/sobjects/Contact/{live[0]}"}


async def test_an_open_cursor_does_not_see_later_changes_and_an_unknown_one_is_refused() -> None:
    async with org(records=900) as at:
        _, page = await at.rest(
            "GET", "/query", params={"q": "SELECT Id, Phone FROM Contact"}, headers={"Sforce-Query-Options": "batchSize=200"}
        )
        last = at.sandbox.org.store.tables["Contact"].order[-1]
        await at.change({"op": "update", "type": "Contact", "id": last, "values": {"Phone": "+later"}})
        while not page["done"]:
            _, page = await at.rest("GET", page["nextRecordsUrl"])
        assert page["records"][-1]["Id"] == last
        assert page["records"][-1]["Phone"] != "+later"
        for locator in ("01gnone-200", "x", "-1", "01g-" + "9" * 50):
            status, body = await at.rest("GET", f"/query/{locator}")
            assert (status, body[0]["errorCode"]) == (400, "INVALID_QUERY_LOCATOR")


async def test_two_hundred_ids_fit_into_one_address_and_too_many_are_refused() -> None:
    async with org(records=1500) as at:
        order = at.sandbox.org.store.tables["Contact"].order
        text = "SELECT Id, Name, Account.Name FROM Contact WHERE Id IN ({})"
        status, page = await at.rest("GET", "/queryAll", params={"q": text.format(",".join(f"'{i}'" for i in order[:200]))})
        assert (status, page["totalSize"]) == (200, 200)
        status, _ = await at.rest("GET", "/queryAll", params={"q": text.format(",".join(f"'{i}'" for i in (order * 2)[:800]))})
        assert status == 414


async def test_a_record_lives_from_create_to_undelete_and_each_step_is_an_event_of_its_caller() -> None:
    async with org() as at:
        await at.open()
        caller = {"Sforce-Call-Options": "client=my-bridge"}
        status, made = await at.rest("POST", "/sobjects/Contact", {"LastName": "Live", "Email": "live@example.org"}, headers=caller)
        assert (status, made["success"], made["errors"]) == (201, True, [])
        path = f"/sobjects/Contact/{made['id']}"
        assert await at.rest("PATCH", path, {"Email": None, "FirstName": "A"}) == (204, "")
        assert (await at.rest("GET", path))[1]["Name"] == "A Live"
        assert await at.rest("DELETE", path) == (204, "")
        assert (await at.rest("GET", path))[1][0]["errorCode"] == "ENTITY_IS_DELETED"
        assert (await at.rest("PATCH", path, {"Email": None}))[0] == 404
        _, page = await at.rest("GET", "/queryAll", params={"q": f"SELECT IsDeleted, LastName FROM Contact WHERE Id = '{made['id']}'"})
        assert [(r["IsDeleted"], r["LastName"]) for r in page["records"]] == [(True, "Live")]
        assert (await at.rest("POST", f"{path}/undelete"))[0] == 204
        events = await at.poll()
        heads = [e["payload"]["ChangeEventHeader"] for e in events]
        assert [h["changeType"] for h in heads] == ["CREATE", "UPDATE", "DELETE", "UNDELETE"]
        assert [h["changeOrigin"] for h in heads] == ["com/salesforce/api/rest/67.0;client=my-bridge"] + [
            "com/salesforce/api/rest/67.0"
        ] * 3
        assert {h["commitUser"] for h in heads} == {at.sandbox.org.user_id}
        assert events[1]["payload"]["Email"] is None


async def test_upsert_creates_updates_and_names_several_matches(tmp_path: Path) -> None:
    fields = tmp_path / "fields.yaml"
    fields.write_text("Contact:\n  Ext__c: {type: string, externalId: true, unique: false}\n")
    async with org(fields=fields) as at:
        path = "/sobjects/Contact/Ext__c/a%2Bb%2F1"
        status, made = await at.rest("PATCH", path, {"LastName": "Up"})
        assert (status, made["created"]) == (201, True)
        status, again = await at.rest("PATCH", path, {"LastName": "Up again"})
        assert (status, again["created"], again["id"]) == (200, False, made["id"])
        assert (await at.rest("PATCH", path, {"Ext__c": "z", "LastName": "x"}))[1][0]["errorCode"] == "INVALID_FIELD"
        stored = at.sandbox.org.store.anywhere(made["id"])
        assert stored is not None
        await at.rest("POST", "/sobjects/Contact", {"LastName": "Twin", "Ext__c": stored["Ext__c"]})
        status, several = await at.rest("PATCH", path, {"LastName": "Whose"})
        assert (status, len(several)) == (300, 2)
        assert (await at.rest("PATCH", "/sobjects/Contact/Nope__c/1", {}))[1][0]["errorCode"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "REQUIRED_FIELD_MISSING"),
        ({"LastName": None}, "REQUIRED_FIELD_MISSING"),
        ({"LastName": ""}, "REQUIRED_FIELD_MISSING"),
        ({"LastName": "x", "foo": 1}, "INVALID_FIELD"),
        ({"LastName": "x", "CreatedDate": "2026-01-01T00:00:00Z"}, "INVALID_FIELD_FOR_INSERT_UPDATE"),
        ({"LastName": "x", "Name": "y"}, "INVALID_FIELD_FOR_INSERT_UPDATE"),
        ({"LastName": "x" * 81}, "STRING_TOO_LONG"),
        ({"LastName": "x", "Email": "no address"}, "INVALID_EMAIL_ADDRESS"),
        ({"LastName": "x", "Birthdate": "soon"}, "JSON_PARSER_ERROR"),
        ({"LastName": "x", "DoNotCall": "yes"}, "JSON_PARSER_ERROR"),
        ({"LastName": {"a": 1}}, "JSON_PARSER_ERROR"),
        ({"LastName": "x", "AccountId": "nonsense"}, "MALFORMED_ID"),
        ({"LastName": "x", "AccountId": "001000000000000AAA"}, "INVALID_CROSS_REFERENCE_KEY"),
        ({"LastName": "x", "AccountId": "003000000000000AAA"}, "INVALID_CROSS_REFERENCE_KEY"),
        ([], "JSON_PARSER_ERROR"),
        (b"{", "JSON_PARSER_ERROR"),
        (b"", "JSON_PARSER_ERROR"),
    ],
)
async def test_a_wrong_write_has_the_error_code_of_salesforce_and_changes_nothing(body: Any, code: str) -> None:
    async with org() as at:
        before = len(at.sandbox.org.store.tables["Contact"].rows)
        status, reply = await at.rest("POST", "/sobjects/Contact", body, headers={"Content-Type": "application/json"})
        assert (status, reply[0]["errorCode"]) == (400, code)
        assert reply[0]["message"]
        assert len(at.sandbox.org.store.tables["Contact"].rows) == before
        assert at.sandbox.org.bus.end == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/sobjects/Nope/describe", 404, "NOT_FOUND"),
        ("GET", "/sobjects/Contact/003000000000000AAA", 404, "NOT_FOUND"),
        ("GET", "/sobjects/Contact/001000000000000AAA", 400, "MALFORMED_ID"),
        ("GET", "/sobjects/Contact/x", 404, "NOT_FOUND"),
        ("DELETE", "/sobjects/Contact/003000000000000AAA", 404, "NOT_FOUND"),
        ("GET", "/query", 400, "MALFORMED_QUERY"),
        ("GET", "/nope", 404, "NOT_FOUND"),
        ("GET", "/services/data/v30.0/limits", 410, "UNSUPPORTED_API_VERSION"),
        ("GET", "/services/data/v99.0/limits", 404, "NOT_FOUND"),
        ("GET", "/services/data/vxx/limits", 404, "NOT_FOUND"),
    ],
)
async def test_what_is_not_there_is_refused_as_salesforce_does(method: str, path: str, status: int, code: str) -> None:
    async with org() as at:
        got, reply = await at.rest(method, path)
        assert (got, reply[0]["errorCode"]) == (status, code)


async def test_describe_tells_of_every_field_what_a_client_needs() -> None:
    async with org(records=100) as at:
        _, listed = await at.rest("GET", "/sobjects")
        assert {o["name"] for o in listed["sobjects"]} == {"Account", "Contact", "Lead", "Opportunity", "Task", "Case", "User"}
        for entry in listed["sobjects"]:
            _, described = await at.rest("GET", f"/sobjects/{entry['name']}/describe")
            fields = {f["name"]: f for f in described["fields"]}
            assert {"Id", "IsDeleted", "CreatedDate", "LastModifiedDate", "SystemModstamp"} <= fields.keys()
            assert described["keyPrefix"] == entry["keyPrefix"]
            _, page = await at.rest("GET", "/query", params={"q": f"SELECT {', '.join(fields)} FROM {entry['name']} LIMIT 1"})
            assert page["records"][0].keys() == fields.keys() | {"attributes"}
        contact = {f["name"]: f for f in (await at.rest("GET", "/sobjects/Contact/describe"))[1]["fields"]}
        assert (contact["MailingCity"]["compoundFieldName"], contact["FirstName"]["compoundFieldName"]) == ("MailingAddress", "Name")
        assert (contact["AccountId"]["referenceTo"], contact["AccountId"]["relationshipName"]) == (["Account"], "Account")
        assert [f["name"] for f in contact.values() if f["createable"] and not f["nillable"] and not f["defaultedOnCreate"]] == ["LastName"]


async def test_replies_count_the_calls_and_carry_a_date() -> None:
    async with org() as at, at.http.get(f"{at.sandbox.url}/services/data/v67.0/limits", headers=at.headers) as reply:
        assert reply.headers["Sforce-Limit-Info"] == "api-usage=1/100000"
        assert reply.headers["Date"].endswith("GMT")


async def test_recorded_events_are_published_as_they_stand_under_new_or_kept_ids() -> None:
    async with org() as at:
        await at.open()
        head = b'{"entityName":"Employee__c","recordIds":["a00"],"changeType":"X"}'
        event = b'{"schema":"s","payload":{"ChangeEventHeader":' + head + b',"odd":[1]},"event":{"replayId":5}}'
        wrapped = b'{"source":"somewhere","message":{"data":' + event + b',"channel":"/data/Employee__ChangeEvent"}}'
        done = await at.control("POST", "emit", event + b"\n\n" + wrapped)
        first, second = await at.poll()
        assert first | {"event": None} == second | {"event": None}
        assert first["payload"]["odd"] == [1]
        assert [first["event"]["replayId"], second["event"]["replayId"]] == done["replayIds"]
        assert done["replayIds"][0] > 20_000_000
        assert (await at.subscribe(-2, "/data/Employee__ChangeEvent"))["successful"]
        kept = await at.control("POST", "emit?keep=1", event)
        assert kept["replayIds"] == [5]
        status, _ = await at.refused("POST", "emit", event + b"\nnonsense")
        assert (status, at.sandbox.org.bus.end) == (400, 3)


async def test_the_commits_tell_when_each_event_was_committed() -> None:
    async with org() as at:
        before = time.time() * 1000
        first, second = await at.person("One"), await at.person("Two")
        commits = (await at.control("GET", f"commits?after={first}"))["commits"]
        assert [(c[0], c[2], len(c[3])) for c in commits] == [(second, "Contact", 1)]
        assert before <= commits[0][1] <= time.time() * 1000


async def test_a_gap_withholds_the_change_it_tells_of() -> None:
    async with org() as at:
        await at.open()
        record = at.sandbox.org.store.tables["Contact"].order[0]
        await at.control(
            "POST", "gap", {"changes": [{"op": "update", "type": "Contact", "id": record, "values": {"LastName": "Withheld"}}]}
        )
        (event,) = await at.poll()
        assert (event["payload"]["ChangeEventHeader"]["changeType"], list(event["payload"])) == ("GAP_UPDATE", ["ChangeEventHeader"])
        assert (await at.rest("GET", f"/sobjects/Contact/{record}"))[1]["LastName"] == "Withheld"


async def test_the_life_inside_the_server_makes_as_many_transactions_as_were_asked_for() -> None:
    async with org(records=200) as at:
        await at.open()
        run = (await at.control("POST", "change", {"rate": 500, "seconds": 0.2, "seed": 4}))["run"]
        got: list[Any] = []
        while not (done := (await at.control("GET", "change"))["runs"][run])["finished"]:
            got += await at.poll()
        got += await at.poll()
        assert done["done"] == done["wanted"] == 100
        assert len(got) == (await at.control("GET", "state"))["events"] >= 90
        keys = [(e["payload"]["ChangeEventHeader"]["transactionKey"], e["payload"]["ChangeEventHeader"]["sequenceNumber"]) for e in got]
        assert len(keys) == len(set(keys))
        assert names([e for e in got if "LastName" in (e["payload"].get("Name") or "")])
