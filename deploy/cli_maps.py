"""The commands of maps, `map try`, `map draft` and `map activate`: parsed as those in cli.py, which adds them."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_options import FlowOption, JsonOption

app = typer.Typer(
    no_args_is_help=True,
    help="Try a map on one record, begin one, or put one into use.\n\nExample: headrace map try person --sample record.json",
)


@app.command("try")
def try_(
    map: Annotated[str, typer.Argument(metavar="MAP", help="A map file, or a built-in map's name.")],
    record: Annotated[str | None, typer.Option("--record", metavar="ID", help="Read this record from the org.", show_default=False)] = None,
    sample: Annotated[
        Path | None, typer.Option("--sample", metavar="FILE", help="Take the JSON object of a file.", show_default=False)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="SOURCE", help="Where the record comes from, such as acme/Contact; else the routes tell.", show_default=False
        ),
    ] = None,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Show before and after of each field, with the reason. Writes nothing anywhere. Exit code 1: the record would be refused.

    Example: headrace map try maps/person.yaml --record 003Qx00000Ke4RtIAJ
    """
    from deploy.maps import try_map

    raise typer.Exit(try_map(flow, map, record, sample, source, json))


@app.command()
def draft(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What is to be mapped, such as acme/Contact.")],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="The target of the flow file.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new file; one that is there is left alone.", show_default=False)
    ] = None,
    flow: FlowOption = None,
) -> None:
    """Write a first map of an sObject with every field, its type and label, from the org's describe.

    Example: headrace map draft acme/Contact --to warehouse --out maps/contact.yaml
    """
    from deploy.maps import draft_map

    raise typer.Exit(draft_map(flow, source, to, out))


@app.command()
def activate(
    route: Annotated[str, typer.Argument(metavar="ROUTE", help="The route whose map file shall be in use.")],
    above: Annotated[int, typer.Option("--above", min=0, help="Give it a number above this; when the topic of versions was lost.")] = 0,
    flow: FlowOption = None,
) -> None:
    """Make the map that the flow file names the next version of the route's, though it is an older one. Workers do so with new ones.

    Example: headrace map activate people
    """
    from deploy.maps import activate_map

    raise typer.Exit(activate_map(flow, route, above))


def fields(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="<connection>/<sObject>; no route need read it.")],
    writable: Annotated[bool, typer.Option("--writable", help="Only those that the user may change.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the org anew: what it said is kept for an hour.")] = False,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """List the fields of an sObject that the connection's user sees, and the routes that read them: standard ones, then custom ones, by
    label; parts instead of compounds.

    Example: headrace fields acme/Contact --writable
    """
    from deploy.fields import fields as command

    raise typer.Exit(command(flow, source, writable, refresh, json))
