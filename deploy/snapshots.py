"""`headrace snapshot`: reads sources whole, parents before children, or tells a run to pause, to go on, to stop.

Ctrl-C and SIGTERM leave a run where it is, and the same command goes on from there; only `--stop` ends it for good.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.context import choose_connection, choose_source, read_all, rest_of
from deploy.runs import STOPPED_EARLY, Show, answer, run_with_bar
from models.errors import PermanentError, SettingsError
from models.flow import Flow
from models.settings import Settings
from streams.log import set_up_logging
from streams.salesforce.conditions import check_condition
from streams.salesforce.keeper import others
from streams.salesforce.parents import order_of
from streams.salesforce.runs import Run, Want, Way, ask, group_runs, snapshot_runs
from streams.salesforce.snapshot import run_snapshot
from streams.topics import Topics, ensure

OBEY_SECONDS = 20.0
"""So long a living process may take to obey: it finishes what it has in hand."""
DOING: dict[Want, str] = {"pause": "paused", "go": "going on", "stop": "stopped"}


def snapshot(flow_path: Path | None, named: Sequence[str], where: str | None, fields: str | None, via: Way | None, as_json: bool) -> int:
    """0 when every record was read, 1 when it was stopped before or records are missing that nothing explains."""
    settings, flow = read_all(flow_path)
    sources = sources_of(flow, named)
    condition = check_condition(where) if where is not None else ""
    only = [name.strip() for name in fields.split(",")] if fields is not None else []
    if fields is not None and (len(sources) > 1 or not all(only)):
        raise SettingsError("--fields names columns of one source, as in: headrace snapshot acme/Contact --fields Email,Title")
    started = time.monotonic()

    async def work(settings: Settings, stop: asyncio.Event, show: Show) -> list[Run]:
        if len(sources) == 1:
            return [await _read(settings, flow, sources[0], show, stop, where=condition, only=only, via=via)]
        done: list[Run] = []
        failed: PermanentError | None = None
        for run in await group_runs(settings, await _in_order(settings, flow, sources), condition, via or ""):
            if not stop.is_set():
                await ask(settings, run.run, "go")
                try:
                    done.append(await _read(settings, flow, run.source, show, stop, run_id=run.run))
                except PermanentError as error:
                    failed = failed or PermanentError(f"{run.source}: {error.reason}")
        for run in done if failed else ():
            _tell(run, time.monotonic() - started, as_json)
        if failed:
            raise failed
        return done

    runs = run_with_bar("snapshot", settings, flow, sources[0], work)
    for run in runs:
        _tell(run, time.monotonic() - started, as_json)
    return 0 if len(runs) and all(run.state == "done" and unexplained(run) == 0 for run in runs) else STOPPED_EARLY


def steer(flow_path: Path | None, named: Sequence[str], want: Want, as_json: bool) -> int:
    """Ask it of the open runs that are named by id, source or connection; 0 when they obeyed, 1 when one did not in time."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")

    async def main() -> list[Run]:
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        found = [run for run in (await snapshot_runs(settings)).values() if run.open and (want != "stop" or run.by != "repair")]
        chosen = [run for run in found if {run.run, run.source, run.source.partition("/")[0]} & set(named)]
        if not chosen:
            raise SettingsError(f"no snapshot of {', '.join(named)} is under way: {', '.join(r.run for r in found) or 'none is'}")
        return chosen

    chosen = asyncio.run(main())
    obeyed = [_steered(settings, flow, run, want, as_json) for run in chosen]
    return 0 if all(obeyed) else STOPPED_EARLY


def _steered(settings: Settings, flow: Flow, run: Run, want: Want, as_json: bool) -> bool:
    """Whether the run is as it was asked to be. What no process works on is stopped, or gone on with, here."""

    async def told() -> tuple[bool, Run]:
        await ask(settings, run.run, want)
        alive, until = await others(settings, run), time.monotonic() + OBEY_SECONDS
        while True:
            now = (await snapshot_runs(settings))[run.run]
            if _obeys(now, want) or not alive or time.monotonic() > until:
                return alive, now
            await asyncio.sleep(0.3)

    async def work(settings: Settings, stop: asyncio.Event, show: Show) -> Run:
        return await _read(settings, flow, run.source, show, stop, run_id=run.run)

    alive, now = asyncio.run(told())
    here = not alive and now.open and (want == "stop" or (want == "go" and run.by == "command"))
    if here:
        now = run_with_bar("snapshot", settings, flow, run.source, work)
    if here and want == "go":
        _tell(now, 0.0, as_json)
        return now.state == "done"
    done = _obeys(now, want) or not alive
    said = f"{run.source}: run {run.run} " + (
        DOING[want] if done else f"has not obeyed within {OBEY_SECONDS:.0f} s: it will, once its call returns"
    )
    if not alive and not here:
        said += "; no process works on it now"
    answer(as_json, {"run": run.run, "source": run.source, "state": now.state, "obeyed": done}, f"{said}.")
    return done


