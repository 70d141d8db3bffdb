"""`headrace verify`: one source against what we hold of it, and each of its routes against its target; the sentences and figures of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import orjson

from agents.rules.reconcile import Compared, What
from agents.verify import Found, Show
from agents.verify_run import claimed, settled, verify_source
from agents.verify_targets import RouteFound
from deploy.context import choose_source, read_all
from deploy.runs import run_with_bar
from models.errors import SettingsError, TemporaryError
from models.settings import Settings
from streams.flow_file import did_you_mean

SHOWN = 1000
"""Differences named one by one in the JSON, of each check."""
KINDS: tuple[What, ...] = get_args(What)


def verify(flow_path: Path | None, source: str, target: str | None, *, repair: bool, quick: bool, as_json: bool) -> int:
    """0 when all is equal or repaired, 1 when differences are left or something could not be said."""
    settings, flow = read_all(flow_path)
    choose_source(flow, source)
    routes = [name for name, route in flow.routes_from(source).items() if target in (None, route.to)]
    if not routes:
        known = sorted({route.to for route in flow.routes_from(source).values()})
        raise SettingsError(f"no route brings {source} to a target {target!r}: {did_you_mean(str(target), known)}")

    async def work(settings: Settings, stop: asyncio.Event, show: Show) -> tuple[Found, list[RouteFound]]:
        running, stopping = (
            asyncio.create_task(verify_source(settings, flow, source, routes, repair=repair, quick=quick, show=show)),
            asyncio.create_task(stop.wait()),
        )
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait([running])
            raise TemporaryError("stopped before everything was compared: nothing can be said; run it again")
        return running.result()

    found, by_route = run_with_bar("verify", settings, flow, source, work)
    print(as_facts(found, by_route, repair) if as_json else sentences(found, by_route, repair))
    return 0 if len(by_route) == len(routes) and all(settled(found, one, repair) for one in by_route) else 1  # paused ones are left out


def verified(found: Found, route: RouteFound, repair: bool) -> str | None:
    """T of a route, in UTC; None where nothing can be claimed."""
    through = claimed(found, route, repair)
    return None if through is None else _utc(through)


def sentences(found: Found, by_route: Sequence[RouteFound], repair: bool) -> str:
    """For people: the source, then one sentence per route."""
    lines = [f"{found.source}: {_compared(found, repair)} "
             f"Read {found.thin:,} rows thin and {found.whole:,} whole in {found.calls:,} API calls."]  # fmt: skip
    for route in by_route:
        name = f"{route.route} → {route.target}"
        told = _compared(route, repair)
        if not route.comparable:
            lines.append(f"{name}: cannot be verified, a target of this type cannot be read back.")
        elif route.behind:
            lines.append(f"{name}: not verified, the workers are {route.behind:,} records behind: run it again when they are through.")
        elif (through := verified(found, route, repair)) is None:
            dead = f" {route.dead:,} more are dead letters (`headrace dead-letters`)." if route.dead else ""
            lines.append(f"{name}: not verified. {told}{dead}")
        else:
            more = f" {route.held:,} more are held back: they cannot be mapped (`headrace dead-letters`)." if route.held else ""
            more += f" {route.refused:,} more were refused (`headrace quality`)." if route.refused else ""
            more += "" if route.lists else " What stands there and should not cannot be listed."
            lines.append(f"{name}: verified through {through}. {told}{more}")
    if repair and (found.repaired or any(route.repaired for route in by_route)):
        lines.append("What was repaired is on its way to the targets; a second run finds nothing.")
    return "\n".join(lines)


def as_facts(found: Found, by_route: Sequence[RouteFound], repair: bool) -> str:
    """For programs."""
    facts: dict[str, Any] = {
        "source": found.source,
        "run": found.run,
        "through": _utc(found.through),
        "thin": found.thin,
        "whole": found.whole,
        "calls": found.calls,
        **_counted(found),
        "routes": {
            route.route: {
                "target": route.target,
                "verified_through": verified(found, route, repair),
                "comparable": route.comparable,
                "behind": route.behind,
                "held": route.held,
                "refused": route.refused,
                "dead": route.dead,
                **_counted(route),
            }
            for route in by_route
        },
    }
    return orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode()


def _counted(found: Compared) -> dict[str, Any]:
    return {
        "compared": found.compared,
        "repaired": found.repaired,
        "kinds": {kind: found.kinds[kind] for kind in KINDS},
        "differences": [asdict(one) for one in found.differences[:SHOWN]],
    }


def _compared(found: Compared, repair: bool) -> str:
    if not (kinds := found.kinds):
        return f"{found.compared:,} compared, none differs."
    told = ", ".join(f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind])
    done = f"{found.repaired:,} repaired" if repair else "nothing was repaired"
    return f"{found.compared:,} compared, {kinds.total():,} differ ({told}); {done}."


def _utc(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
