"""Rights lost and given back: what is withheld is an incident, nothing hidden counts as deleted, and the window is read again."""

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from models.errors import SettingsError
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.publish import send
from streams.salesforce.auth import Login
from streams.salesforce.incidents import Incident, read_incidents
from streams.salesforce.positions import read_positions
from streams.salesforce.rest import Rest
from streams.salesforce.rights import sees_all, withheld
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics
from tests.support.salesforce import (
    FIELDS,
    Desk,
    acme,
    arrived,
    change,
    connected,
    envelope_of,
    first_came,
    flow_for,
    inbound,
    org,
    repaired,
    subscribed,
    until,
)

pytestmark = pytest.mark.kafka
READER = {"username": "reader@example.org", "client_id": "reader-key", "client_secret": "reader-secret"}
CONTACT = "/data/ContactChangeEvent"


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(40) as found:
        await found.call("POST", "users", **READER)
        yield found


def reader(url: str, **connection: Any) -> Flow:
    """The flow, logged in as a user whose rights can be changed."""
    auth = {"flow": "client_credentials", "client_id": READER["client_id"], "client_secret": READER["client_secret"]}
    return flow_for(url, auth=auth, **connection)


async def may(desk: Desk, **rights: Any) -> None:
    await desk.call("POST", "users", **READER, **rights)


async def told(settings: Settings, **wanted: str) -> Incident | None:
    found = (await read_incidents(settings)).values()
    return next((i for i in found if i.source == "acme/Contact" and all(getattr(i, n) == v for n, v in wanted.items())), None)


async def keys(settings: Settings) -> set[str]:
    return {(r.key or b"").decode() for r in await inbound(settings, "Contact", bulk=True)}


async def test_view_all_data_taken_away_is_told_and_what_was_withheld_is_read_again_once_it_returns(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, reader(desk.url), rights_seconds=0.3) as task:
        await first_came(settings, desk, task)
        await may(desk, view_all_data=False)
        waiting = await until(lambda: told(settings, state="waiting"), bool, task=task)
        assert waiting.cause == "rights"
        assert "lacks View All Data: /data/ChangeEvents brings no changes of Contact" in waiting.detail
        await desk.fault("drop-connections", variant="held")  # from the next subscription on nothing comes
        await until(desk.state, lambda s: len(s["sessions"]) == 1, task=task)
        await connected(desk, task)
        withheld_one = await desk.create("Withheld")
        gone = await desk.create("Withheld and deleted")
        await desk.delete(gone)
        await may(desk, view_all_data=True)
        [one] = [i for i in await repaired(settings, 2, task) if i.source == "acme/Contact"]
        later = await desk.create("After")
        await until(lambda: arrived(settings, "Contact"), lambda a: later in {record for _, record in a}, task=task)
    assert (one.id, one.state, one.proof[:4]) == (waiting.id, "closed", "run ")
    assert {withheld_one, gone} <= await keys(settings) or {withheld_one, gone} <= {r for _, r in await arrived(settings, "Contact")}


async def test_a_hidden_field_is_named_and_the_window_is_read_again(settings: Settings, desk: Desk) -> None:
    flow = reader(desk.url)
    fields = FIELDS | {"acme/Contact": (*FIELDS["acme/Contact"], "Email", "Account.Name")}
    config = acme(flow)
    rest = Rest("acme", config, Login("acme", config, "."))
    assert (await withheld(rest, config, fields))[0] == {}
    await may(desk, hidden={"Contact": ["Email"]}, closed=["Account"])
    found = (await withheld(rest, config, fields))[0]
    assert "may not see Email of Contact" in found["acme/Contact"]
    assert "may not read Account" in found["acme/Account"]
    await may(desk, hidden={}, closed=[])
    async with subscribed(settings, flow, rights_seconds=0.3) as task:
        await connected(desk, task)
        person = await desk.create("Before")
        await may(desk, hidden={"Contact": ["AccountId"]}, closed=["Account"])
        await until(lambda: told(settings, state="open"), lambda found: found is None, task=task)
        await until(lambda: read_incidents(settings), lambda r: [i.state for i in r.values()] == ["waiting"], task=task)
        await desk.update(person, "meanwhile")
        await may(desk, hidden={}, closed=[])
        [closed] = await repaired(settings, 1, task)
        assert (closed.source, closed.cause) == ("acme/Account", "rights")


