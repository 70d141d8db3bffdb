"""`headrace pause`, `resume`, `refuse`, `refill`: wishes that are written into Kafka, for workers and subscribers to obey."""

import asyncio
import time
from pathlib import Path
from uuid import uuid4

from deploy.context import choose_route, read_all
from deploy.runs import STOPPED_EARLY, Show, answer, run_with_bar
from models.errors import SettingsError
from models.flow import Flow, Salesforce, is_event
from models.settings import Settings
from streams import pauses
from streams.consume import read_all as read_all_of
from streams.log import set_up_logging
from streams.pauses import DELETE, NULL, What, named, read_pauses
from streams.refills import Refill, lift, parked_of, run_refill
from streams.refusals import Refused
from streams.topics import Topics, ensure


def pause(flow_path: Path | None, name: str, because: str, as_json: bool) -> int:
    """Always 0; SettingsError for what is nothing of the flow."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    what, name = named(flow, name)

    async def main() -> pauses.Pause:
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        return await pauses.pause(settings, what, name, because)

    found = asyncio.run(main())
    facts = {"what": what, "name": name, "since": found.since, "because": found.because}
    answer(as_json, facts, f"{found}. {_meaning(flow, what, name)} It goes on with: headrace resume {name}")
    return 0


def _meaning(flow: Flow, what: What, name: str) -> str:
    if what == "target":
        return "Nothing is written to it within a second or two; its writes wait in Kafka (7 days, unless set otherwise)."
    if what == "route":
        if any(is_event(source) for source in flow.routes[name].sources):
            return "Its platform events wait in Kafka, and so do those routes that read the same ones."
        return "What it would write is noted and told when it goes on, each record once, as it is then; what is on its way arrives."
    if isinstance(flow.connections[name], Salesforce):
        return (
            "Nothing is read from it, its position stays (`headrace status`: hours until Salesforce forgets), what it sent waits in Kafka."
        )
    return "Its webhooks are taken as ever and wait in Kafka."


def resume(flow_path: Path | None, name: str, as_json: bool) -> int:
    """Always 0; SettingsError for what is nothing of the flow and not paused."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")

    async def main() -> tuple[What, str, bool]:
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        held = await read_pauses(settings)
        gone = [pause for key, pause in held.items() if name in (key, pause.name)]  # perhaps no longer in the flow
        try:
            what, chosen = named(flow, name)
        except SettingsError:
            if len(gone) != 1:
                raise
            what, chosen = gone[0].what, gone[0].name
        await lift(settings, what, chosen)
        return what, chosen, f"{what}/{chosen}" in held

    what, chosen, was = asyncio.run(main())
    told = "; it tells of what changed meanwhile" if what == "route" else ""
    answer(as_json, {"what": what, "name": chosen, "was_paused": was}, f"{what} {chosen} {'goes on' if was else 'was not paused'}{told}.")
    return 0


def refuse(flow_path: Path | None, route: str, because: str, as_json: bool) -> int:
    """Always 0; SettingsError where no gate holds the route."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    choose_route(flow, route)
    pauses.check_words(because)

    async def main() -> tuple[Refused, int]:
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        held = (await read_pauses(settings)).get(f"route/{route}")
        if held is None:
            raise SettingsError(f"route {route} is not held, so there is nothing to refuse; `headrace status` shows what is")
        if not held.gate:
            raise SettingsError(f"{held}. No gate holds it, so there is nothing to refuse; it goes on with: headrace resume {route}")
        parked = parked_of(await read_all_of(settings, Topics(settings.installation).runs)).get(route, 0)
        why = f"{held.because.partition(';')[0]}{f'; {because}' if because else ''}"
        refused = Refused(f"refuse-{route}-{uuid4().hex[:8]}", route, held.gate, why, int(time.time() * 1000))
        await lift(settings, "route", route, refused)
        return refused, parked

    refused, parked = asyncio.run(main())
    facts = {"run": refused.run, "route": route, "gate": refused.gate, "waiting": parked}
    sentence = (
        f"route {route} goes on. Of {parked:,} records that waited, {_dropped(refused.gate)} dropped: the target keeps what it has of "
        f"them, until they change again or `headrace refill {route}`. `headrace quality {route}` shows how many."
    )
    answer(as_json, facts, sentence)
    return 0


def _dropped(gate: str) -> str:
    if gate == DELETE:
        return "those that leave it are"
    return f"those whose {gate.removeprefix(NULL)} became empty are" if gate.startswith(NULL) else "all are"


def refill(flow_path: Path | None, route: str, as_json: bool) -> int:
    """0 when every record was emitted or asked for, 1 when it was left before; the workers go on."""
    settings, flow = read_all(flow_path)
    choose_route(flow, route)

    async def work(settings: Settings, stop: asyncio.Event, show: Show) -> Refill:
        def progress(run: Refill, waits: str) -> None:
            show(run.seen, run.total if run.total > 0 else None, waits)

        return await run_refill(settings, flow, route, progress=progress, stop=stop)

    run = run_with_bar("refill", settings, flow, f"route {route}", work)
    facts = {"run": run.run, "route": route, "records": run.seen, "asked": run.asked, "done": run.done}
    sentence = f"route {route}: {run.seen:,} records are told again (run {run.run})"
    if run.asked:
        sentence += f"; {run.asked:,} of them lack something the route needs and are read from Salesforce first"
    if not run.done:
        sentence += "; the workers go on, and the same command looks on"
    answer(as_json, facts, f"{sentence}.")
    return 0 if run.done else STOPPED_EARLY
