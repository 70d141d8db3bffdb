"""`headrace demo`: the whole flow on this machine, with changes going through it, a live table, and at the end a comparison of both ends.

It shows what a user would do with commands of his own; it reaches into nothing.
"""

import base64
import hashlib
import hmac
import http.client
import json
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.latency import TABLES, Latency
from deploy.local.process import LocalServiceError
from deploy.local.services import exit_on_sigterm
from deploy.oracle import Verdict, compare
from deploy.rig import FLOW, Rig
from deploy.sandbox.client import SandboxError

RECORDS, RATE, HOOKS = 300, 5.0, 3
SETTLE_SECONDS = 60.0


Say = Callable[[str], None]


def run_demo(seconds: float | None, as_json: bool) -> int:
    """Show it until Ctrl-C, or for `seconds` and then compare: exit code 0 only when both ends are equal."""

    def show(rig: Rig, console: Console, begun: float, say: Say) -> int:
        rig.start()
        return _show(rig, seconds, as_json, console, begun, say)

    return on_a_rig(as_json, FLOW, show)


def on_a_rig(as_json: bool, flow: Path, show: Callable[[Rig, Console, float, Say], int]) -> int:
    """The exit code of `show`, which gets a rig of the flow, where to print, since when (monotonic), and how to say what goes on."""
    exit_on_sigterm()
    console = Console(stderr=as_json)
    begun = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.1f} s[/dim]  {text}", highlight=False)

    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=base_folder()))
    try:
        with Rig(folder, records=RECORDS, flow=flow, progress=say) as rig:
            return show(rig, console, begun, say)
    except KeyboardInterrupt:
        console.print("stopped")
        return 0
    except (LocalServiceError, SandboxError) as error:
        console.print(f"[red]error[/red]: {error}", highlight=False)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _show(rig: Rig, seconds: float | None, as_json: bool, console: Console, begun: float, say: Say) -> int:
    with rig.database() as database:
        rig.await_("the first row", lambda: count_rows(database, "person") > 0)
        first_row = time.monotonic() - begun
        say(f"[bold]the first row is in PostgreSQL[/bold]; now {RATE:g} transactions a second change the sandbox Salesforce")
        say(f"look yourself: [cyan]psql '{rig.database_url}'[/cyan]   Salesforce: {rig.salesforce}   webhooks: {rig.hooks}/forms")
        latency = Latency(rig)
        rig.ask("POST", "/sandbox/change", {"rate": RATE, "seconds": seconds or 86_400, "seed": 7})
        hooks = 0
        with Live(_table(rig, database, latency), console=console, refresh_per_second=4, transient=seconds is not None) as live:
            until = time.monotonic() + seconds if seconds else float("inf")
            while time.monotonic() < until:
                time.sleep(0.5)
                if hooks < HOOKS and send_hook(
                    rig, {"data": {"id": f"signup-{hooks}", "email": f"guest{hooks}@example.org", "name": "Ada Example"}}
                ):
                    hooks += 1
                latency.look(database)
                live.update(_table(rig, database, latency))
        verdict = settle(rig, database)
        latency.look(database)
        signups = count_rows(database, "signup")
        if signups != hooks:
            verdict.differs(f"signup: {signups} rows for {hooks} webhooks that were accepted")
    return report(verdict, latency, first_row, as_json, console)


def settle(rig: Rig, database: psycopg.Connection, seconds: float = SETTLE_SECONDS) -> Verdict:
    """End the changes, send markers through every hop and partition, wait for them, then compare; what still differs is the verdict.

    A difference is given until the deadline to go away: the markers prove that the way is open, not that every lane is empty.
    """
    rig.ask("DELETE", "/sandbox/change")
    token = uuid.uuid4().hex[:8]
    people = [
        {"op": "create", "type": kind, "values": {"LastName": f"Marker {n}", "Email": f"{kind.lower()}-{token}-{n}@example.org", **more}}
        for kind, more in (("Contact", {}), ("Lead", {"Company": "Marker"}))
        for n in range(16)
    ]
    accounts = [{"op": "create", "type": "Account", "values": {"Name": f"Marker {token} {n}"}} for n in range(8)]
    rig.ask("POST", "/sandbox/transaction", {"changes": people + accounts})
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        rows = _markers(database, "person", "email", f"%-{token}-%") + _markers(database, "account", "name", f"Marker {token}%")
        users = sum(f"-{token}-" in user["email"] for user in rig.ask("GET", "/sandbox/users", target="iterable")["users"])
        if rows == len(people) + len(accounts) and users == len(people):
            break
        time.sleep(0.3)
    while True:
        verdict = compare_now(rig, database)
        if verdict.equal or time.monotonic() > until:
            return verdict
        time.sleep(1.0)


