"""`headrace demo iterable|gtm-clarity`: an example flow on this machine, a story told at its source, and at the end both ends compared.

As in demo.py, everything is done from outside, as a user would; what must come of it is known to oracle_flows.py by other means.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql
from rich.console import Console

from deploy.demo import RATE, Say, on_a_rig
from deploy.oracle import Verdict
from deploy.oracle_flows import compare_iterable, compare_tables
from deploy.rig import FLOW, Rig

SETTLE_SECONDS = 90.0
STATISTICS = ("inputCount", "passedCount", "failedCount", "duplicatesRemoved")
Change = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """One example: what happens to the source beside made-up changes, and how its ends are compared."""

    flow: Path
    story: Callable[[Rig, Say], None]
    compare: Callable[[Rig], Verdict]


def run_flow(name: str, seconds: float | None, as_json: bool) -> int:
    """Show the flow for `seconds` (None: 30) and compare: exit code 0 only when both ends are equal."""
    scene = SCENES[name]

    def show(rig: Rig, console: Console, _begun: float, say: Say) -> int:
        rig.start(roles=("worker", "subscribe"))
        say(f"[bold]{name}[/bold] runs; the flow: {scene.flow}   Salesforce: {rig.salesforce}   Iterable: {rig.iterable}")
        return _show(rig, scene, seconds or 30.0, say, as_json, console)

    return on_a_rig(as_json, scene.flow, show)


def _show(rig: Rig, scene: Scene, seconds: float, say: Say, as_json: bool, console: Console) -> int:
    until = time.monotonic() + seconds
    _settled(rig, scene)  # the first snapshot is through
    say("all records are there as they are in Salesforce; now they change")
    rig.ask("POST", "/sandbox/change", {"rate": RATE, "seconds": seconds, "seed": 7})
    scene.story(rig, say)
    while time.monotonic() < until:
        time.sleep(0.2)
    rig.ask("DELETE", "/sandbox/change")
    verdict = _settled(rig, scene)
    status = json.loads(rig.command("status", "--json")[1])
    took = [one for one in status["latencies"] if one["since"] == "commit"]
    quality = json.loads(rig.command("quality", "--json")[1])["batches"]
    if as_json:
        figures = {"equal": verdict.equal, "compared": verdict.compared, "held": verdict.held, "differences": verdict.differences}
        sys.stdout.write(
            json.dumps(figures | {"latency_seconds": took, "dead_letters": status["dead"], "quality": quality}, indent=2) + "\n"
        )
    else:
        _tell(verdict, took, status["dead"], quality, console)
    return 0 if verdict.equal else 1


def _settled(rig: Rig, scene: Scene) -> Verdict:
    """What is compared once both ends are equal, or at the deadline."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        verdict = scene.compare(rig)
        if verdict.equal or time.monotonic() > until:
            return verdict
        time.sleep(0.5)


def _tell(verdict: Verdict, took: Sequence[Any], dead: Sequence[Any], quality: Sequence[Any], console: Console) -> None:
    for text in verdict.differences:
        console.print(f"[red]differs[/red]  {text}", highlight=False)
    for one in took:
        console.print(f"{one['route']} → {one['target']}: p50 {one['p50']:.2f} s, p99 {one['p99']:.2f} s over {one['count']} writes")
    for route in sorted({row["route"] for row in quality}):
        totals = [row["total"] for row in quality if row["route"] == route]
        came, passed, failed, removed = (sum(total[name] for total in totals) for name in STATISTICS)
        console.print(f"quality of {route}: {came:,} came = {passed:,} passed + {failed:,} failed + {removed:,} duplicates")
    for one in dead:
        console.print(f"kept out: {one['count']} of route {one['route']}: {one['reason']}", highlight=False)
    what = ", ".join(f"{count} {name}" for name, count in verdict.compared.items())
    told = "[green]equal, field by field[/green]" if verdict.equal else f"[red]{verdict.count} differences[/red]"
    console.print(f"compared {what}: {told}")


