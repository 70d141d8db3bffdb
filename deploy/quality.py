"""`headrace quality`: what became of the records of each route, by batch, why some failed, what was refused, and by whom."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.context import choose_route, read_all
from deploy.looks import ago, printable, table
from deploy.runs import answer
from models.errors import SettingsError
from models.learned import Learned
from streams.consume import read_all as read_all_of
from streams.quality import Batch, Counted, Row, read_quality, rows_of
from streams.refusals import Refused, refusals_of
from streams.rejections import forget as forget_learned
from streams.rejections import read_learned
from streams.topics import Topics, ensure

DAY_HOURS = 24
MOST_ROWS, MOST_FAILURES = 40, 20


class Shown(msgspec.Struct):
    """For --json. `rolling`: live events of the last 24 hours by route; `batches`: latest first; `failures`: the last, by route;
    `refused`: swarms that people refused; `learned`: what targets refused, and gates stop now.
    """

    rolling: dict[str, Counted]
    batches: list[Row]
    failures: dict[str, list[tuple[str, list[tuple[str, str, str]]]]]
    refused: list[Refused] = []
    learned: list[Learned] = []


def quality(flow_path: Path | None, route: str | None, as_json: bool) -> int:
    """Exit code 0: it only tells. Raises SettingsError (no such route), TemporaryError."""
    settings, flow = read_all(flow_path)
    if route is not None and route not in flow.routes:
        raise SettingsError(f"there is no route {route!r}; the flow file has {', '.join(flow.routes)}")

    async def read() -> Shown:
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        shown = shown_of(await read_quality(settings), route, int(time.time()))
        refused = refusals_of(await read_all_of(settings, Topics(settings.installation).runs))
        shown.refused = [one for one in refused if route in (None, one.route)]
        shown.learned = [one for one in await read_learned(settings, int(time.time() * 1000)) if route in (None, one.route)]
        return shown

    shown = asyncio.run(read())
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    elif not (shown.batches or shown.refused or shown.learned):
        print("No records came to quality yet." if route is None else f"No records of route {route} came to quality yet.")
    else:
        console = Console()
        for found in _tables(shown, one=route is not None):
            console.print(found)
        if route is None:
            print("\nhour by hour, with what failed and why: headrace quality ROUTE; whole events: headrace dead-letters")
    return 0


def shown_of(batches: Sequence[Batch], route: str | None, now: int) -> Shown:
    """What is told of these. `now`: epoch s."""
    rolling: dict[str, Counted] = {}
    failures: dict[str, list[tuple[str, list[tuple[str, str, str]]]]] = {}
    for batch in sorted(batches, key=lambda batch: -batch.at):
        for name, counted in batch.routes.items():
            if not batch.run and batch.hour > now // 3600 - DAY_HOURS and route in (None, name):
                rolling.setdefault(name, Counted()).add(counted)
        for name, result in batch.chunk.items():
            if route in (None, name) and result.failures:
                some = failures.setdefault(name, [])
                some += [(failure.id, failure.faults) for failure in result.failures[: MOST_FAILURES - len(some)]]
    return Shown(rolling, rows_of(batches, route), failures)


def _tables(shown: Shown, *, one: bool) -> list[Table]:
    rolling = table("quality, live events of the last 24 hours", "route", "came>", "passed>", "failed>", "duplicates>", "most often failed")
    for name, counted in sorted(shown.rolling.items()):
        rolling.add_row(name, *_figures(counted), Text(_most(counted)))
    batches = table("by batch: a run, or an hour of live events", "route", "batch", "last>", "came>", "passed>", "failed>", "duplicates>")
    for row in [row for row in shown.batches if one or not row.live][:MOST_ROWS]:
        batches.add_row(row.route, printable(row.batch), ago(row.at), *_figures(row.total))
    refused = table("swarms that were refused", "route", "when", "dropped>", "why")
    for decision in shown.refused[:MOST_ROWS]:
        refused.add_row(decision.route, ago(decision.at), f"{decision.dropped:,}", Text(printable(decision.why)))
    learned = table("refused by the target: not tried again now", "route", "field", "rule", "value", "times>", "last>")
    for rule in shown.learned[:MOST_ROWS]:
        learned.add_row(rule.route, printable(rule.field), rule.rule, valued(rule), f"{rule.times:,}", ago(rule.at))
    found = [some for some in (rolling, batches, refused, learned) if some.row_count]
    if not one:
        return found
    why = table("why", "fault", "how often>")
    causes = Counted()
    for row in shown.batches:
        causes.add(row.total)
    for cause, count in sorted(causes.causes.items(), key=lambda item: -item[1])[:MOST_ROWS]:
        why.add_row(Text(printable(cause)), f"{count:,}")
    last = table("the last that failed", "record", "faults")
    for failures in shown.failures.values():
        for id, faults in failures:
            last.add_row(printable(id), Text(printable("; ".join(f"{name}: {rule}, found {what}" for name, rule, what in faults))))
    return [*found, *(some for some in (why, last) if some.row_count)]


def valued(learned: Learned) -> str:
    """What is stopped, in words."""
    if learned.least:
        return f"text of {learned.least:,} characters or more"
    if learned.source:
        return f"this {learned.found} in {learned.source}"
    return f"this {learned.found}" if learned.mark else f"any {learned.found}" if learned.found != "null" else "null"


def forget(flow_path: Path | None, route: str, as_json: bool) -> int:
    """Have what the route's target refused tried again at once. Exit code 0. Raises SettingsError, TemporaryError."""
    settings, flow = read_all(flow_path)
    choose_route(flow, route)

    async def main() -> int:
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        learned = [one for one in await read_learned(settings, int(time.time() * 1000)) if one.route == route]
        await forget_learned(settings, learned)
        return len(learned)

    count = asyncio.run(main())
    sentence = f"route {route}: {count:,} rules that were learned are forgotten. What they stopped: headrace redrive (see dead-letters)."
    answer(as_json, {"route": route, "forgotten": count}, sentence)
    return 0


def _figures(counted: Counted) -> tuple[str, str, str, str]:
    return f"{counted.came:,}", f"{counted.passed:,}", f"{counted.failed:,}", f"{counted.removed:,}"


def _most(counted: Counted) -> str:
    cause, count = max(counted.causes.items(), key=lambda item: item[1], default=("", 0))
    return f"{printable(cause)} ({count:,})" if count else "-"