def compare_now(rig: Rig, database: psycopg.Connection) -> Verdict:
    """Compare both ends once, as they are."""
    cases = "acme/Case" in rig.flow.read_text()
    return compare(lambda path: rig.ask("GET", path), lambda path: rig.ask("GET", path, target="iterable"), database, cases=cases)


def report(verdict: Verdict, latency: Latency, first_row: float | None, as_json: bool, console: Console) -> int:
    """Print the verdict and the figures; the exit code."""
    p50, p99 = latency.quantile(0.50), latency.quantile(0.99)
    figures = {
        "equal": verdict.equal,
        "compared": verdict.compared,
        "held_by_quality": verdict.held,
        "differences": verdict.count,
        "first_differences": verdict.differences,
        "latency_ms": {"p50": p50, "p99": p99, "samples": len(latency.samples)},
        "first_row_seconds": first_row,
    }
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        for text in verdict.differences:
            console.print(f"[red]differs[/red]  {text}", highlight=False)
        what = ", ".join(f"{count} {name}" for name, count in verdict.compared.items())
        verdict_text = "[green]equal, field by field[/green]" if verdict.equal else f"[red]{verdict.count} differences[/red]"
        console.print(f"compared {what}: {verdict_text}")
        if p50 is not None and p99 is not None:
            console.print(f"commit to row: p50 {p50:.0f} ms, p99 {p99:.0f} ms over {len(latency.samples)} changes")
    return 0 if verdict.equal else 1


def send_hook(rig: Rig, body: dict[str, Any], name: str | None = None) -> bool:
    """Post a signed webhook as a stranger's system would, under a delivery id of its own or `name`; True when it was accepted."""
    raw, name, at = json.dumps(body).encode(), name or f"msg_{uuid.uuid4().hex}", str(int(time.time()))
    key = base64.b64decode(rig.secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.new(key, f"{name}.{at}.".encode() + raw, hashlib.sha256).digest()).decode()
    headers = {"webhook-id": name, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}", "content-type": "application/json"}
    request = urllib.request.Request(f"{rig.hooks}/forms", data=raw, headers=headers, method="POST")  # noqa: S310 - our own address
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return bool(200 <= answer.status < 300)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def _table(rig: Rig, database: psycopg.Connection, latency: Latency) -> Table:
    state = rig.ask("GET", "/sandbox/state")
    users = len(rig.ask("GET", "/sandbox/users", target="iterable")["users"])
    table = Table(title="Headrace demo", caption="Ctrl-C ends it", title_justify="left", caption_justify="left")
    table.add_column("where")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name in ("Contact", "Lead", "Account", "Opportunity"):
        held = state["objects"][name]
        table.add_row("Salesforce" if name == "Contact" else "", name, str(held["records"] - held["deleted"]))
    table.add_row("", "change events", str(sum(state["published"].values())))
    for name in (*TABLES, "signup"):
        table.add_row("PostgreSQL" if name == "person" else "", f"crm.{name}", str(count_rows(database, name)))
    table.add_row("Iterable", "users", str(users))
    p50, p99 = latency.quantile(0.50), latency.quantile(0.99)
    if p50 is not None and p99 is not None:
        table.add_row("commit to row", "p50 / p99", f"{p50:.0f} / {p99:.0f} ms")
    return table


def count_rows(database: psycopg.Connection, table: str) -> int:
    """Rows that are not deleted; 0 while the table is not made."""
    return _number(database, sql.SQL("SELECT count(*) FROM {} WHERE NOT _deleted").format(sql.Identifier("crm", table)))


def _markers(database: psycopg.Connection, table: str, column: str, like: str) -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE NOT _deleted AND {} LIKE {}")
    return _number(database, query.format(sql.Identifier("crm", table), sql.Identifier(column), sql.Literal(like)))


def _number(database: psycopg.Connection, query: sql.Composed) -> int:
    try:
        row = database.execute(query).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return 0
    return int(row[0]) if row else 0


def base_folder() -> Path:
    """Where runs on this machine keep their folders: .headrace of the current one."""
    folder = Path.cwd() / ".headrace"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
