"""The commands that need nothing of a user's, `demo`, `soak`, `bench`, `test`, `sandbox`: parsed as those in cli.py, which adds them."""

from typing import Annotated

import typer

from deploy.cli_options import JsonOption


def demo(
    example: Annotated[str | None, typer.Argument(metavar="[iterable|gtm-clarity]", help="An example flow, told as a story.")] = None,
    seconds: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="End by itself after this time (90s, 5m) and compare source and targets.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the whole flow on this machine alone: Kafka, PostgreSQL, a sandbox Salesforce and Iterable, and changes going through.

    The example flows end by themselves, after 30 s where nothing is said.

    Example: headrace demo --for 60s --json, headrace demo iterable
    """
    from deploy.context import duration

    lasting = None if seconds is None else duration(seconds)
    if example is None:
        from deploy.demo import run_demo

        raise typer.Exit(run_demo(lasting, json))
    from deploy.demo_flows import SCENES, run_flow

    if example not in SCENES:
        raise typer.BadParameter(f"there is no example {example!r}: {' or '.join(SCENES)}, or none", param_hint="example")
    raise typer.Exit(run_flow(example, lasting, json))


def soak(
    seconds: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long faults strike (90s, 10m); then it settles and judges.")
    ] = "10m",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeat the run of this seed: the same changes and faults.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Break everything at random under load, on this machine alone, and prove that nothing was lost and nothing came twice.

    Exit code 0 only when the verdict holds.

    Example: headrace soak --for 10m --seed 42
    """
    from deploy.context import duration
    from deploy.soak.run import run_soak

    raise typer.Exit(run_soak(duration(seconds), seed, json))


def bench(
    case: Annotated[str | None, typer.Argument(metavar="[snapshot]", help="A snapshot beside live changes, instead of the cases.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, under five minutes on two cores.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="With Kafka Connect and Quix Streams, which are fetched.")] = False,
    only: Annotated[str | None, typer.Option("--only", metavar="CASES", help="Only these cases, such as bc; all are abcdefg.")] = None,
    records: Annotated[int, typer.Option(min=1000, max=1_000_000, help="Of a snapshot.")] = 200_000,
    json: JsonOption = False,
) -> None:
    """Measure Headrace beside stock Faust and loops written by hand: same machine, same run, same work, interleaved.

    Writes JSON and Markdown below .headrace/bench. No figure makes it fail.

    Example: headrace bench --quick --json, headrace bench snapshot
    """
    from deploy.bench.run import run_bench

    if case not in (None, "snapshot"):
        raise typer.BadParameter(f"there is no case {case}: `headrace bench snapshot`, or --only", param_hint="case")
    if case and only:
        raise typer.BadParameter("--only chooses among the cases that `snapshot` is instead of", param_hint="--only")
    if wrong := set(only or "") - set("abcdefg"):
        raise typer.BadParameter(f"there is no case {', '.join(sorted(wrong))}: name some of abcdefg", param_hint="--only")
    raise typer.Exit(run_bench(quick, json, peers, [case] if case else only or "abcdefg", records))


def test(
    context: typer.Context,
    fast: Annotated[bool, typer.Option("--fast", help="Leave out what needs Kafka or PostgreSQL.")] = False,
    long: Annotated[bool, typer.Option("--long", help="With the long runs.")] = False,
) -> None:
    """Check style, types and imports, and run the tests. Other arguments go to pytest.

    Example: headrace test --fast -k merge
    """
    from deploy import testing

    raise typer.Exit(testing.run(fast, long, list(context.args)))


def sandbox(context: typer.Context) -> None:
    """A Salesforce and an Iterable at your desk, with faults to switch on. `headrace sandbox --help` lists its own commands.

    Example: headrace sandbox salesforce --records 1000
    """
    from deploy.sandbox.commands import app as commands

    typer.main.get_command(commands).main(list(context.args), prog_name="headrace sandbox")
