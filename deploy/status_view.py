"""How `headrace status` looks. Only formats what streams/status.py collected; what is not known is shown as "?", never as 0."""

import time
from collections.abc import Container, Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from streams.status import Hop, Status

LATE_SECONDS = 60.0
SHORT_SECONDS = 12 * 3600.0
FULL_BYTES = 2_000_000_000


def render(status: Status) -> Group:
    """For rich's Console.print or Live."""
    parts: list[RenderableType] = [Text(line, style="yellow") for line in status.unknown]
    parts += [Text(_paused(name, {one.connection for one in status.channels}), style="red") for name in status.paused]
    if status.held:
        parts.append(_held(status))
    if status.refills:
        parts.append(_refills(status))
    parts.append(_hops(status))
    if status.latencies:
        parts.append(_latencies(status))
    if status.channels:
        parts.append(_channels(status))
    if status.snapshots:
        parts.append(_snapshots(status))
    if status.verified:
        parts.append(_verified(status))
    if status.maps:
        parts.append(_maps(status))
    if status.ways:
        parts.append(_ways(status))
    if status.calls:
        parts.append(_calls(status))
    parts.append(_processes(status))
    if status.dead:
        parts.append(_dead(status))
    parts.append(_stores(status))
    return Group(*parts)


def _paused(name: str, connections: Container[str]) -> str:
    if name in connections:
        why = "its events wait there, and it goes on by itself when access returns; `headrace check` says what is missing"
        return f"connection {name} is paused, because Salesforce refuses it: {why}"
    return f"target {name} is paused: it goes on by itself once its probe succeeds"


def age(seconds: float | None) -> str:
    """12 s, 3 min, 5.2 h, 4.0 d; "?" for None."""
    if seconds is None:
        return "?"
    for size, unit in ((86_400.0, "d"), (3_600.0, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:.0f} ms"


def size(number: int | None) -> str:
    """Bytes for people."""
    return "?" if number is None else f"{number / 1e9:.1f} GB"


def _table(title: str, columns: Iterable[str], right: Iterable[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _hops(status: Status) -> Table:
    numbers = ("through", "waiting", "bulk", "oldest")
    table = _table(f"{status.installation}: what went through", ("stage", "of", *numbers, "outcomes"), numbers)
    for hop in status.hops:
        outcomes = ", ".join(f"{escape(name)} {count:,}" for name, count in hop.outcomes.items())
        table.add_row(hop.stage, escape(hop.name), f"{hop.through:,}", *_waiting(hop), outcomes)
    return table


def _held(status: Status) -> Table:
    table = _table("paused by people (headrace resume NAME)", ("what", "name", "since", "for", "waiting", "because"), ("for", "waiting"))
    for one in status.held:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.since / 1000)) if one.since else "resumed"
        ago = age((status.at - one.since) / 1000) if one.since else ""
        table.add_row(one.what, escape(one.name), f"[yellow]{since}[/yellow]", ago, _number(one.waiting), escape(one.because))
    return table


def _refills(status: Status) -> Table:
    table = _table("refills", ("route", "run", "state", "records", "of", "read from Salesforce"), ("records", "of", "read from Salesforce"))
    for one in status.refills:
        state = "[green]done[/green]" if one.done else "[green]running[/green]"
        total = "?" if one.total < 0 else f"{one.total:,}"
        table.add_row(escape(one.route), escape(one.run), state, f"{one.seen:,}", total, f"{one.asked:,}")
    return table


def _waiting(hop: Hop) -> tuple[str, str, str]:
    if hop.stage == "receive":
        return "", "", ""
    bulk = "" if hop.stage == "fetch" else _number(hop.bulk_lag)
    late = hop.oldest is not None and hop.oldest > LATE_SECONDS
    return _number(hop.lag), bulk, f"[red]{age(hop.oldest)}[/red]" if late else age(hop.oldest)


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _latencies(status: Status) -> Table:
    table = _table("how long it took", ("route", "target", "since", "writes", "p50", "p99"), ("writes", "p50", "p99"))
    for one in status.latencies:
        table.add_row(escape(one.route), escape(one.target), escape(one.since), f"{one.count:,}", age(one.p50), age(one.p99))
    return table


def _channels(status: Status) -> Table:
    table = _table(
        "subscriptions", ("connection", "channel", "state", "epoch", "position", "until Salesforce forgets it"), ("epoch", "position")
    )
    for one in status.channels:
        state = {None: "[yellow]no subscriber runs[/yellow]", True: "[green]up[/green]", False: "[red]down[/red]"}[one.up]
        state = "[red]deaf: connected, and nothing comes[/red]" if one.deaf else state
        if any(held.what == "connection" and held.name == one.connection for held in status.held):
            state = "[yellow]paused[/yellow]"
        where = ("none stored", "") if one.epoch is None else (str(one.epoch), "-" if one.position is None else str(one.position))
        short = one.loss is not None and one.loss < SHORT_SECONDS and one.up is not True
        left = "" if one.epoch is None else age(one.loss)
        table.add_row(escape(one.connection), escape(one.channel), state, *where, f"[red]{left}[/red]" if short else left)
    return table


def _snapshots(status: Status) -> Table:
    numbers = ("rows", "of", "a second", "left")
    table = _table("snapshots", ("source", "run", "state", "way", *numbers, ""), numbers)
    for one in status.snapshots:
        idle = one.state in ("running", "paused") and not one.worked
        style = {"failed": "red", "done": "green", "running": "green"}.get(one.state, "yellow")
        state = "[yellow]no process works on it[/yellow]" if idle else f"[{style}]{one.state}[/{style}]"
        rate = f"{one.rate:,.0f}" if one.worked else ""
        left = age(one.left) if one.left is not None else ""
        total = f"{one.total:,}" if one.total else "?"
        table.add_row(escape(one.source), escape(one.run), state, one.way, f"{one.rows:,}", total, rate, left, escape(one.note))
    return table


def _verified(status: Status) -> Table:
    table = _table("verified", ("route", "target", "through", "ago", "shall be every", "last found"), ("ago", "shall be every"))
    for one in status.verified:
        ago = status.at / 1000 - one.through
        late = one.every is not None and ago > 2 * one.every
        since = "never" if not one.through else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.through))
        found = f"{one.differed:,} differences, {one.repaired:,} repaired" if one.differed else "no difference" if one.at else ""
        said = f"[red]{since}[/red]" if late else since
        every = "-" if one.every is None else age(one.every)
        last = f"[yellow]{escape(one.why)}[/yellow]" if one.why else found
        table.add_row(escape(one.route), escape(one.target), said, age(ago) if one.through else "", every, last)
    return table


