"""What people hold: routes, targets and connections that are paused, in a compacted topic that every process follows.

Whoever obeys asks `held`, which looks at what was read a moment ago; nothing here stops anything. All records stand in one partition, so
they have one order, and whoever read up to its end knows of every pause that was answered before.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import orjson
import structlog

from models.errors import SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams import metrics
from streams.consume import read_last
from streams.engine.stage import Output
from streams.follow import Followed
from streams.publish import send
from streams.topics import Topics

log = structlog.get_logger()

What = Literal["route", "target", "connection"]
WHATS: tuple[What, ...] = get_args(What)
EVERY_SECONDS = 1.0
"""Between two readings."""
CAME, DELETE, NULL = "spike", "delete", "null "
"""As what a gate counts a record: it came, it leaves the target, a field of it (behind NULL) became empty."""


@dataclass(frozen=True, slots=True)
class Pause:
    """One of them. `since`: epoch ms; `because`: in the words of who paused it, perhaps none; `gate`: the mark of the gate that did it."""

    what: What
    name: str
    since: int
    because: str = ""
    gate: str = ""

    @property
    def key(self) -> str:
        """Key of its record."""
        return f"{self.what}/{self.name}"

    def output(self, topics: Topics) -> Output:
        """The record that stores it: all of them in one partition."""
        value = orjson.dumps({"since": self.since, "because": self.because} | ({"gate": self.gate} if self.gate else {}))
        return Output(topics.pauses, self.key.encode(), value, partition=0)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(self.since / 1000))
        return f"{self.what} {self.name} is paused since {since}{f': {self.because}' if self.because else ''}"


Paused = Mapping[str, Pause]
"""By key."""


def parse_pause(key: bytes | None, value: bytes | None) -> Pause | None:
    """None for one that was lifted. What is damaged still pauses: it was somebody's wish, and says so."""
    head, _, name = (key or b"").decode(errors="replace").partition("/")
    what = next((one for one in WHATS if one == head), None)
    if value is None or what is None:
        return None
    try:
        found = orjson.loads(value)
        return Pause(what, name, int(found["since"]), str(found["because"]), str(found.get("gate", "")))
    except (ValueError, TypeError, KeyError):
        return Pause(what, name, 0, "(what was said cannot be read: pause it anew, or resume it)")


async def read_pauses(settings: Settings) -> dict[str, Pause]:
    """All pauses by key. Raises TemporaryError, FatalError (no such topic)."""
    last = await read_last(settings, Topics(settings.installation).pauses)
    found = (parse_pause(key, record.value) for key, record in last.items())
    return {pause.key: pause for pause in found if pause is not None}


def named(flow: Flow, name: str) -> tuple[What, str]:
    """What a name means: a route, target or connection; `route/NAME` where several have it. Raises SettingsError."""
    known: dict[What, Mapping[str, object]] = {"route": flow.routes, "target": flow.targets, "connection": flow.connections}
    head, slash, rest = name.partition("/")
    meant: list[What] = [what for what, names in known.items() if (name in names if not slash else head == what and rest in names)]
    if len(meant) == 1:
        return meant[0], rest if slash else name
    if meant:
        raise SettingsError(f"{name} is {' and '.join(f'a {what}' for what in meant)}: say {' or '.join(f'{w}/{name}' for w in meant)}")
    have = "; ".join(f"{what}s: {', '.join(names) or 'none'}" for what, names in known.items())
    raise SettingsError(f"there is no route, target or connection {name!r}; the flow file has {have}")


def check_words(because: str) -> None:
    """Raises SettingsError for what is no line of words."""
    if len(because) > 500 or not because.isprintable():
        raise SettingsError("--because takes up to 500 characters of plain text, in one line")


async def pause(settings: Settings, what: What, name: str, because: str) -> Pause:
    """Pause it; one that is paused stays so since then, with the new words where there are any.

    Raises SettingsError (the words), TemporaryError.
    """
    check_words(because)
    before = (await read_pauses(settings)).get(f"{what}/{name}")
    before = before or Pause(what, name, int(time.time() * 1000))
    found = replace(before, because=because or before.because)
    await send(settings, [found.output(Topics(settings.installation))])
    return found


class Pauses:
    """What is paused, in a process. `changed` is called whenever that is something else."""

    def __init__(self, settings: Settings, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._followed = Followed(settings, Topics(settings.installation).pauses)
        self._paused: Paused = {}
        self._following: asyncio.Task[None] | None = None

    def held(self, what: What, name: str) -> Pause | None:
        """The pause, as last read."""
        return self._paused.get(f"{what}/{name}")

    def why(self, what: What, name: str) -> str:
        """The same in words, "" when it is not paused."""
        pause = self.held(what, name)
        return str(pause) if pause else ""

    async def follow(self) -> None:
        """Read what is stored now, and from then on again and again until `stop`. Raises TemporaryError: then it follows nothing."""
        await self.fresh()
        if self._following is None:
            self._following = asyncio.create_task(self._follow())

    async def fresh(self) -> None:
        """Read what is stored now. Raises TemporaryError."""
        found = await self._followed.all_of(0)
        parsed = (parse_pause(key, value) for key, value in found.items())
        before, self._paused = self._paused, {pause.key: pause for pause in parsed if pause is not None}
        for key in before.keys() ^ self._paused.keys():
            what, _, name = key.partition("/")
            pause = self._paused.get(key)
            for cause in ("people", "gate"):
                metrics.HELD.labels(what, name, cause).set(pause is not None and bool(pause.gate) == (cause == "gate"))
            log.info("paused" if key in self._paused else "resumed", what=what, name=name)
        if before.keys() != self._paused.keys():
            self._changed()

    async def stop(self) -> None:
        """Close."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await self._followed.stop()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await self.fresh()
            except TemporaryError as error:  # what was known holds; who needs Kafka hears of it too
                log.info("pauses could not be read", reason=error.reason)
