"""The commands `headrace sandbox …`. `app` is mounted by the front door; `python -m deploy.sandbox` runs it alone."""

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.sandbox import client, serve
from deploy.sandbox.iterable import server as iterable_server
from deploy.sandbox.iterable import state as iterable_state
from deploy.sandbox.salesforce import server as salesforce_server

app = typer.Typer(help="A Salesforce and an Iterable at your desk, which can be broken.", no_args_is_help=True, add_completion=False)

Url = Annotated[str | None, typer.Option(help="Address of the running sandbox.")]
Target = Annotated[str, typer.Option(help="salesforce or iterable.")]
_PORTS = {"salesforce": salesforce_server.DEFAULT_PORT, "iterable": iterable_server.DEFAULT_PORT}


def _ask(url: str | None, method: str, path: str, body: Any = None, target: str = "salesforce") -> Any:
    if target not in _PORTS:
        raise typer.BadParameter(f"there is no sandbox {target!r}; there are: {', '.join(_PORTS)}")
    try:
        return client.call(client.address(url, target, _PORTS[target]), method, path, body)
    except client.SandboxError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `1h` → seconds. Errors: typer.BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 5m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


@app.command()
def salesforce(
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = salesforce_server.DEFAULT_PORT,
    records: Annotated[int, typer.Option(min=0, max=1_000_000)] = 1000,
    seed: int = 1,
    fields: Annotated[Path | None, typer.Option(help="YAML file of custom fields.", exists=True, dir_okay=False)] = None,
    hold: Annotated[float, typer.Option(help="Seconds a poll is held without events.", min=0.05, max=110)] = 110.0,
    host: Annotated[str, typer.Option(help="Address to listen on; the control paths answer this machine only.")] = "127.0.0.1",
    jwt_key: Annotated[
        Path | None, typer.Option(help="PEM of the public key or certificate for JWT logins.", exists=True, dir_okay=False)
    ] = None,
    person_accounts: Annotated[bool, typer.Option("--person-accounts", help="Let accounts be people too.")] = False,
) -> None:
    """A Salesforce org: CometD, OAuth, REST, made-up records."""

    async def make() -> serve.Listener:
        try:
            sandbox = await salesforce_server.Sandbox(records, seed, fields, hold, jwt_key, port, host, person_accounts).start()
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        typer.echo(sandbox.banner())
        return sandbox.listener

    serve.run_forever(make)


@app.command()
def iterable(
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = iterable_server.DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="Address to listen on; the control paths answer this machine only.")] = "127.0.0.1",
    key: Annotated[str, typer.Option(help="The API key of its project.")] = iterable_state.API_KEY,
) -> None:
    """An Iterable project: profiles, buckets, limits."""

    async def make() -> serve.Listener:
        sandbox = await iterable_server.Sandbox(port, key, host).start()
        typer.echo(sandbox.banner())
        return sandbox.listener

    serve.run_forever(make)


@app.command()
def change(
    rate: Annotated[float, typer.Option(help="Transactions a second.", min=0.01, max=5000)] = 50,
    for_: Annotated[str, typer.Option("--for", help="How long, e.g. 60s or 5m.")] = "60s",
    seed: int = 1,
    url: Url = None,
) -> None:
    """Made-up life in the sandbox org: creates, updates, deletes, merges, moves."""
    length = seconds(for_)
    number = _ask(url, "POST", "/sandbox/change", {"rate": rate, "seconds": length, "seed": seed})["run"]
    while True:
        run = _ask(url, "GET", "/sandbox/change")["runs"][number]
        if run["finished"]:
            break
        time.sleep(min(0.5, max(0.05, (run["wanted"] - run["done"]) / rate)))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(run["kinds"].items()))
    typer.echo(f"{run['done']} transactions: {kinds}")