def _maps(status: Status) -> Table:
    table = _table("maps in use", ("route", "map", "version", "since", "file"), ("version",))
    for one in status.maps:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.since / 1000))
        broken = "; ".join(f"broken, changes nothing ({name}): {why}" for name, why in one.broken.items())
        said = [f"[red]{escape(broken)}[/red]"] if broken else []
        said += [f"[yellow]not in the org, or of another type: {escape(', '.join(one.gone))}[/yellow]"] if one.gone else []
        table.add_row(escape(one.route), escape(one.map), str(one.version), since, "; ".join(said))
    return table


def _ways(status: Status) -> Table:
    table = _table("how sObjects come in", ("sObject", "by", "last polled"))
    words = {
        None: "?",
        "events": "[green]events[/green]",
        "poll": "polling",
        "instead": "[yellow]polling, for the event allocation is used up[/yellow]",
    }
    for one in status.ways:
        every = "" if one.every is None else f", each {age(one.every)}"
        last = "" if one.polled is None else f"{age(one.polled)} ago"
        table.add_row(escape(f"{one.connection}/{one.sobject}"), f"{words[one.by]}{every}", last)
    return table


def _calls(status: Status) -> Table:
    numbers = ("of our share", "of the org, ahead", "left", "events left")
    table = _table("API calls of the day", ("connection", *numbers, "state", "ours, by purpose"), numbers)
    waits = ("verifying", "snapshots", "polling", "all but what people ask for")
    for one in status.calls:
        ours = ", ".join(f"{escape(purpose)} {count:,}" for purpose, count in sorted(one.ours.items()))
        parts = ("?" if part is None else f"{part:.0%}" for part in (one.share, one.ahead))
        state = "?" if one.step is None else "normal" if not one.step else f"[yellow]waits: {waits[one.step - 1]}[/yellow]"
        table.add_row(escape(one.connection), *parts, _number(one.left), _number(one.events), state, ours)
    return table


def _processes(status: Status) -> Table:
    table = _table("processes", ("role", "process", "state", "up for", "restarts"), ("restarts",))
    for one in status.processes:
        state = "[green]alive[/green]" if one.answers else "[yellow]alive, no answer[/yellow]"
        if not one.alive:
            state = f"[red]silent for {age(one.silent)}[/red]"
        table.add_row(one.role, escape(one.name), state, age((status.at - one.started) / 1000), str(one.restarts))
    if not status.processes:
        table.add_row("", "none runs", "", "", "")
    return table


def _dead(status: Status) -> Table:
    total = sum(cause.count for cause in status.dead)
    table = _table(f"dead letters: {total:,}", ("count", "stage", "route", "cause", "last reason"), ("count",))
    for one in status.dead:
        table.add_row(f"{one.count:,}", one.stage, escape(one.route or "-"), one.cause, escape(one.reason))
    return table


def _stores(status: Status) -> Text:
    text = Text(f"Kafka would lose what waits in {age(status.kafka_loss)}; free disk {size(status.disk_free)}")
    if (status.kafka_loss or SHORT_SECONDS) < SHORT_SECONDS or (status.disk_free or FULL_BYTES) < FULL_BYTES:
        text.stylize("red")
    return text