def _commit(rig: Rig, *changes: Change) -> list[str]:
    """One transaction; the ids of its records."""
    made: list[str] = rig.ask("POST", "/sandbox/transaction", {"changes": list(changes)})["ids"]
    return made


def _create(kind: str, **values: Any) -> Change:
    return {"op": "create", "type": kind, "values": values}


def _update(kind: str, id: str, **values: Any) -> Change:
    return {"op": "update", "type": kind, "id": id, "values": values}


def _seen(rig: Rig, say: Say, what: str, question: Callable[[], bool]) -> None:
    """Wait until what must come of it can be seen, and say after how long."""
    began = time.monotonic()
    rig.await_(what, question)
    say(f"  [green]{what}[/green], seen after {time.monotonic() - began:.1f} s")


def _people(rig: Rig, say: Say) -> None:
    """What can happen to a person."""

    def user(address: str) -> dict[str, Any]:
        users = rig.ask("GET", "/sandbox/users", target="iterable")["users"]
        return next((one["dataFields"] for one in users if one["email"] == address), {})

    def name(address: str, first: str) -> bool:
        return bool(user(address).get("Name", {}).get("First") == first)

    say("Pat is a Lead, then also a Contact with the same address in other letters")
    [lead] = _commit(rig, _create("Lead", FirstName="Pat", LastName="Example", Company="Example", Email="Pat@example.org"))
    [contact] = _commit(rig, _create("Contact", FirstName="Patty", LastName="Example", Email="pat@Example.org", LeadSource="Web"))
    _commit(rig, _update("Lead", lead, FirstName="Patricia"))
    _seen(
        rig,
        say,
        "one user: the Contact speaks, and the Lead's block stands beside",
        lambda: name("pat@example.org", "Patty") and user("pat@example.org")["Lead"].get("Salesforce") == {"Id": lead},
    )
    say("the Contact's address changes")
    _commit(rig, _update("Contact", contact, Email="patty@example.org"))
    _seen(rig, say, "the user has the new address", lambda: name("patty@example.org", "Patty"))
    _seen(rig, say, "under the old one the Lead speaks", lambda: name("pat@example.org", "Patricia"))
    say("Kim is changed five times in a moment")
    [kim] = _commit(rig, _create("Lead", FirstName="Kim", LastName="Example", Company="Example", Email="kim@example.org"))
    for number in range(5):
        _commit(rig, _update("Lead", kim, FirstName=f"Kim {number}", Status="Working"))
    _seen(rig, say, "the last word counts", lambda: name("kim@example.org", "Kim 4"))
    say("Lou is converted from a Lead to a Contact; Max loses his address; Ann is deleted; Joe is deleted and comes back")
    lou, max_, ann, joe = _commit(
        rig,
        _create("Lead", FirstName="Lou", LastName="Example", Company="Example", Email="lou@example.org"),
        *(_create("Contact", FirstName=who, LastName="Example", Email=f"{who.lower()}@example.org") for who in ("Max", "Ann", "Joe")),
    )
    _seen(rig, say, "all four are there", lambda: all(user(f"{who}@example.org") for who in ("lou", "max", "ann", "joe")))
    _commit(rig, {"op": "convert", "type": "Lead", "id": lou, "values": {}})
    _commit(rig, _update("Contact", max_, Email=None))
    _commit(rig, {"op": "delete", "type": "Contact", "id": ann}, {"op": "delete", "type": "Contact", "id": joe})
    _commit(rig, {"op": "undelete", "type": "Contact", "id": joe})
    _seen(rig, say, "Lou is a Contact's user", lambda: str(user("lou@example.org").get("Salesforce", {}).get("Id")).startswith("003"))
    _seen(rig, say, "Max and Ann are marked", lambda: all(user(f"{who}@example.org").get("deletedAtSource") for who in ("max", "ann")))
    _seen(rig, say, "Joe is not", lambda: name("joe@example.org", "Joe") and not user("joe@example.org").get("deletedAtSource"))
    say("one address of a batch is one that Iterable refuses")
    bad = _create("Contact", FirstName="Bad", LastName="Address", Email=f"{'x' * 65}@example.org")
    _commit(rig, bad, *(_create("Contact", FirstName="Good", LastName="Example", Email=f"good{n}@example.org") for n in range(20)))
    _seen(rig, say, "the others are there", lambda: all(name(f"good{n}@example.org", "Good") for n in range(20)))


