"""A snapshot into the bulk lane: every record once, with where the channel stood, also after kill -9."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from models.envelope import Kind, Reason
from models.errors import PermanentError, SettingsError
from models.settings import Settings
from streams.publish import send
from streams.salesforce import limits
from streams.salesforce.positions import Position, output
from streams.salesforce.runs import snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics
from tests.support.salesforce import FIELDS, Desk, envelope_of, flow_for, inbound, org
from tests.support.subscriber_process import start

pytestmark = pytest.mark.kafka
RECORDS = 400


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(RECORDS) as found:
        yield found


async def contacts(desk: Desk) -> set[str]:
    found = await desk.call("GET", "records?type=Contact")
    return {r["Id"] for r in found["records"] if not r["IsDeleted"]}


async def rows(settings: Settings) -> Counter[str]:
    return Counter((r.key or b"").decode() for r in await inbound(settings, "Contact", bulk=True))


async def test_every_live_record_is_in_the_bulk_lane_once_with_where_the_channel_stood(settings: Settings, desk: Desk) -> None:
    await send(settings, [output(Topics(settings.installation), "acme", "/data/ChangeEvents", Position(2, 4711, 9, "o", "i", 1, "new"))])
    seen: list[tuple[int, int]] = []
    run = await run_snapshot(
        settings, flow_for(desk.url), "acme/Contact", FIELDS["acme/Contact"], progress=lambda r: seen.append((r.rows, r.total))
    )
    wanted = await contacts(desk)
    assert await rows(settings) == Counter(wanted)
    assert (run.state, run.rows, run.total, seen[-1]) == ("done", len(wanted), len(wanted), (len(wanted), len(wanted)))
    for record in await inbound(settings, "Contact", bulk=True):
        found = envelope_of(record)
        assert (found.kind, found.reason, found.run, found.began, found.epoch) == (Kind.ROW, Reason.SNAPSHOT, run.run, 4711, 2)
        assert set(FIELDS["acme/Contact"]) <= set(orjson.loads(record.value or b""))
    assert (await snapshot_runs(settings))[run.run] == run or (await snapshot_runs(settings))[run.run].state == "done"


async def test_a_killed_snapshot_goes_on_behind_the_last_page_without_losing_or_doubling(
    settings: Settings, desk: Desk, tmp_path: Path
) -> None:
    flow = flow_for(desk.url, page=50)
    point = {"at": "rows-kept", "stage": "snapshot", "after": 2, "do": "kill"}
    first = await start(settings, flow, "snapshot", source="acme/Contact", log=tmp_path / "log", points=[point])
    assert await first.wait() == -9
    assert 0 < len(await rows(settings)) < len(await contacts(desk))
    run = await run_snapshot(settings, flow, "acme/Contact", FIELDS["acme/Contact"])
    assert (run.state, run.rows) == ("done", len(await contacts(desk)))
    assert await rows(settings) == Counter(await contacts(desk))
    assert len(await snapshot_runs(settings)) == 1


async def test_a_stopped_snapshot_says_how_far_it_is_and_goes_on(settings: Settings, desk: Desk) -> None:
    stop = asyncio.Event()
    flow, fields = flow_for(desk.url, page=50), FIELDS["acme/Contact"]
    half = await run_snapshot(settings, flow, "acme/Contact", fields, stop=stop, progress=lambda r: stop.set() if r.rows >= 100 else None)
    assert half.state == "running"
    assert half.rows < len(await contacts(desk))
    whole = await run_snapshot(settings, flow, "acme/Contact", fields)
    assert (whole.run, whole.state) == (half.run, "done")
    assert await rows(settings) == Counter(await contacts(desk))


async def test_a_field_that_does_not_exist_ends_the_run_and_says_which(settings: Settings, desk: Desk) -> None:
    with pytest.raises(PermanentError, match="Shoe_Size__c"):
        await run_snapshot(settings, flow_for(desk.url), "acme/Contact", ["Id", "Shoe_Size__c"])
    [run] = (await snapshot_runs(settings)).values()
    assert run.state == "failed"
    assert "Shoe_Size__c" in run.why


@pytest.mark.parametrize("source", ["acme/Lead", "acme", "other/Contact", "", "acme/Contact WHERE"])
async def test_a_source_that_no_route_reads_is_refused(settings: Settings, desk: Desk, source: str) -> None:
    with pytest.raises(SettingsError, match="no route reads"):
        await run_snapshot(settings, flow_for(desk.url), source, ["Id"])


async def test_an_org_without_such_records_is_done_at_once(settings: Settings) -> None:
    async with org(0) as empty:
        run = await run_snapshot(settings, flow_for(empty.url), "acme/Contact", FIELDS["acme/Contact"])
    assert (run.state, run.rows) == ("done", 0)


async def test_faults_of_rest_are_waited_out(settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONCURRENT_SECONDS", 0.3)
    await desk.call("POST", "settings", page_size=30)  # several replies a page
    await desk.fault("html-503", variant="rest", times=2)
    await desk.fault("concurrent-limit", times=2)
    await desk.fault("rest-error", variant="SERVER_UNAVAILABLE", times=2)
    await desk.fault("rest-error", variant="UNKNOWN_EXCEPTION", times=2)
    await desk.fault("stalled", variant="rest", times=2, seconds=0.3)
    stop = asyncio.Event()
    flow = flow_for(desk.url, page=100)
    work = asyncio.create_task(run_snapshot(settings, flow, "acme/Contact", FIELDS["acme/Contact"], stop=stop))
    await desk.fault("expire-token")
    run = await work
    assert run.state == "done"
    assert await rows(settings) == Counter(await contacts(desk))
    assert (await desk.call("GET", "faults"))["armed"] == [], "each of them struck"
