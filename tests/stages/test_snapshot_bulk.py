"""A snapshot by a Bulk job: the same rows as by REST, whatever befalls the job, and no job left behind."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.errors import PermanentError, SettingsError
from models.settings import Settings
from streams.publish import send
from streams.salesforce import bulk, snapshot
from streams.salesforce import jobs as jobs_module
from streams.salesforce.auth import Login
from streams.salesforce.bulk import Bulk
from streams.salesforce.positions import Position, output
from streams.salesforce.rest import Rest, json_of
from streams.salesforce.runs import snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics
from tests.support.salesforce import Desk, acme, envelope_of, flow_for, inbound, org, until
from tests.support.subscriber_process import start

pytestmark = pytest.mark.kafka
SOURCE = "acme/Contact"
FEW = ("Id", "IsDeleted", "SystemModstamp", "Name", "OwnerId")
FIELDS = ("Id", "IsDeleted", "SystemModstamp", "Name", "Description", "HasOptedOutOfEmail", "CreatedDate", "AccountId", "Account.Name",
          "Account.AnnualRevenue", "Account.NumberOfEmployees", "Owner.Email")  # fmt: skip


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(400) as found:
        yield found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and transactions that a few rows fill."""
    monkeypatch.setattr(bulk, "PART", 50)
    monkeypatch.setattr(jobs_module, "CHUNK", 20)
    monkeypatch.setattr(jobs_module, "LOOK", 0.05)


async def contacts(desk: Desk) -> set[str]:
    found = await desk.call("GET", "records?type=Contact")
    return {r["Id"] for r in found["records"] if not r["IsDeleted"]}


async def rows(settings: Settings, run: str = "") -> Counter[str]:
    """How often each record is in the bulk lane."""
    records = await inbound(settings, "Contact", bulk=True)
    return Counter((r.key or b"").decode() for r in records if not run or envelope_of(r).run == run)


def jobs(desk: Desk) -> int:
    return desk.sandbox.org.counts["bulk jobs"]


def plain(value: Any) -> Any:
    """Without what only REST says."""
    return {n: plain(v) for n, v in value.items() if n != "attributes"} if isinstance(value, dict) else value


async def read(settings: Settings, desk: Desk, **how: Any) -> Any:
    return await run_snapshot(settings, flow_for(desk.url), "acme/Contact", FIELDS, **({"via": "bulk"} | how))


