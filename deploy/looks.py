"""The commands that only look: status, dead letters, incidents; tables for people or JSON for programs. Nothing here changes anything."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.context import read_all, read_settings
from deploy.processes import stop_signals
from deploy.status_view import age, render
from models.dead_letter import DeadLetter
from models.flow import Flow
from models.settings import Settings
from streams.status import collect

EVERY = 2.0
BEGINNING = 120


def status(flow_path: Path | None, watch: bool, as_json: bool) -> int:
    """Exit code 0 when everything that should be known is, 1 when something could not be asked."""
    settings, flow = read_all(flow_path)
    if watch:
        return asyncio.run(_watch(settings, flow, as_json))
    found = asyncio.run(collect(settings, flow))
    if as_json:
        print(found.json().decode())
    else:
        Console().print(render(found))
    return 1 if found.unknown else 0


async def _watch(settings: Settings, flow: Flow, as_json: bool) -> int:
    stop = stop_signals()

    async def rest() -> None:
        try:
            await asyncio.wait_for(stop.wait(), EVERY)
        except TimeoutError:
            return

    if as_json:
        while not stop.is_set():
            print(orjson.dumps(orjson.loads((await collect(settings, flow)).json())).decode(), flush=True)
            await rest()
        return 0
    with Live(Text("asking…"), console=Console(), auto_refresh=False) as live:
        while not stop.is_set():
            live.update(render(await collect(settings, flow)), refresh=True)
            await rest()
    return 0


def table(title: str, *columns: str) -> Table:
    """A table without lines; a column whose name ends in > is of figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.strip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    return table


def dead_letters(cause: str | None, as_json: bool) -> int:
    """Open dead letters: grouped by cause, or one by one for a cause (its first characters do)."""
    from agents.dead_letters import list_letters

    letters: Sequence[DeadLetter] = asyncio.run(list_letters(read_settings(), cause=cause))
    if as_json:
        print(orjson.dumps([letter.model_dump() for letter in letters], option=orjson.OPT_INDENT_2).decode())
        return 0
    if not letters:
        print("No dead letters." if cause is None else f"No dead letters of a cause that begins with {cause!r}.")
        return 0
    if cause is None:
        Console().print(_grouped(letters))
        print("\none by one: headrace dead-letters --cause CAUSE")
    else:
        Console(soft_wrap=True).print(_each(letters), end="")
        print("\nafter the cause is mended: headrace redrive ID, or all of them: headrace redrive CAUSE")
    return 0


def incidents(only_open: bool, as_json: bool) -> int:
    """Exit code 1 when one could not be repaired."""
    from streams.salesforce.incidents import read_incidents

    found = [i for i in asyncio.run(read_incidents(read_settings())).values() if i.state != "closed" or not only_open]
    if as_json:
        print(orjson.dumps([asdict(i) for i in found], option=orjson.OPT_INDENT_2).decode())
    elif not found:
        print("No open incidents." if only_open else "No incidents: Salesforce withheld nothing.")
    else:
        shown = table(
            "incidents",
            "source",
            "cause",
            "state",
            "opened>",
            "took>",
            "read again",
            "rows>",
            "gone>",
            "calls>",
            "what happened, and the proof",
        )
        for i in found:
            took = age((i.closed - i.opened) / 1000) if i.closed else "-"
            some = f"{len(i.ids)} ids" if i.ids else f"all changed since {when(i.since)}" if i.since else "everything"
            scope = f"{i.rows + i.gone} keys" if i.cause == "target" else some
            said = f"{i.detail}; {i.proof}" if i.proof else i.detail
            style = {"open": "yellow", "waiting": "red", "failed": "red", "closed": "green"}[i.state]
            shown.add_row(
                i.source,
                i.cause,
                Text(i.state, style),
                ago(i.opened),
                took,
                scope,
                f"{i.rows:,}",
                f"{i.gone:,}",
                f"{i.calls:,}",
                Text(printable(said)),
            )
        Console().print(shown)
    return 1 if any(i.state == "failed" for i in found) else 0


def when(second: int) -> str:
    """As people read a time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(second))


def _grouped(letters: Sequence[DeadLetter]) -> Table:
    counts, newest = Counter(letter.cause for letter in letters), {letter.cause: letter for letter in letters}
    shown = table("dead letters by cause", "cause", "stage", "route", "how often>", "last>", "reason and what to do")
    for cause, count in counts.most_common():
        letter = newest[cause]
        shown.add_row(cause, letter.stage, letter.route or "-", f"{count:,}", ago(letter.at), Text(letter.reason))
    return shown


def _each(letters: Sequence[DeadLetter]) -> Text:
    """One block each, ids whole: they are copied into `headrace redrive`."""
    text = Text()
    for letter in letters:
        key = printable((letter.original_key or b"").decode(errors="replace"))
        value = printable((letter.original_value or b"")[:BEGINNING].decode(errors="replace"))
        tries = f", {letter.attempts} attempts" if letter.attempts > 1 else ""
        text.append(f"{printable(letter.id)}\n", "bold")
        text.append(f"  {letter.stage}, route {letter.route or '-'}, cause {letter.cause}, {ago(letter.at)}{tries}\n")
        text.append(f"  {printable(letter.reason)}\n", "red")
        text.append(f"  record {key}{f', field {printable(letter.field)}' if letter.field else ''}: {value or 'no value'}\n", "dim")
    return text


def ago(at: int) -> str:
    """How long ago an epoch ms was."""
    return f"{age(max(0.0, time.time() - at / 1000))} ago"


def printable(text: str) -> str:
    """Without what could move the cursor or change colours: the text is a stranger's."""
    return "".join(sign if sign.isprintable() else "·" for sign in text)
