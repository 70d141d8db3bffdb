"""The front door: every command a person types. Parses and hands on; what a command does stands in the module it imports when it is called.

Imports of the rest of the house stay inside the commands, so that --help answers at once and a broken part breaks only its own command.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy import cli_maps, cli_routes, cli_try
from deploy.cli_options import FlowOption, JsonOption

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, secrets among them
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carries every change in Salesforce, and every webhook, through Apache Kafka to every system that needs it, "
    "and can show that nothing is missing.",
    epilog="Settings of the process are environment variables: KAFKA_BOOTSTRAP_SERVERS, HEADRACE_INSTALLATION, HEADRACE_FLOW, … "
    "What flows where is in the flow file.",
)

AloneOption = Annotated[
    bool, typer.Option("--no-supervise", help="Run without the parent that starts it again: for systemd, Kubernetes and debuggers.")
]
RUN, LOOK, MEND, TRY = "Run the flow", "Look", "Repair and repeat", "Try and test"


def _supervised(role: str, flow: Path | None, *more: str) -> None:
    from deploy.processes import supervise

    raise typer.Exit(supervise(role, [*(("--flow", str(flow)) if flow else ()), *more]))


@app.command(rich_help_panel=RUN)
def worker(flow: FlowOption = None, alone: AloneOption = False) -> None:
    """Process events and write them to the targets: one of any number of workers, which share the partitions.

    Ctrl-C or SIGTERM finishes what is in hand and stops.

    Example: headrace worker --flow flow.yaml
    """
    if not alone:
        _supervised("worker", flow)
    from deploy import processes

    processes.worker(flow)


@app.command(rich_help_panel=RUN)
def subscribe(
    connection: Annotated[str | None, typer.Argument(help="The Salesforce connection, or all; needed when there are several.")] = None,
    start_from: Annotated[
        Literal["new", "retained"] | None,
        typer.Option("--from", help="The first start needs it: begin with what happens from now on, or with all Salesforce still holds."),
    ] = None,
    flow: FlowOption = None,
    alone: AloneOption = False,
) -> None:
    """Take what changes in a Salesforce org into Kafka, by its events or by polling. A second one for the same org waits and takes over.

    Example: headrace subscribe acme --from retained
    """
    if not alone:
        _supervised("subscribe", flow, *(("--from", start_from) if start_from else ()), *(("--", connection) if connection else ()))
    from deploy import processes

    processes.subscribe(flow, connection, start_from)


@app.command(rich_help_panel=RUN)
def receive(flow: FlowOption = None, alone: AloneOption = False) -> None:
    """Take webhooks into Kafka: POST /hooks/<source>, signatures checked, answered with 2xx only after Kafka has them.

    Example: HEADRACE_RECEIVER_PORT=8080 headrace receive
    """
    if not alone:
        _supervised("receive", flow)
    from deploy import processes

    processes.receive(flow)


@app.command(rich_help_panel=RUN)
def snapshot(
    sources: Annotated[list[str], typer.Argument(help="<connection>/<sObject>, or a <connection>: all of its sources.", metavar="SOURCE")],
    where: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="Only what this says, as in SOQL; nothing is said of others.")
    ] = None,
    fields: Annotated[str | None, typer.Option(metavar="A,B", help="Only these columns; the others stay as they are known.")] = None,
    via: Annotated[Literal["rest", "bulk"] | None, typer.Option(help="REST pages or a Bulk API 2.0 job; else the size decides.")] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Let what is under way wait: a SOURCE's runs, or one by its id.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let it go on; here, where no process works on it.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End it for good; what it read stays.")] = False,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Read records anew, beside the live events and never over them: parents before children, one sObject after another.

    Ctrl-C leaves it where it is, and the same command goes on, also after a kill. It waits by itself while workers or targets are far
    behind or the org's calls run short; `headrace status` shows it. Exit code 1: COUNT() has more records, and nothing explains why.

    Example: headrace snapshot acme/Contact --where "CreatedDate >= 2026-01-01T00:00:00Z" --fields Email,Title
    """
    from deploy import snapshots

    if (asked := pause + resume + stop) > 1 or (asked and (where or fields or via)):
        raise typer.BadParameter("one of --pause, --resume and --stop, and nothing beside it", param_hint="--pause")
    if asked:
        raise typer.Exit(snapshots.steer(flow, sources, "pause" if pause else "stop" if stop else "go", json))
    raise typer.Exit(snapshots.snapshot(flow, sources, where, fields, via, json))


@app.command(rich_help_panel=LOOK)
def check(
    flow: FlowOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what the files show: ask neither Salesforce nor the targets.")] = False,
    json: JsonOption = False,
) -> None:
    """Find every mistake in the flow file and its maps, and compare them with the org and the targets. Exit code 1 when there is one.

    Example: headrace check --flow flow.yaml --offline
    """
    from deploy.check import run_check

    raise typer.Exit(run_check(flow, offline=offline, as_json=json))


@app.command(rich_help_panel=RUN)
def login(
    connection: Annotated[str | None, typer.Argument(help="The Salesforce connection; needed when the flow file has several.")] = None,
    paste: Annotated[bool, typer.Option("--paste", help="Paste the address the browser ends at: for a machine without one.")] = False,
    flow: FlowOption = None,
) -> None:
    """Grant a connection of `flow: web_server` access to its org, in a browser; the refresh token is kept encrypted (HEADRACE_TOKEN_KEYS).

    Example: headrace login acme --paste
    """
    from deploy.login import run_login

    raise typer.Exit(run_login(flow, connection, paste))