def _obeys(run: Run, want: Want) -> bool:
    return not run.open or (want == "pause") == (run.state == "paused") if want != "stop" else not run.open


def sources_of(flow: Flow, named: Sequence[str]) -> list[str]:
    """Sources that are meant: a connection stands for all of its own that a route reads. Raises SettingsError."""
    found: list[str] = []
    for name in named:
        if "/" in name:
            found.append(choose_source(flow, name))
        else:
            connection = choose_connection(flow, name)
            found += [f"{connection}/{sobject}" for sobject in flow.sobjects(connection)]
    if not found:
        raise SettingsError(f"no route reads from {', '.join(named)}: add a route first")
    return list(dict.fromkeys(found))


async def _in_order(settings: Settings, flow: Flow, sources: Sequence[str]) -> list[str]:
    """Parents before children, connection by connection."""
    ordered: list[str] = []
    for connection in dict.fromkeys(source.partition("/")[0] for source in sources):
        rest = rest_of(settings, flow, connection)
        sobjects = [source.partition("/")[2] for source in sources if source.startswith(f"{connection}/")]
        ordered += [f"{connection}/{sobject}" for sobject in await order_of(rest, sobjects)]
    return ordered


async def _read(settings: Settings, flow: Flow, source: str, show: Show, stop: asyncio.Event, **how: Any) -> Run:
    from agents.map_versions import maps_in_use

    def progress(run: Run) -> None:
        show(run.rows, run.total, run.note or (f"{run.rate:,.0f}/s" if run.rate else ""), run.source)

    fields = (await maps_in_use(settings, flow)).now.fields(source)
    return await run_snapshot(settings, flow, source, fields, stop=stop, progress=progress, **how)


def unexplained(run: Run) -> int:
    """Records that COUNT() has beyond what was made, deleted or changed meanwhile; 0 where that cannot be told."""
    return 0 if run.counted < 0 or run.changed < 0 else max(0, abs(run.counted - run.rows) - run.changed)


def difference(run: Run) -> str:
    """What the end of a run says of COUNT(); "" where it says the same."""
    if run.counted in (-1, run.rows):
        return ""
    said = f"COUNT() now says {run.counted:,}, {abs(run.counted - run.rows):,} {'more' if run.counted > run.rows else 'fewer'}"
    if run.changed < 0:
        return f"{said}; whether so many changed meanwhile Salesforce does not tell: `headrace verify {run.source}` does"
    if not unexplained(run):
        return f"{said}, while {run.changed:,} were made, deleted or changed: their events bring them"
    return (
        f"{said}, and only {run.changed:,} were made, deleted or changed meanwhile: the query gave other records than COUNT() counts "
        f"(rights that changed, or a condition that depends on the time); `headrace verify {run.source}` finds and mends what is missing"
    )


def _tell(run: Run, seconds: float, as_json: bool) -> None:
    facts = {
        "run": run.run, "source": run.source, "state": run.state, "way": run.way, "rows": run.rows, "total": run.total,
        "counted": run.counted if run.counted >= 0 else None, "changed": run.changed if run.changed >= 0 else None,
        "unexplained": unexplained(run), "seconds": round(seconds, 1), "why": run.why,
    }  # fmt: skip
    if run.state == "done":
        others = "".join(f"; {one}" for one in (run.why, difference(run)) if one)
        sentence = f"{run.source}: {run.rows:,} records are on their way (run {run.run}){others}."
    elif run.state == "stopped":
        sentence = f"{run.source}: stopped for good after {run.rows:,} of {run.total:,} records."
    else:
        sentence = f"{run.source}: left after {run.rows:,} of {run.total:,} records; the same command goes on from there."
    answer(as_json, facts, sentence)
