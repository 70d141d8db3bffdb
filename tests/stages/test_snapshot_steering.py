"""What is asked of a run is obeyed within seconds, also after a kill; it holds for what is behind; one process works on it."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import FatalError, SettingsError
from models.settings import Settings
from streams.engine.stage import Output
from streams.publish import send
from streams.salesforce import brake, bulk, keeper
from streams.salesforce import jobs as jobs_module
from streams.salesforce.keeper import others
from streams.salesforce.retry import ended
from streams.salesforce.runs import Run, ask, group_runs, parse_run, parse_wish, snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.status import collect
from streams.topics import Topics
from tests.stages.test_snapshot_run import contacts, rows
from tests.support.salesforce import FIELDS, Desk, flow_for, inbound, org, subscribed, until
from tests.support.subscriber_process import end, start

pytestmark = pytest.mark.kafka
SOURCE = "acme/Contact"


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with org(200) as found:
        yield found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "CHUNK", 10)
    monkeypatch.setattr(bulk, "PART", 20)
    monkeypatch.setattr(jobs_module, "LOOK", 0.05)
    monkeypatch.setattr(keeper, "BEAT", 0.4)


async def only_run(settings: Settings) -> Run:
    [run] = (await snapshot_runs(settings)).values()
    return run


async def state(settings: Settings, *wanted: str, task: Any = None) -> Run:
    found: dict[str, Run] = await until(
        lambda: snapshot_runs(settings), lambda runs: any(r.state in wanted for r in runs.values()), task=task
    )
    return next(run for run in found.values() if run.state in wanted)


def reading(settings: Settings, desk: Desk, **how: Any) -> "asyncio.Task[Run]":
    return asyncio.create_task(run_snapshot(settings, flow_for(desk.url, page=10), SOURCE, FIELDS[SOURCE], **how))


async def test_a_paused_run_reads_nothing_until_it_is_told_to_go_on(settings: Settings, desk: Desk) -> None:
    await desk.fault("slow", variant="all", times=0, seconds=0.15)
    work = reading(settings, desk, via="bulk")
    run = await state(settings, "running", task=work)
    await ask(settings, run.run, "pause")
    await state(settings, "paused", task=work)
    before = await rows(settings)
    await asyncio.sleep(1.5)  # more than a beat and a look at what was asked
    assert await rows(settings) == before
    assert len(before) < len(await contacts(desk))
    shown = await collect(settings, flow_for(desk.url))
    assert [(s.source, s.state, s.worked, s.note) for s in shown.snapshots] == [(SOURCE, "paused", True, "paused")]
    await ask(settings, run.run, "go")
    assert (await work).state == "done"
    assert await rows(settings) == Counter(await contacts(desk))


async def test_a_stopped_run_ends_for_good_leaves_no_job_and_the_same_command_begins_a_new_one(settings: Settings, desk: Desk) -> None:
    await desk.fault("slow", variant="all", times=0, seconds=0.15)
    work = reading(settings, desk, via="bulk")
    run = await state(settings, "running", task=work)
    await ask(settings, run.run, "stop")
    assert (await work).state == "stopped"
    assert desk.sandbox.bulk.jobs == {}
    await desk.call("DELETE", "faults")
    again = await reading(settings, desk, via="bulk")
    assert (again.state, again.run != run.run) == ("done", True)


async def test_a_run_that_was_killed_while_paused_stays_paused_until_somebody_says_otherwise(
    settings: Settings, desk: Desk, tmp_path: Path
) -> None:
    flow = flow_for(desk.url, page=10)
    await desk.fault("slow", variant="rest", times=0, seconds=0.3)
    first = await start(settings, flow, "snapshot", source=SOURCE, log=tmp_path / "log")
    run = await state(settings, "running")
    await ask(settings, run.run, "pause")
    await state(settings, "paused")
    assert await end(first, kill=True) == -9
    await desk.call("DELETE", "faults")
    by_id = reading(settings, desk, run_id=run.run)  # as a subscriber would after its restart
    await until(lambda: only_run(settings), lambda r: r.owner.endswith(f":{os.getpid()}"), task=by_id)
    assert (await only_run(settings)).state == "paused"
    await ask(settings, run.run, "go")
    assert (await by_id).state == "done"
    assert await rows(settings) == Counter(await contacts(desk))


@pytest.mark.parametrize("via", ["rest", "bulk"])
async def test_a_run_that_the_limits_guard_lets_wait_says_so(settings: Settings, desk: Desk, via: str) -> None:
    await desk.fault("slow", variant="all", times=0, seconds=0.1)
    told: list[str] = []
    work = reading(settings, desk, via=via, progress=lambda run: told.append(run.note))
    await state(settings, "running", task=work)
    await desk.call("POST", "settings", daily_requests=8)
    try:
        shown = await until(
            lambda: collect(settings, flow_for(desk.url)),
            lambda s: s.snapshots[0].note.startswith("waits: acme: calls for snapshot wait"),
            task=work,
        )
    finally:
        await ended(work)
    assert shown.snapshots[0].note in told


@pytest.mark.parametrize("via", ["rest", "bulk"])
async def test_a_run_that_the_limits_guard_lets_wait_is_paused_and_stopped_as_any_other(settings: Settings, desk: Desk, via: str) -> None:
    await desk.fault("slow", variant="all", times=0, seconds=0.1)
    work = reading(settings, desk, via=via)
    run = await state(settings, "running", task=work)
    await desk.call("POST", "settings", daily_requests=8)
    await until(lambda: only_run(settings), lambda r: r.note.startswith("waits: "), task=work)  # for minutes
    await ask(settings, run.run, "pause")
    paused = await state(settings, "paused", task=work)
    await ask(settings, run.run, "stop")
    ended = await work
    assert (ended.state, ended.rows) == ("stopped", paused.rows)
    assert len(await rows(settings)) == ended.rows


async def test_a_run_of_a_dead_process_is_stopped_though_salesforce_is_away(settings: Settings, desk: Desk) -> None:
    await send(settings, [Run("r", SOURCE, state="running", rows=10).output(Topics(settings.installation))])
    await desk.fault("token-endpoint-down", times=0)
    await ask(settings, "r", "stop")
    assert (await reading(settings, desk, run_id="r")).state == "stopped"


async def test_a_second_start_while_one_runs_is_refused_and_leaves_the_first_alone(settings: Settings, desk: Desk, tmp_path: Path) -> None:
    await desk.fault("slow", variant="rest", times=0, seconds=0.3)
    first = await start(settings, flow_for(desk.url, page=10), "snapshot", source=SOURCE, log=tmp_path / "log")
    await state(settings, "running")
    with pytest.raises(SettingsError, match="works on run snapshot-"):
        await reading(settings, desk)
    await desk.call("DELETE", "faults")
    done = await state(settings, "done")
    assert await first.wait() == 0
    assert await rows(settings) == Counter(await contacts(desk))
    assert done.owner


async def test_whose_process_is_gone_or_says_nothing_any_more_is_nobodys(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = Topics(settings.installation)
    for owner, expected in ((f"{socket.gethostname()}:999999999", False), ("elsewhere:1", False), ("", False)):
        run = Run("r", SOURCE, state="running", owner=owner)
        await send(settings, [run.output(topics)])
        assert await others(settings, (await snapshot_runs(settings))["r"]) is expected
    looking = asyncio.create_task(others(settings, (await snapshot_runs(settings))["r"]))
    assert not await looking
    run = Run("r", SOURCE, state="running", owner="elsewhere:1")
    await send(settings, [run.output(topics)])
    known = (await snapshot_runs(settings))["r"]
    monkeypatch.setattr(keeper, "BEAT", 4.0)  # time enough for a slow machine to beat
    looking = asyncio.create_task(others(settings, known))
    await asyncio.sleep(0.05)
    await send(settings, [run.output(topics)])  # it beats
    assert await looking


async def test_a_run_holds_while_what_it_feeds_is_behind_and_goes_on_below(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brake, "PROCESS_RECORDS", 40)
    monkeypatch.setattr(brake, "EVERY", 0.1)
    await desk.fault("slow", variant="rest", times=0, seconds=0.2)
    work = reading(settings, desk)
    runs = await until(lambda: snapshot_runs(settings), lambda found: any("held: " in r.note for r in found.values()), task=work)
    [held] = runs.values()
    assert "records of acme/Contact wait to be processed" in held.note
    assert held.rows < len(await contacts(desk))
    monkeypatch.setattr(brake.Brake, "_judge", lambda self, lags: setattr(self, "why", ""))  # as a worker would, in time
    assert (await work).state == "done"


@pytest.mark.parametrize(("lag", "held"), [(40, False), (41, True), (21, True), (20, False)])
async def test_a_target_that_is_behind_holds_too_until_below_half(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, lag: int, held: bool
) -> None:
    monkeypatch.setattr(brake, "TARGET_RECORDS", 40)
    made = brake.Brake(settings, flow_for("http://localhost"), SOURCE)
    made.why = "held" if lag < 40 else ""
    made._judge({Topics(settings.installation).writes("warehouse", bulk=True): lag})
    assert bool(made.why) is held
    assert not held or "writes wait for warehouse" in made.why


async def test_several_sources_are_one_command_that_goes_on_with_what_is_left(settings: Settings) -> None:
    both = ["acme/Account", "acme/Contact"]
    planned = await group_runs(settings, both, "", "")
    assert [run.source for run in planned] == both
    assert [run.run for run in await group_runs(settings, both, "", "")] == [run.run for run in planned]
    done = Run(planned[0].run, both[0], state="done", group=planned[0].group)
    await send(settings, [done.output(Topics(settings.installation))])
    assert [run.run for run in await group_runs(settings, both, "", "")] == [planned[1].run]
    assert not {run.run for run in await group_runs(settings, both, "Id != null", "")} & {run.run for run in planned}


async def test_the_first_start_reads_parents_before_children(settings: Settings, desk: Desk) -> None:
    async with subscribed(settings, flow_for(desk.url, page=10), snapshot=True) as task:
        await until(
            lambda: snapshot_runs(settings), lambda found: len(found) == 2 and all(r.state == "done" for r in found.values()), task=task
        )
    first = {name: min(r.timestamp for r in await inbound(settings, name, bulk=True)) for name in ("Account", "Contact")}
    last = max(r.timestamp for r in await inbound(settings, "Account", bulk=True))
    assert last <= first["Contact"]


async def test_what_changed_meanwhile_explains_another_count_and_nothing_else_does(
    settings: Settings, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = await reading(settings, desk)
    assert (quiet.rows, quiet.counted, quiet.changed) == (quiet.total, quiet.total, -1)
    await desk.fault("slow", variant="rest", times=0, seconds=0.1)
    work = reading(settings, desk)
    await until(lambda: snapshot_runs(settings), lambda found: any(r.state == "running" and r.rows >= 30 for r in found.values()))
    gone = sorted(await contacts(desk))[:3]  # behind the reader: they were read
    for id in gone:
        await desk.delete(id)
    done = await work
    assert (done.rows, done.counted, done.changed) == (quiet.rows, quiet.rows - 3, 3)


@pytest.mark.parametrize("value", [b"", b"[]", b'{"kind": "snapshot"}', b'{"kind": "snapshot", "run": 1', b"\x00"])
def test_a_damaged_run_is_said_and_a_damaged_wish_is_none(value: bytes) -> None:
    assert parse_wish(value) == "go"
    with pytest.raises(FatalError, match="damaged"):
        parse_run(b"r", value)


async def test_a_record_of_another_kind_in_the_topic_of_runs_is_left_alone(settings: Settings) -> None:
    await send(settings, [Output(Topics(settings.installation).runs, b"x", b'{"kind": "replay"}')])
    await ask(settings, "x", "stop")
    assert await snapshot_runs(settings) == {}
