"""Two users of the sandbox org see two orgs: hidden fields, closed objects, records not shared, and channels that withhold in silence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.support.sandbox_wire import ALL, Wire, names, org

READER = {"username": "reader@example.org", "client_id": "reader-key", "client_secret": "reader-secret"}
NO_VIEW_ALL = "403::User not allowed to subscribe CDC without View All Data permissions"


@asynccontextmanager
async def reader(at: Wire, **rights: Any) -> AsyncIterator[Wire]:
    """A second client, of a user with fewer rights."""
    await at.control("POST", "users", READER | rights)
    async with aiohttp.ClientSession() as http:
        other = Wire(at.sandbox, http)
        form = {"grant_type": "client_credentials", "client_id": READER["client_id"], "client_secret": READER["client_secret"]}
        async with http.post(f"{at.sandbox.url}/services/oauth2/token", data=form) as reply:
            other.token = (await reply.json())["access_token"]
        yield other


async def test_a_hidden_field_is_in_no_describe_and_no_query_may_name_it() -> None:
    hidden = {"Contact": ["Email", "MailingCity"], "Account": ["Industry"]}
    async with org() as at, reader(at, hidden=hidden) as other:
        for who, there in ((at, True), (other, False)):
            _, described = await who.rest("GET", "/sobjects/Contact/describe")
            assert ("Email" in {f["name"] for f in described["fields"]}) is there
        for text in (
            "SELECT Id, Email FROM Contact",
            "SELECT Id FROM Contact WHERE Email != null",
            "SELECT Id FROM Contact ORDER BY MailingCity",
            "SELECT Account.Industry FROM Contact",
            "SELECT COUNT(Email) FROM Contact",
        ):
            assert (await at.rest("GET", "/query", params={"q": text}))[0] == 200
            status, body = await other.rest("GET", "/query", params={"q": text})
            assert (status, body[0]["errorCode"]) == (400, "INVALID_FIELD")
            assert "No such column '" in body[0]["message"]
        status, body = await other.rest("GET", "/query", params={"q": "SELECT Id, Email FROM Contact"})
        assert body[0]["message"].startswith(
            "\nSELECT Id, Email FROM Contact\n           ^\nERROR at Row:1:Column:12\n"
            "No such column 'Email' on entity 'Contact'. If you are attempting to use a custom field,"
        )
        job = {"operation": "query", "query": "SELECT Email FROM Contact"}
        assert (await other.rest("POST", "/jobs/query", job))[1][0]["errorCode"] == "INVALID_FIELD"
        record = at.sandbox.org.store.tables["Contact"].order[0]
        assert "Email" not in (await other.rest("GET", f"/sobjects/Contact/{record}"))[1]
        status, body = await other.rest("PATCH", f"/sobjects/Contact/{record}", {"Email": "x@example.org"})
        assert (status, body[0]["errorCode"]) == (400, "INVALID_FIELD")


async def test_a_hidden_field_is_absent_from_the_events_of_that_user_alone_and_kept_in_his_writes() -> None:
    async with org(hold=1) as at, reader(at, hidden={"Contact": ["Email", "FirstName"]}) as other:
        await at.open()
        await other.open()
        values = {"FirstName": "Ada", "LastName": "Both", "Email": "ada@example.org", "Title": "Head"}
        made = (await at.change({"op": "create", "type": "Contact", "values": values}))["ids"][0]
        await at.change({"op": "update", "type": "Contact", "id": made, "values": {"Email": None, "FirstName": "Eve", "Title": "Boss"}})
        whole, part = await at.poll(), await other.poll()
        assert whole[0]["payload"]["Name"] == {"FirstName": "Ada", "LastName": "Both"}
        assert part[0]["payload"]["Name"] == {"LastName": "Both"}
        assert "Email" in whole[0]["payload"]
        assert "Email" not in part[0]["payload"]
        assert set(whole[1]["payload"]["ChangeEventHeader"]["changedFields"]) == {"Email", "Name.FirstName", "Title", "LastModifiedDate"}
        assert set(part[1]["payload"]["ChangeEventHeader"]["changedFields"]) == {"Title", "LastModifiedDate"}
        assert set(part[1]["payload"]) == {"Title", "LastModifiedDate", "ChangeEventHeader"}
        status, written = await other.rest("POST", "/sobjects/Contact", {"LastName": "Written"})
        assert status == 201
        row = at.sandbox.org.store.anywhere(written["id"])
        assert row is not None and row.keys() == at.sandbox.org.schema.objects["Contact"].fields.keys()


async def test_records_not_shared_are_missing_without_a_word_and_a_right_to_all_brings_them() -> None:
    async with org(records=200) as at, reader(at, view_all_data=False) as other:
        count = {"q": "SELECT COUNT() FROM Contact"}
        total = (await at.rest("GET", "/query", params=count))[1]["totalSize"]
        assert (await other.rest("GET", "/query", params=count))[1]["totalSize"] == 0
        order = at.sandbox.org.store.tables["Contact"].order
        listed = {"q": f"SELECT Id FROM Contact WHERE Id IN ('{order[0]}', '{order[1]}')"}
        await at.control("POST", "users", READER | {"shared": [order[1]]})
        assert [r["Id"] for r in (await other.rest("GET", "/queryAll", params=listed))[1]["records"]] == [order[1]]
        assert (await other.rest("GET", f"/sobjects/Contact/{order[0]}"))[0] == 404
        assert (await other.rest("PATCH", f"/sobjects/Contact/{order[0]}", {"Title": "x"}))[0] == 403
        assert (await other.rest("POST", "/sobjects/Contact", {"LastName": "Own"}))[0] == 201
        assert (await other.rest("GET", "/query", params=count))[1]["totalSize"] == 2
        await at.control("POST", "users", READER | {"view_all_records": ["Contact"]})
        assert (await other.rest("GET", "/query", params=count))[1]["totalSize"] == total + 1
        assert (await other.rest("GET", "/query", params={"q": "SELECT COUNT() FROM Account"}))[1]["totalSize"] == 0


async def test_channels_of_many_objects_withhold_in_silence_and_those_of_one_refuse() -> None:
    async with org() as at, reader(at, view_all_data=False, view_all_records=["Account"]) as other:
        assert (await other.open())["successful"]
        assert (await other.subscribe(-1, "/data/ContactChangeEvent"))["error"] == NO_VIEW_ALL
        assert (await other.subscribe(-1, "/data/AccountChangeEvent"))["successful"]
        await other.send("unsubscribe", subscription="/data/AccountChangeEvent")
        await at.person("Withheld")
        await at.change({"op": "create", "type": "Account", "values": {"Name": "Told"}})
        (event,) = await other.poll()
        assert event["payload"]["Name"] == "Told"
        await at.control("POST", "users", READER | {"view_all_data": True})
        await at.person("Still withheld")
        assert await other.poll() == []
        await other.subscribe(-1)
        await at.person("Told now")
        assert names(await other.poll()) == ["Told now"]


async def test_a_closed_object_does_not_exist_for_its_user() -> None:
    async with org() as at, reader(at, closed=["Case"]) as other:
        assert (await other.rest("GET", "/sobjects/Case/describe"))[0] == 404
        assert (await other.rest("GET", "/query", params={"q": "SELECT Id FROM Case"}))[1][0]["errorCode"] == "INVALID_TYPE"
        assert "doesn't exist" in (await other.open(channel="/data/CaseChangeEvent"))["error"]
        assert (await other.subscribe(-1, ALL))["successful"]
        await at.change({"op": "create", "type": "Case", "values": {"Subject": "Closed"}})
        assert await other.poll() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"username": "nobody"},
        {"hidden": {"Nope": ["Email"]}},
        {"hidden": {"Contact": ["Nope"]}},
        {"hidden": {"Contact": ["LastName"]}},
        {"hidden": {"Contact": ["SystemModstamp"]}},
        {"hidden": ["Email"]},
        {"view_all_records": ["Nope"]},
        {"rights": "all"},
        {"closed": 5},
        {"shared": True},
    ],
)
async def test_rights_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    async with org() as at:
        status, body = await at.refused("POST", "users", READER | wrong)
        assert (status, bool(body["error"])) == (400, True)