async def test_a_channel_of_one_object_needs_the_right_to_all_its_records(desk: Desk) -> None:
    flow = reader(desk.url, channels=[CONTACT, "/data/AccountChangeEvent"])
    config = acme(flow)
    rest = Rest("acme", config, Login("acme", config, "."))
    await may(desk, view_all_data=False, view_all_records=["Contact"])
    assert [await sees_all(rest, sobject, "fetch") for sobject in ("Contact", "Account")] == [True, False]
    assert (await withheld(rest, config, FIELDS))[0] == {"acme/Account": "the user lacks View All Records of Account"}
    assert not await sees_all(rest, "Contact' OR '", "fetch")


async def test_what_a_user_may_not_see_is_not_taken_for_deleted(settings: Settings, desk: Desk) -> None:
    there = (await desk.call("GET", "records?type=Contact"))["records"][0]["Id"]
    async with subscribed(settings, reader(desk.url), rights_seconds=0.3) as task:
        await connected(desk, task)
        await may(desk, view_all_data=False)
        await desk.emit(change(there, second=int(time.time()), kind="GAP_UPDATE"))
        await until(lambda: told(settings, cause="gap", state="waiting"), bool, task=task)
        assert await inbound(settings, "Contact") == []
        await may(desk, view_all_data=True)
        await until(lambda: told(settings, cause="gap", state="closed"), bool, task=task)
    rows = await inbound(settings, "Contact")
    assert [((r.key or b"").decode(), envelope_of(r).gone) for r in rows] == [(there, None)]


async def test_a_snapshot_of_another_user_than_the_subscriber_s_is_refused(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url), rights_seconds=0.2) as task:
        await connected(desk, task)

        async def known() -> bool:
            await desk.create("News")  # the position is stored with the next event
            return any(position.user for position in (await read_positions(settings)).values())

        await until(known, bool, task=task)
    with pytest.raises(SettingsError, match="the subscriber as 005"):
        await run_snapshot(settings, reader(desk.url), "acme/Contact", FIELDS["acme/Contact"])
    assert (await run_snapshot(settings, flow_for(desk.url), "acme/Contact", FIELDS["acme/Contact"])).state == "done"


async def test_a_record_purged_while_its_delete_was_withheld_is_gone_and_no_other(settings: Settings, desk: Desk) -> None:
    records = [r["Id"] for r in (await desk.call("GET", "records?type=Contact"))["records"] if not r["IsDeleted"]]
    purged = "003Qx00000Ke4RtIAJ"

    async def living(source: str) -> set[str]:
        return {*records[:10], purged} if source == "acme/Contact" else set()

    async with subscribed(settings, flow_for(desk.url), living=living) as task:
        await connected(desk, task)
        await desk.emit(change("000000000000000AAA", second=int(time.time()), kind="GAP_OVERFLOW"))
        [closed] = await repaired(settings, 1, task)
    assert (closed.gone, "1 that we held are in the org no more" in closed.proof) == (1, True)
    [row] = await inbound(settings, "Contact")
    assert ((row.key or b"").decode(), envelope_of(row).gone is not None, envelope_of(row).reason) == (purged, True, "repair")


async def test_an_incident_opened_by_another_process_is_repaired_without_a_restart(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.salesforce.repair.LOOK_SECONDS", 0.2)
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        await send(settings, [Incident("x", "acme/Contact", "log lost", "made up", opened=1).output(Topics(settings.installation))])
        [closed] = await repaired(settings, 1, task)
    assert closed.rows == len({orjson.loads(r.value or b"")["Id"] for r in await read_all(settings, _bulk(settings))})


def _bulk(settings: Settings) -> str:
    return Topics(settings.installation).inbound("acme/Contact", bulk=True)