@app.command(rich_help_panel=LOOK)
def status(
    flow: FlowOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every two seconds, until Ctrl-C.")] = False,
    json: JsonOption = False,
) -> None:
    """Show over all processes what went through, what waits and for how long, what is dead, and how long until something would be lost.

    Example: headrace status --watch
    """
    from deploy import looks

    raise typer.Exit(looks.status(flow, watch, json))


@app.command("dead-letters", rich_help_panel=LOOK)
def dead_letters(
    cause: Annotated[str | None, typer.Option("--cause", help="Only those of this cause, one by one.")] = None,
    json: JsonOption = False,
) -> None:
    """List the events that could not pass: what, why, how often, and what to do. Grouped by cause.

    Example: headrace dead-letters --cause 4f1d2c
    """
    from deploy import looks

    raise typer.Exit(looks.dead_letters(cause, json))


@app.command(rich_help_panel=LOOK)
def incidents(
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are not repaired.")] = False,
    json: JsonOption = False,
) -> None:
    """List what Salesforce withheld (gaps, overflows, refused positions) or a target lost, and its repair: cause, extent, cost, proof.

    The subscriber repairs them by itself; exit code 1 says that one could not be repaired.

    Example: headrace incidents --open
    """
    from deploy import looks

    raise typer.Exit(looks.incidents(only_open, json))


@app.command(rich_help_panel=MEND)
def redrive(
    what: Annotated[str, typer.Argument(help="The id of a dead letter, or a cause: all letters of it.", metavar="ID|CAUSE")],
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Send dead letters through the flow once more, after their cause was mended. `headrace dead-letters` lists ids and causes.

    Example: headrace redrive headrace.in.acme.Contact/3/1207/people
    """
    from deploy import runs

    raise typer.Exit(runs.redrive(flow, what, json))


@app.command(rich_help_panel=MEND)
def verify(
    source: Annotated[str, typer.Argument(help="What to compare: <connection>/<sObject>.", metavar="SOURCE")],
    target: Annotated[str | None, typer.Option("--target", metavar="TARGET", help="Only routes to this target.")] = None,
    no_repair: Annotated[bool, typer.Option("--no-repair", help="Only report what differs.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Read only what changed since it was last verified, and COUNT of the rest; what was right then is taken to be so.",
        ),
    ] = False,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Compare an sObject with what came of it, here and in the targets, repair what differs, and say through when it is verified.

    Workers run meanwhile; what is on its way is no difference. Exit code 1 when differences are left.
    A route with `verify: 24h` is verified by itself.

    Example: headrace verify acme/Contact --target warehouse
    """
    from deploy import verify as command

    raise typer.Exit(command.verify(flow, source, target, repair=not no_repair, quick=quick, as_json=json))


@app.command(rich_help_panel=MEND)
def adopt(
    target: Annotated[str, typer.Argument(help="The target whose records another installation wrote.", metavar="TARGET")],
    flow: FlowOption = None,
) -> None:
    """Take over what another installation wrote in a target: until then the target refuses us, so that two never write one record.

    Stop the other installation first.

    Example: headrace adopt warehouse
    """
    from deploy import runs

    raise typer.Exit(runs.adopt(flow, target))


@app.command("accept-loss", rich_help_panel=MEND)
def accept_loss(
    what: Annotated[
        str | None,
        typer.Argument(help="Its id, a topic, or all; without it the losses are listed and nothing is done.", metavar="ID|TOPIC|all"),
    ] = None,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Let a partition go on whose log lost records before they were read (retention, a topic made anew), and say how to fetch them again.

    Until then it waits, and the others go on. Workers may run meanwhile; they see it within seconds. What Salesforce can show again is read
    by the subscriber, as an incident; where that is all, and retention the cause, it does not wait for this command.

    Example: headrace accept-loss headrace.in.acme.Contact
    """
    from deploy import runs

    raise typer.Exit(runs.accept_loss(flow, what, json))


app.command(rich_help_panel=LOOK)(cli_routes.quality)
app.command(rich_help_panel=LOOK)(cli_maps.fields)
app.command(rich_help_panel=RUN)(cli_routes.pause)
app.command(rich_help_panel=RUN)(cli_routes.resume)
app.command(rich_help_panel=RUN)(cli_routes.refuse)
app.command(rich_help_panel=MEND)(cli_routes.refill)
app.command(rich_help_panel=MEND)(cli_routes.replay)
app.add_typer(cli_maps.app, name="map", rich_help_panel=TRY)
for command in (cli_try.demo, cli_try.soak, cli_try.bench):
    app.command(rich_help_panel=TRY)(command)
REST = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(rich_help_panel=TRY, context_settings=REST)(cli_try.test)
app.command(rich_help_panel=TRY, add_help_option=False, context_settings=REST | {"help_option_names": []})(cli_try.sandbox)


def main() -> int:
    """Run the command of sys.argv; the exit code: 0 done, 1 could not, 2 the person's words or settings."""
    from deploy.failures import told

    with told():  # typer's own call would put its hook for tracebacks in the place of ours
        typer.main.get_command(app).main(sys.argv[1:], prog_name="headrace")
    return 0
