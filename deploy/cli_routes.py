"""The commands of a route's daily life, `pause` to `replay`, and `quality`: parsed as those in cli.py, which adds them."""

from typing import Annotated

import typer

from deploy.cli_options import FlowOption, JsonOption


def pause(
    name: Annotated[str, typer.Argument(help="What is to wait; `route/NAME` where several have it.", metavar="ROUTE|TARGET|CONNECTION")],
    because: Annotated[str, typer.Option("--because", metavar="WORDS", help="Why, for `headrace status`.", show_default=False)] = "",
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Hold a route, a target or a connection; everything else goes on, nothing is lost, and what waits is shown by `headrace status`.

    All processes obey within a second or two, also those that start later, until `headrace resume`.

    Example: headrace pause warehouse --because "moving to the new server"
    """
    from deploy import holds

    raise typer.Exit(holds.pause(flow, name, because, json))


def resume(
    name: Annotated[str, typer.Argument(help="What was paused.", metavar="ROUTE|TARGET|CONNECTION")],
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Let what was paused go on where it was. A route tells of every record that changed meanwhile, once, as it is now.

    Example: headrace resume warehouse
    """
    from deploy import holds

    raise typer.Exit(holds.resume(flow, name, json))


def refuse(
    route: Annotated[str, typer.Argument(help="The route that a gate holds.", metavar="ROUTE")],
    because: Annotated[str, typer.Option("--because", metavar="WORDS", help="Why, for `headrace quality`.", show_default=False)] = "",
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Drop the deletes, the emptied fields or the spike for which a gate holds a route: the target keeps what it has. The route goes on.

    What else changed meanwhile is told. A dropped record is told when it changes next, whole, as it is then; all of them by a refill.
    `headrace quality` shows the decision. Where it was meant after all, resume the route instead.

    Example: headrace refuse contacts --because "an import went wrong"
    """
    from deploy import holds

    raise typer.Exit(holds.refuse(flow, route, because, json))


def refill(
    route: Annotated[str, typer.Argument(help="The route whose target is to be filled.", metavar="ROUTE")],
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Fill a new or emptied target with all records as they are known here: without a call to Salesforce, beside the live events.

    The workers do it; Ctrl-C only stops looking on. `headrace pause ROUTE` holds it. Records that lack a field of the route are read.

    Example: headrace refill people
    """
    from deploy import holds

    raise typer.Exit(holds.refill(flow, route, json))


def replay(
    route: Annotated[str, typer.Argument(help="The route whose events come again.", metavar="ROUTE")],
    begin: Annotated[
        str, typer.Option("--from", metavar="WHEN", help="From here on: 2026-11-25T08:00Z, -2h, or partition:offset such as 3:1200.")
    ],
    end: Annotated[str, typer.Option("--to", metavar="WHEN", help="Up to here.")] = "now",
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Go on with this run, which was stopped.")] = None,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Send a stretch of past events through one route again, beside the live ones: after a map was changed, or a target lost data.

    Example: headrace replay people --from 2026-11-25T08:00Z --to 2026-11-25T09:00Z
    """
    from deploy import runs

    raise typer.Exit(runs.replay(flow, route, begin, end, run, json))


def quality(
    route: Annotated[str | None, typer.Argument(help="Only this route: hour by hour, and why records failed.", metavar="[ROUTE]")] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Try at once what the route's target refused lately.", show_default=False)
    ] = False,
    flow: FlowOption = None,
    json: JsonOption = False,
) -> None:
    """Show how many records came to each route, passed, failed, and were removed as duplicates, by batch; and why they failed.

    Also swarms that were refused, and what the target of a route whose quality names `target` refused: that is not tried again now.

    Example: headrace quality people
    """
    from deploy import quality as command

    if forget:
        if route is None:
            raise typer.BadParameter("--forget needs a route", param_hint="ROUTE")
        raise typer.Exit(command.forget(flow, route, json))
    raise typer.Exit(command.quality(flow, route, json))
