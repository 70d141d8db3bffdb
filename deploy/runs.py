"""The commands that work for a while and end: replay, redrive, accept-loss, adopt. Progress goes to stderr, the answer to stdout.

Each takes SIGTERM and Ctrl-C as a clean stop: what is in Kafka stays, and the same command goes on from there.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from deploy.context import choose_route, read_all
from deploy.processes import stop_signals
from models.errors import SettingsError
from models.flow import Flow
from models.settings import Settings
from streams.flow_file import did_you_mean
from streams.health import Health
from streams.log import set_up_logging
from streams.losses import accept, losses
from streams.replay import Replay, run_replay
from streams.topics import Topics, ensure

T = TypeVar("T")
PLAIN_SECONDS = 5.0
"""Where stderr is no terminal, a line so often."""
STOPPED_EARLY = 1


class Show:
    """Progress on stderr: a bar on a terminal, else a line every few seconds. Called with how many are done, of how many (None, 0: not
    known), of what where that changes, and what there is to say.
    """

    def __init__(self, what: str, progress: Progress) -> None:
        self._what, self._progress = what, progress
        self._task = progress.add_task(what, total=None, note="")
        self._next, self._note = time.monotonic() + PLAIN_SECONDS, ""

    def __call__(self, done: int, total: int | None, note: str = "", what: str | None = None) -> None:
        self._what = what or self._what
        self._progress.update(self._task, completed=done, total=total or None, note=note, description=self._what)
        held = "" if note[:1].isdigit() else note.partition(":")[0]
        if self._progress.disable and (time.monotonic() > self._next or held != self._note):
            self._next, self._note = time.monotonic() + PLAIN_SECONDS, held
            print(f"{self._what}: {done:,}{f' of {total:,}' if total else ''}{f', {note}' if note else ''}", file=sys.stderr, flush=True)


def replay(flow_path: Path | None, route: str, begin: str, end: str, run_id: str | None, as_json: bool) -> int:
    """0 when the whole range was sent, 1 when it was stopped before."""
    settings, flow = read_all(flow_path)
    choose_route(flow, route)

    async def work(settings: Settings, stop: asyncio.Event, show: Show) -> Replay:
        return await run_replay(
            settings, flow, route, begin, end, run_id=run_id, progress=lambda state: show(state.passed, state.total), stop=stop
        )

    state = run_with_bar("replay", settings, flow, f"route {route}", work)
    facts = {"run": state.run, "route": route, "sent": state.sent, "skipped": state.skipped, "left_out": state.left_out, "done": state.done}
    sentence = f"route {route}: {state.sent:,} events are on their way again (run {state.run})"
    if state.skipped or state.left_out:
        sentence += f"; {state.skipped:,} were themselves repeats, {state.left_out:,} could not be repeated"
    if not state.done:
        sentence += f"; stopped early: headrace replay {route} --from {begin} --run {state.run} goes on"
    answer(as_json, facts, f"{sentence}.")
    return 0 if state.done else STOPPED_EARLY


def redrive(flow_path: Path | None, what: str, as_json: bool) -> int:
    """0 when every letter that was meant is on its way, 1 when some had to stay."""
    from agents.dead_letters import redrive as send_again

    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    done = asyncio.run(send_again(settings, flow, what))
    sentence = "\n".join(
        [
            f"{len(done.sent):,} sent once more (run {done.run}).",
            *(f"stays dead: {i}: {why}" for i, why in done.left.items()),
        ]
    )
    answer(as_json, {"run": done.run, "sent": list(done.sent), "left": dict(done.left)}, sentence)
    return 1 if done.left else 0


def accept_loss(flow_path: Path | None, what: str | None, as_json: bool) -> int:
    """0 when nothing is lost that was not accepted, 1 when it was only listed."""
    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    open_ = asyncio.run(losses(settings, what))
    if what is None:
        lines = [f"{letter.id}: {letter.reason}" for letter in open_] or ["nothing was lost"]
        answer(as_json, {"open": {letter.id: letter.reason for letter in open_}}, "\n".join(lines))
        return 1 if open_ else 0
    done = asyncio.run(accept(settings, flow, open_))
    sentence = "\n".join(f"{one.id}: goes on at offset {one.offset}; {one.todo}" for one in done) or "nothing was lost"
    answer(as_json, {"accepted": {one.id: {"offset": one.offset, "todo": one.todo} for one in done}}, sentence)
    return 0


def adopt(flow_path: Path | None, name: str) -> int:
    """Always 0; SettingsError when there is no such target or it keeps no owner."""
    from agents.targets import make_target

    settings, flow = read_all(flow_path)
    set_up_logging(settings.log_format, level="WARNING")
    if name not in flow.targets:
        raise SettingsError(f"there is no target {name!r}: {did_you_mean(name, flow.targets, 'add it to the flow file')}")
    target = make_target(name, flow.targets[name], settings.installation)
    take = getattr(target, "adopt", None)
    if take is None:
        raise SettingsError(f"target {name} keeps no owner of its records: there is nothing to adopt")

    async def work() -> list[str]:
        try:
            taken: list[str] = await take()
            return taken
        finally:
            await target.close()

    taken = asyncio.run(work())
    print(f"taken over: {', '.join(taken)}" if taken else f"{name} holds nothing of another installation")
    return 0


def run_with_bar(role: str, settings: Settings, flow: Flow, what: str, work: Callable[[Settings, asyncio.Event, Show], Awaitable[T]]) -> T:
    """The work with topics made, health served, signals heard and a bar."""
    set_up_logging(settings.log_format, level="WARNING")
    settings = settings.model_copy(update={"metrics_port": 0})  # the configured one belongs to the process that stays
    health = Health(settings, role)

    async def main() -> T:
        stop = stop_signals()
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        await health.start()
        health.ready(role, True)
        try:
            with _bar(what) as show:
                return await work(settings, stop, show)
        finally:
            await health.stop()

    return asyncio.run(main())


@contextmanager
def _bar(what: str) -> Iterator[Show]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}", markup=False))  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Show(what, progress)


def answer(as_json: bool, facts: dict[str, Any], sentence: str) -> None:
    print(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS).decode() if as_json else sentence)
