"""`check` says what a canary lacks in the org, before a subscription is taken for deaf because of it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.check_canary import canary_misfit
from deploy.check_org import Org
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, USERNAME
from models.flow import Canary, Salesforce
from streams.salesforce.auth import Login
from streams.salesforce.rest import Rest
from tests.support.salesforce import Desk, org

OBJECTS = {"Canary__e": {}, "Lead": {"Beat__c": "string", "Score__c": "double"}}


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org() as found:
        await found.call("POST", "objects", **OBJECTS)
        yield found


async def wrong(desk: Desk, **canary: Any) -> str:
    """What is, "" where nothing is."""
    auth = {"flow": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    config = Salesforce.model_validate({"type": "salesforce", "url": desk.url, "auth": auth})
    rest = Rest("acme", config, Login("acme", config))
    found = await canary_misfit(Canary.model_validate(canary), Org("acme", rest.describe), rest)
    assert found is None or all(found)
    return found[0] if found else ""


async def test_what_the_org_has_not_is_told(desk: Desk) -> None:
    values = {"LastName": "Canary", "Company": "Headrace"}
    lead = str((await desk.call("POST", "transaction", changes=[{"op": "create", "type": "Lead", "values": values}]))["ids"][0])
    here = f"Lead/{lead}"
    assert await wrong(desk, event="Canary__e") == ""
    assert "knows no platform event Nobody__e" in await wrong(desk, event="Nobody__e")
    assert await wrong(desk, record=here, field="Beat__c") == await wrong(desk, record=f"Lead/{lead[:15]}", field="Beat__c") == ""
    assert "knows no sObject Nobody__c" in await wrong(desk, record=f"Nobody__c/{lead}", field="Beat__c")
    assert "no field Bet__c" in await wrong(desk, record=here, field="Bet__c")
    assert "cannot hold what the canary writes" in await wrong(desk, record=here, field="Score__c")
    assert "may not change Lead.Name" in await wrong(desk, record=here, field="Name")
    for id in ("00QQx0000000009AAA", "00QQx000000zzzz", "003000000000000"):  # wrong sum, nobody's, of another sObject
        assert f"no record {id}" in await wrong(desk, record=f"Lead/{id}", field="Beat__c")
    await desk.call("POST", "transaction", changes=[{"op": "delete", "type": "Lead", "id": lead}])
    assert f"no record {lead}" in await wrong(desk, record=here, field="Beat__c")
    await desk.call("POST", "users", username=USERNAME, hidden={"Lead": ["Beat__c"]})
    assert "no field Beat__c, or hides it" in await wrong(desk, record=here, field="Beat__c")