async def test_of_so_many_records_a_job_gives_the_rows_of_rest_with_where_the_channel_stood_when_it_was_made(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(settings, [output(Topics(settings.installation), "acme", "/data/ChangeEvents", Position(2, 4711, 9, "o", "i", 1, "new"))])
    await desk.create('"quoted", and\r\ntwo lines', "Contact")
    monkeypatch.setattr(snapshot, "BULK_FROM", len(await contacts(desk)))
    by_job = await read(settings, desk, via=None)
    monkeypatch.setattr(snapshot, "BULK_FROM", by_job.total + 1)
    by_rest = await read(settings, desk, via=None)
    found: dict[str, dict[str, Any]] = {by_job.run: {}, by_rest.run: {}}
    for record in await inbound(settings, "Contact", bulk=True):
        envelope = envelope_of(record)
        assert (envelope.began, envelope.epoch) == (4711, 2)
        found[envelope.run or ""][(record.key or b"").decode()] = plain(orjson.loads(record.value or b""))
    assert set(found[by_job.run]) == await contacts(desk)
    assert found[by_job.run] == found[by_rest.run]
    assert desk.sandbox.bulk.jobs == {}
    assert by_rest.way == "rest"
    assert (by_job.way, by_job.rows, by_job.total, by_job.counted) == ("bulk", by_rest.rows, by_rest.rows, by_rest.rows)


async def die(settings: Settings, desk: Desk, folder: Path, at: str, after: int) -> int:
    """A run by a process of its own that is killed at a moment of its own; its exit status."""
    point = {"at": at, "stage": "snapshot", "after": after, "do": "kill"}
    first = await start(
        settings, flow_for(desk.url), "snapshot", source=SOURCE, log=folder / "log", part=50, chunk=20, via="bulk", points=[point]
    )
    return await first.wait()


async def test_a_killed_run_finds_its_job_again_and_goes_on_at_its_locator(settings: Settings, desk: Desk, tmp_path: Path) -> None:
    """Parts of 50 rows, 20 in a transaction: after the fifth, two fifths of the second part's rows are in Kafka and the last are not."""
    assert await die(settings, desk, tmp_path, "rows-kept", 5) == -9
    [half] = (await snapshot_runs(settings)).values()
    assert (half.state, half.rows, half.taken, bool(half.locator)) == ("running", 90, 40, True)
    assert len(await rows(settings)) == 90
    whole = await run_snapshot(settings, flow_for(desk.url), SOURCE, FEW, via="bulk")
    assert (whole.run, whole.state, whole.job) == (half.run, "done", half.job)
    assert await rows(settings) == Counter(await contacts(desk))
    assert (jobs(desk), desk.sandbox.bulk.jobs) == (1, {})


async def test_a_job_whose_maker_died_before_its_id_was_kept_is_found_and_deleted_and_nobody_elses(
    settings: Settings, desk: Desk, tmp_path: Path
) -> None:
    config = acme(flow_for(desk.url))
    rest = Rest("acme", config, Login("acme", config))
    ours = Bulk(rest, "snapshot")
    assert await die(settings, desk, tmp_path, "job-made", 1) == -9
    asked = {"operation": "query", "query": "SELECT Id FROM Contact"}
    kept = [await ours.make("SELECT Id FROM Account"), await ours.make("SELECT Id FROM Contact", deleted=True)]
    foreign = await rest.send("jobs/query", "snapshot", json_of, method="POST", json=asked)
    [half] = (await snapshot_runs(settings)).values()
    assert half.making and not half.job
    assert jobs(desk) == 4
    whole = await run_snapshot(settings, flow_for(desk.url), SOURCE, FEW, via="bulk")
    assert (whole.run, whole.state, jobs(desk)) == (half.run, "done", 5)
    assert set(desk.sandbox.bulk.jobs) == {foreign["id"], *(job.id for job in kept)}
    assert await rows(settings) == Counter(await contacts(desk))


@pytest.mark.parametrize("loss", ["bulk-locator", "bulk-failed", "deleted"])
async def test_a_job_that_is_lost_is_made_anew_with_a_later_began(settings: Settings, desk: Desk, loss: str) -> None:
    async def stand(at: int) -> None:
        await send(settings, [output(Topics(settings.installation), "acme", "/data/ChangeEvents", Position(1, at, 9, "o", "i", 1, "new"))])

    await stand(100)
    if loss == "deleted":
        await desk.fault("bulk-stuck")
        work = asyncio.create_task(read(settings, desk))
        run = await until(lambda: snapshot_runs(settings), lambda found: any(r.job for r in found.values()), task=work)
        await stand(200)
        desk.sandbox.bulk.jobs.pop(next(iter(run.values())).job)
        await desk.call("DELETE", "faults?name=bulk-stuck")
        done = await work
    else:
        await desk.fault(loss)
        done = await read(settings, desk)
    assert (done.state, done.rows, done.way, jobs(desk)) == ("done", len(await contacts(desk)), "bulk", 2)
    assert set(await rows(settings)) == await contacts(desk)
    last = [envelope_of(r).began for r in await inbound(settings, "Contact", bulk=True)]
    assert max(filter(None, last)) == done.began == (200 if loss == "deleted" else 100)


async def test_after_too_many_lost_jobs_rest_takes_over_unless_bulk_was_asked_for(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "BULK_FROM", 1)
    await desk.fault("bulk-failed", times=0)
    with pytest.raises(PermanentError, match=r"no Bulk job .* Retried more than fifteen times"):
        await read(settings, desk)
    assert [r.state for r in (await snapshot_runs(settings)).values()] == ["failed"]
    done = await read(settings, desk, via=None)
    assert (done.state, done.way, done.rows) == ("done", "rest", len(await contacts(desk)))
    assert await rows(settings, done.run) == Counter(await contacts(desk))


@pytest.mark.parametrize("hindrance", ["bulk-unfit", "bulk-jobs", "bulk-storage"])
async def test_what_bulk_cannot_read_now_is_read_by_rest(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch, hindrance: str
) -> None:
    monkeypatch.setattr(snapshot, "BULK_FROM", 1)
    await (desk.fault(hindrance) if hindrance == "bulk-unfit" else desk.fault("daily-limit", variant=hindrance))
    done = await read(settings, desk, via=None)
    assert (done.state, done.way, jobs(desk)) == ("done", "rest", 0)
    assert done.why.startswith("read by REST: ")
    assert await rows(settings) == Counter(await contacts(desk))


@pytest.mark.parametrize(("most", "used", "way"), [(20, 17, "bulk"), (20, 18, "rest")])
async def test_the_last_bulk_jobs_of_the_day_are_left_to_others(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch, most: int, used: int, way: str
) -> None:
    monkeypatch.setattr(snapshot, "BULK_FROM", 1)
    await desk.call("POST", "settings", daily_bulk_jobs=most)
    desk.sandbox.org.limits.spend("DailyBulkV2QueryJobs", used)
    done = await read(settings, desk, via=None)
    assert (done.state, done.way) == ("done", way)
    assert done.why == ("read by REST: the org has 2 of 20 DailyBulkV2QueryJobs left today" if way == "rest" else "")
    assert await rows(settings) == Counter(await contacts(desk))


async def test_an_aborted_job_ends_the_run_because_somebody_wanted_it(settings: Settings, desk: Desk) -> None:
    await desk.fault("bulk-stuck")
    work = asyncio.create_task(read(settings, desk))
    run = await until(lambda: snapshot_runs(settings), lambda found: any(r.job for r in found.values()))
    desk.sandbox.bulk.jobs[next(iter(run.values())).job].state = "Aborted"
    with pytest.raises(PermanentError, match="aborted"):
        await work


async def test_faults_of_the_wire_and_parts_of_changing_size_lose_and_double_nothing(settings: Settings, desk: Desk) -> None:
    await desk.fault("page-size")
    await desk.fault("cut-results", times=2)
    await desk.fault("html-200", variant="bulk", times=2)
    await desk.fault("empty-body", variant="bulk", times=1)
    work = asyncio.create_task(read(settings, desk))
    await desk.fault("expire-token")
    assert (await work).state == "done"
    assert await rows(settings) == Counter(await contacts(desk))


@pytest.mark.parametrize("via", ["rest", "bulk"])
async def test_a_condition_and_fields_narrow_what_is_read_and_said(settings: Settings, desk: Desk, via: str) -> None:
    there = (await desk.call("GET", "records?type=Contact"))["records"]
    named = {r["Id"] for r in there if r["LastName"] == "O'Farrow" or r["Title"] is None}
    assert 0 < len(named) < len(there)
    where = "LastName = 'O\\'Farrow' OR Title = null"
    run = await read(settings, desk, via=via, where=where, only=["Name"])
    assert (run.rows, run.total, run.counted) == (len(named),) * 3
    assert set(await rows(settings)) == named
    for record in await inbound(settings, "Contact", bulk=True):
        assert set(orjson.loads(record.value or b"")) == {"attributes", "Id", "IsDeleted", "SystemModstamp", "Name"}


async def test_times_of_a_condition_bound_it_to_the_second(settings: Settings, desk: Desk) -> None:
    there = sorted((r["CreatedDate"], r["Id"]) for r in (await desk.call("GET", "records?type=Contact"))["records"])
    begin, end = there[40][0], there[90][0]
    run = await read(settings, desk, via="rest", where=f"CreatedDate >= {begin} AND CreatedDate < {end}")
    assert set(await rows(settings)) == {id for made, id in there if begin <= made < end}
    assert run.rows > 0


@pytest.mark.parametrize(("how", "kind"), [({"where": "Nope = 1"}, PermanentError), ({"only": ["Shoe_Size__c"]}, SettingsError)])
async def test_what_does_not_exist_is_refused_with_its_name(settings: Settings, desk: Desk, how: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"Nope|Shoe_Size__c"):
        await read(settings, desk, **how)


async def test_an_empty_result_is_done_at_once(settings: Settings) -> None:
    async with org(0) as empty:
        run = await read(settings, empty)
    assert (run.state, run.rows, run.counted) == ("done", 0, 0)