@app.command()
def emit(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    keep: Annotated[bool, typer.Option(help="Keep the replay ids that the events bring.")] = False,
    url: Url = None,
) -> None:
    """Publish recorded events as they stand, one JSON object a line."""
    done = _ask(url, "POST", f"/sandbox/emit{'?keep=1' if keep else ''}", file.read_bytes())
    typer.echo(f"{done['published']} events published, replay ids {done['replayIds'][:1]} to {done['replayIds'][-1:]}")


@app.command()
def fault(
    name: Annotated[str | None, typer.Argument(help="Which; see --list.")] = None,
    times: Annotated[int | None, typer.Option(help="How often; 0 until cleared.", min=0)] = None,
    variant: Annotated[str | None, typer.Option(help="Which form of it.")] = None,
    after: Annotated[float | None, typer.Option("--seconds", help="How long, for faults that take time.", min=0)] = None,
    rate: Annotated[float | None, typer.Option(help="How large a share of what it could strike, up to 1; for drop-events.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="What is on, and what there is.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Switch off: the one named, or all.")] = False,
    target: Target = "salesforce",
    url: Url = None,
) -> None:
    """Break something: switch a fault on or off."""
    if clear:
        _ask(url, "DELETE", f"/sandbox/faults{f'?name={name}' if name else ''}", target=target)
        typer.echo(f"cleared: {name or 'all faults'}")
    elif list_ or name is None:
        found = _ask(url, "GET", "/sandbox/faults", target=target)
        for armed in found["armed"]:
            left = "until cleared" if armed["times_left"] is None else f"{armed['times_left']} times"
            typer.echo(f"on   {armed['name']} {armed['variant']} ({left}, fired {armed['fired']})")
        for known, kind in sorted(found["known"].items()):
            variants = f" [{'|'.join(v for v in kind['variants'] if v)}]" if any(kind["variants"]) else ""
            typer.echo(f"     {known}{variants}: {kind['what']}")
    else:
        wanted = {"name": name, "times": times, "variant": variant, "seconds": after, "rate": rate}
        armed = _ask(url, "POST", "/sandbox/faults", {k: v for k, v in wanted.items() if v is not None}, target)
        left = "until cleared" if armed["times_left"] is None else f"{armed['times_left']} times"
        typer.echo(f"on: {armed['name']} {armed['variant']} ({left})")


@app.command()
def user(
    username: Annotated[str, typer.Argument(help="Such as reader@example.org; made where there is none.")],
    hide: Annotated[list[str] | None, typer.Option(help="A field that this user may not see: Contact.Email. May be repeated.")] = None,
    close: Annotated[list[str] | None, typer.Option(help="An object that does not exist for this user. May be repeated.")] = None,
    view_all: Annotated[bool | None, typer.Option("--view-all/--no-view-all", help="The right View All Data.")] = None,
    app_key: Annotated[str | None, typer.Option("--client-id", help="An app that runs as this user; needs --client-secret.")] = None,
    app_secret: Annotated[str | None, typer.Option("--client-secret", help="Its secret.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--frozen", help="A frozen user is logged out and stays so.")] = None,
    url: Url = None,
) -> None:
    """Give or take rights of a user of the sandbox org; what is not named stays as it is."""
    hidden: dict[str, list[str]] = {}
    for path in hide or []:
        sobject, _, field = path.partition(".")
        if not field:
            raise typer.BadParameter(f"{path!r} is no field; write Object.Field, such as Contact.Email")
        hidden.setdefault(sobject, []).append(field)
    given: dict[str, Any] = {"hidden": hidden if hide else None, "closed": close or None, "view_all_data": view_all, "active": active}
    given |= {"client_id": app_key, "client_secret": app_secret}
    done = _ask(url, "POST", "/sandbox/users", {"username": username} | {k: v for k, v in given.items() if v is not None})
    fields = ", ".join(f"{o}.{f}" for o, names in done["hidden"].items() for f in names)
    right = "with" if done["view_all_data"] else "without"
    typer.echo(
        f"{username} ({done['id']}): {right} View All Data; hidden: {fields or 'nothing'}; closed: {', '.join(done['closed']) or 'nothing'}"
    )
