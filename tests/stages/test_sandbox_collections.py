"""sObject collections and the replication calls of the sandbox org: each record has its own fate, each window its own changes."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.sandbox_wire import Wire, org

FIELDS = "Contact:\n  Ext__c: {type: string, externalId: true, unique: true}\n"


def contact(**fields: Any) -> dict[str, Any]:
    return {"attributes": {"type": "Contact"}, **fields}


async def sent(at: Wire, method: str, *records: Any, path: str = "", **more: Any) -> Any:
    status, body = await at.rest(method, f"/composite/sobjects{path}", {"records": list(records), **more})
    assert status == 200, body
    return body


def codes(results: Any) -> list[str | None]:
    return [None if r["success"] else r["errors"][0]["statusCode"] for r in results]


async def test_good_records_are_made_beside_bad_ones_in_one_transaction_with_200() -> None:
    async with org() as at:
        await at.open()
        account = {"attributes": {"type": "Account"}, "Name": "Mixed in"}
        made = await sent(at, "POST", contact(LastName="One"), contact(FirstName="No last name"), account, contact(LastName="x" * 99), 5)
        assert codes(made) == [None, "REQUIRED_FIELD_MISSING", None, "STRING_TOO_LONG", "JSON_PARSER_ERROR"]
        assert made[1]["errors"][0] == {
            "statusCode": "REQUIRED_FIELD_MISSING", "message": "Required fields are missing: [LastName]", "fields": ["LastName"],
        }  # fmt: skip
        events = [e["payload"]["ChangeEventHeader"] for e in await at.poll()]
        assert [h["recordIds"][0] for h in events] == [made[0]["id"], made[2]["id"]]
        assert len({h["transactionKey"] for h in events}) == 1


async def test_all_or_none_keeps_nothing_and_names_the_culprit_alone() -> None:
    async with org() as at:
        before = len(at.sandbox.org.store.tables["Contact"].rows)
        made = await sent(at, "POST", contact(LastName="One"), contact(), contact(LastName="Three"), allOrNone=True)
        rolled = "ALL_OR_NONE_OPERATION_ROLLED_BACK"
        assert codes(made) == [rolled, "REQUIRED_FIELD_MISSING", rolled]
        assert len(at.sandbox.org.store.tables["Contact"].rows) == before
        assert at.sandbox.org.bus.end == 0


async def test_updates_and_deletes_of_a_collection_name_what_is_not_there() -> None:
    async with org() as at:
        a, b, c = at.sandbox.org.store.tables["Contact"].order[:3]
        await at.change({"op": "delete", "type": "Contact", "id": c})
        nobody = "003000000000000AAA"
        done = await sent(
            at, "PATCH", contact(id=a, Title="T"), contact(id=a, Title="U"), contact(id=c), contact(id=nobody), contact(Title="x"),
            contact(id="001000000000000AAA"),
        )  # fmt: skip
        assert codes(done) == [None, "DUPLICATE_VALUE", "ENTITY_IS_DELETED", "NOT_FOUND", "MISSING_ARGUMENT", "MALFORMED_ID"]
        assert (at.sandbox.org.store.anywhere(a) or {})["Title"] == "T"
        status, gone = await at.rest("DELETE", "/composite/sobjects", params={"ids": f"{a},{b},{c},zzz", "allOrNone": "false"})
        assert (status, codes(gone)) == (200, [None, None, "ENTITY_IS_DELETED", "MALFORMED_ID"])


async def test_an_upsert_makes_and_changes_by_an_external_id_in_the_body(tmp_path: Path) -> None:
    (tmp_path / "fields.yaml").write_text(FIELDS)
    async with org(fields=tmp_path / "fields.yaml") as at:
        path = "/Contact/Ext__c"
        made = await sent(at, "PATCH", contact(Ext__c="a", LastName="A"), contact(Ext__c="b", LastName="B"), path=path)
        assert [(r["success"], r["created"]) for r in made] == [(True, True)] * 2
        again = await sent(
            at,
            "PATCH",
            contact(Ext__c="A", Title="T"),
            contact(Ext__c="a", Title="U"),
            contact(LastName="None"),
            contact(Ext__c="c"),
            path=path,
        )
        assert codes(again) == [None, "DUPLICATE_VALUE", "MISSING_ARGUMENT", "REQUIRED_FIELD_MISSING"]
        assert (again[0]["id"], again[0]["created"]) == (made[0]["id"], False)
        assert (await at.rest("PATCH", "/composite/sobjects/Contact/Title", {"records": [contact()]}))[0] == 404


async def test_one_locked_row_of_a_collection_leaves_the_others_alone() -> None:
    async with org() as at:
        a, b = at.sandbox.org.store.tables["Contact"].order[:2]
        await at.fault("lock-row")
        done = await sent(at, "PATCH", contact(id=a, Title="T"), contact(id=b, Title="T"))
        assert codes(done) == ["UNABLE_TO_LOCK_ROW", None]
        assert a in done[0]["errors"][0]["message"]


async def test_reads_by_ids_keep_the_order_and_give_null_for_what_is_not_there() -> None:
    async with org() as at:
        a, b, c = at.sandbox.org.store.tables["Contact"].order[:3]
        await at.change({"op": "delete", "type": "Contact", "id": b})
        status, got = await at.rest("POST", "/composite/sobjects/Contact", {"ids": [c, b, a, "zzz"], "fields": ["LastName", "CreatedDate"]})
        assert (status, [r and r["Id"] for r in got]) == (200, [c, None, a, None])
        assert got[0].keys() == {"attributes", "Id", "LastName", "CreatedDate"}
        assert (await at.rest("POST", "/composite/sobjects/Contact", {"ids": [a], "fields": ["Nope"]}))[0] == 400


@pytest.mark.parametrize("count", [0, 201])
async def test_a_collection_takes_one_to_two_hundred_records(count: int) -> None:
    async with org() as at:
        status, body = await at.rest("POST", "/composite/sobjects", {"records": [contact(LastName="x")] * count})
        assert (status, body[0]["errorCode"]) == (400, "EXCEEDED_ID_LIMIT" if count else "JSON_PARSER_ERROR")
        assert at.sandbox.org.bus.end == 0
        assert len(await sent(at, "POST", *[contact(LastName="x")] * 200)) == 200


@pytest.mark.parametrize("body", [{}, {"records": {}}, {"records": "x"}, [], b"{"])
async def test_what_is_no_collection_is_refused(body: Any) -> None:
    async with org() as at:
        for method in ("POST", "PATCH"):
            headers = {"Content-Type": "application/json"}
            assert (await at.rest(method, "/composite/sobjects", body, headers=headers))[0] == 400
        assert (await at.rest("DELETE", "/composite/sobjects"))[0] == 400


def moment(shift: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + shift))


async def test_deleted_and_updated_tell_the_window_and_how_far_they_reach() -> None:
    async with org(records=50) as at:
        gone, changed, *_ = at.sandbox.org.store.tables["Contact"].order
        await at.change({"op": "delete", "type": "Contact", "id": gone})
        await at.change({"op": "update", "type": "Contact", "id": changed, "values": {"Title": "T"}})
        window = {"start": moment(-120), "end": moment(120)}
        status, body = await at.rest("GET", "/sobjects/Contact/deleted/", params=window)
        assert status == 200
        assert [(r["id"], r["deletedDate"].endswith(".000+0000")) for r in body["deletedRecords"]] == [(gone, True)]
        assert body.keys() == {"deletedRecords", "earliestDateAvailable", "latestDateCovered"}
        status, body = await at.rest("GET", "/sobjects/Contact/updated/", params=window)
        assert (status, body["ids"]) == (200, [changed])
        assert body["latestDateCovered"] < moment(1)
        past = {"start": moment(-86_400), "end": moment(-86_000)}
        assert gone not in (await at.rest("GET", "/sobjects/Contact/deleted", params=past))[1]["deletedRecords"]


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"start": "x", "end": "y"},
        {"start": moment(60), "end": moment(-60)},
        {"start": moment(-40 * 86_400), "end": moment(0)},
        {"start": "0001-01-01T00:00:00Z", "end": moment(0)},
    ],
)
async def test_a_window_that_cannot_be_is_refused(window: dict[str, str]) -> None:
    async with org() as at:
        for name in ("deleted", "updated"):
            assert (await at.rest("GET", f"/sobjects/Contact/{name}/", params=window))[0] == 400


async def test_a_purged_record_is_no_row_any_more_and_only_the_list_of_deleted_ones_names_it() -> None:
    async with org(records=50) as at:
        live, gone, *_ = at.sandbox.org.store.tables["Contact"].order
        at.sandbox.org.store.stamps(at.sandbox.org.schema.objects["Contact"])
        await at.change({"op": "delete", "type": "Contact", "id": gone})
        events = at.sandbox.org.bus.end
        assert (await at.control("POST", "purge", {"type": "Contact", "ids": [live, gone, "003"]}))["purged"] == [gone]
        assert (await at.control("POST", "purge", {"type": "Contact"}))["purged"] == []
        found = await at.rest("GET", "/queryAll", params={"q": f"SELECT Id FROM Contact WHERE Id IN ('{live}', '{gone}') ORDER BY Id"})
        assert [r["Id"] for r in found[1]["records"]] == [live]
        window = {"start": moment(-120), "end": moment(120)}
        assert [r["id"] for r in (await at.rest("GET", "/sobjects/Contact/deleted", params=window))[1]["deletedRecords"]] == [gone]
        assert at.sandbox.org.bus.end == events
        assert (await at.refused("POST", "purge", {"type": "Contact", "ids": "x"}))[0] == 400


async def test_a_late_transaction_is_stamped_before_it_is_seen() -> None:
    async with org() as at:
        before = moment(-100).replace("Z", ".000Z")
        [made] = (await at.change({"op": "create", "type": "Contact", "values": {"LastName": "Late"}}, late=120))["ids"]
        row = at.sandbox.org.store.anywhere(made)
        assert row is not None and row["SystemModstamp"] < before
        for late in (-1, "x", True, 10**6):
            assert (await at.refused("POST", "transaction", {"changes": [{"op": "unselected"}], "late": late}))[0] == 400