def _sales(rig: Rig, say: Say) -> None:
    """What can happen to an Account and what belongs to it."""

    def row(table: str, id: str, column: str) -> Any:
        query = sql.SQL("SELECT {} FROM {} WHERE _key = %s AND NOT _deleted").format(sql.Identifier(column), sql.Identifier("crm", table))
        with rig.database() as database:
            found = database.execute(query, [f"acme/{id}"]).fetchone()
        return found[0] if found else None

    say("an Account, a Contact and an Opportunity with values that need cleaning")
    works = _create("Account", Name="Example Works ", Website="HTTPS://www.Example.com:8080/about", NumberOfEmployees=1200)
    [account] = _commit(rig, works)
    contact, deal = _commit(
        rig,
        _create("Contact", FirstName="Ada", LastName="Example", Email="ADA@Example.org", AccountId=account),
        _create("Opportunity", Name="A deal", StageName="Prospecting", CloseDate="2026-12-24", AccountId=account, Amount=1000.5),
    )
    _seen(rig, say, "the domain stands in its column", lambda: row("account", account, "domain") == "example.com")
    _seen(rig, say, "the address is lower-cased", lambda: row("person", contact, "email") == "ada@example.org")
    _seen(rig, say, "the amount is a number", lambda: row("opportunity", deal, "amount") == 1000.5)
    say("a Contact without address and first name, an Opportunity without an Account: kept out, with their reasons")
    _commit(rig, _create("Contact", LastName="Nobody"))
    _commit(rig, _create("Opportunity", Name="Of nobody", StageName="Prospecting", CloseDate="2026-12-24"))
    say("the deal is won, the Account renamed, the Contact deleted")
    _commit(rig, _update("Opportunity", deal, StageName="Closed Won", Amount=None), _update("Account", account, Name="Example Ltd"))
    _commit(rig, {"op": "delete", "type": "Contact", "id": contact})
    _seen(rig, say, "the Account has its new name", lambda: row("account", account, "name") == "Example Ltd")
    _seen(rig, say, "the Contact is gone", lambda: row("person", contact, "email") is None)
    _commit(rig, {"op": "undelete", "type": "Contact", "id": contact})
    _seen(rig, say, "and is back from the recycle bin", lambda: row("person", contact, "email") == "ada@example.org")
    say("a second Contact with Ada's address, in other letters")
    [second] = _commit(rig, _create("Contact", FirstName="Ada", LastName="Twice", Email="ada@EXAMPLE.org", AccountId=account))
    _seen(
        rig,
        say,
        "the one changed last stands, the other is held",
        lambda: _one(row("person", second, "email"), row("person", contact, "email")),
    )
    say("it gets an address of its own, then Ada's again, then it is deleted")
    _commit(rig, _update("Contact", second, Email="Twice@example.org"))
    _seen(
        rig,
        say,
        "both stand",
        lambda: (row("person", second, "email"), row("person", contact, "email")) == ("twice@example.org", "ada@example.org"),
    )
    _commit(rig, _update("Contact", second, Email="ada@example.org"))
    _seen(rig, say, "Ada is held again", lambda: _one(row("person", second, "email"), row("person", contact, "email")))
    _commit(rig, {"op": "delete", "type": "Contact", "id": second})
    _seen(rig, say, "and comes back when that one goes", lambda: _one(row("person", contact, "email"), row("person", second, "email")))


def _one(there: str | None, gone: str | None) -> bool:
    return there == "ada@example.org" and gone is None


SCENES = {
    "iterable": Scene(FLOW.with_name("iterable.yaml"), _people, lambda rig: compare_iterable(rig.ask)),
    "gtm-clarity": Scene(FLOW.with_name("gtm-clarity.yaml"), _sales, lambda rig: compare_tables(rig.ask, rig.database)),
}
