"""The topic `maps`: by route the version of its map that is in use everywhere, with its text. Reads and writes it, and knows no map.

The key is the route, so that its numbers go on whatever file it names. Numbers are given by `publish` alone: it fences whoever else is
about to, reads the topic to its end and only then decides, so no number is given twice. A version is in use from the moment it is in the
topic (the broker's time: no clock of ours counts); what was its content before stays known by hash, to tell an older file from a new one.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
import structlog

from models.errors import FatalError
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Output, Record
from streams.publish import TransactionalPublisher
from streams.topics import Topics

log = structlog.get_logger()

KEPT = 500
"""Hashes of the past that are kept of a route."""
ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class OrgFields:
    """In what a map follows the org, of one source.

    added   by field its type: what `fields: all` gives beside the map's lines; "" where it is not taken, being of another type now
    gone    paths that the org does not show any more: what is known of them stays, and nothing waits for them
    """

    added: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MapText:
    """A map as it is written. `name` as the flow says it; `text` None: a built-in one, whose `hash` is that of what it does.

    org   by source in what it follows the org; None: as before
    """

    name: str
    text: str | None
    hash: str
    org: Mapping[str, OrgFields] | None = None

    @classmethod
    def of(cls, name: str, text: str) -> "MapText":
        """Of a text."""
        return cls(name, text, hash_of(text))


@dataclass(frozen=True, slots=True)
class MapVersion:
    """A version of a route's map. `was`: hashes of those before, the last at the end; `since`: epoch ms of the broker."""

    route: str
    number: int
    map: MapText
    was: tuple[str, ...] = ()
    since: int = 0

    def next(self, map: MapText) -> "MapVersion":
        """The one that follows it."""
        map = replace(map, org=self.map.org) if map.org is None else map
        was = self.was if map.hash == self.map.hash else (*self.was, self.map.hash)[-KEPT:]
        return MapVersion(self.route, self.number + 1, map, was)

    def place(self, hash: str) -> int:
        """The last place of a hash among those that were and this one; -1: it never was."""
        all_ = (*self.was, self.map.hash)
        return max((place for place, each in enumerate(all_) if each == hash), default=-1)

    def output(self, topics: Topics) -> Output:
        """As a record of the topic."""
        value = {"version": self.number, "map": self.map.name, "text": self.map.text, "hash": self.map.hash, "was": self.was}
        value["org"] = {source: asdict(fields) for source, fields in (self.map.org or {}).items()}
        return Output(topics.maps, self.route.encode(), orjson.dumps(value))


def hash_of(text: str) -> str:
    """Of a map's text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def parse(records: Iterable[Record]) -> dict[str, MapVersion]:
    """The last version of each route among these records of the topic. Raises FatalError for what cannot be read."""
    found: dict[str, MapVersion] = {}
    for record in records:
        route = (record.key or b"").decode(errors="replace")
        if record.value is None:
            continue
        try:
            told = orjson.loads(record.value)
            org = {source: _org_fields(fields) for source, fields in told.get("org", {}).items()}
            text = MapText(str(told["map"]), told["text"], str(told["hash"]), org)
            version = MapVersion(route, int(told["version"]), text, tuple(map(str, told["was"])), record.timestamp)
            if not (text.text is None or isinstance(text.text, str)):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FatalError(
                f"{record.topic} {record.partition}:{record.offset} is no version of a map: it was written by a later Headrace, or by "
                "somebody else; start the version that wrote it"
            ) from None
        if route not in found or found[route].number < version.number:
            found[route] = version
    return found


def _org_fields(told: Any) -> OrgFields:
    return OrgFields({str(name): str(kind) for name, kind in told["added"].items()}, tuple(map(str, told["gone"])))


async def read_versions(settings: Settings) -> dict[str, MapVersion]:
    """By route what is in use now. Raises TemporaryError, FatalError (no such topic, not readable)."""
    return parse(await read_all(settings, Topics(settings.installation).maps))


Known = Mapping[str, MapVersion]
Choose = Callable[[Known], Mapping[str, MapText]]
Beside = Callable[[Known, Sequence[MapVersion]], Sequence[Output]]


async def publish(settings: Settings, choose: Choose, *, above: int = 0, beside: Beside = lambda *_: ()) -> dict[str, MapVersion]:
    """Make what `choose` picks, told what is in use, the next version of its route; everything that is in use then.

    It is called again when somebody else published meanwhile. A text that is in use already makes no version, unless its number is not
    `above` what is given. `beside`: what is to be in Kafka with the new ones, or not at all, told what was in use and what is new.
    Raises TemporaryError, FatalError.
    """
    topics = Topics(settings.installation)
    for attempt in range(ATTEMPTS):
        try:
            async with TransactionalPublisher(settings, f"{settings.installation}.maps") as publisher:
                known = await read_versions(settings)
                fresh = list(_next(known, choose(known), above))
                if not fresh:
                    return known
                await publisher.send([*(version.output(topics) for version in fresh), *beside(known, fresh)])
                return await read_versions(settings)
        except FatalError:  # another one publishes, or it is not known whether ours is there: what stands there tells
            if attempt == ATTEMPTS - 1:
                raise
        await asyncio.sleep(random.uniform(0.05, 0.5))
    raise FatalError("unreachable")


def _next(known: Mapping[str, MapVersion], wanted: Mapping[str, MapText], above: int) -> Iterable[MapVersion]:
    for route, text in wanted.items():
        if (held := known.get(route)) is None:
            yield MapVersion(route, above + 1, text)
        elif (fresh := held.next(text)).map.hash != held.map.hash or fresh.map.org != held.map.org or held.number <= above:
            yield replace(fresh, number=max(held.number, above) + 1)


def older(held: MapVersion, file: MapText, last: str | None) -> bool:
    """Whether a file is behind what is in use, so that it must not replace it.

    last   hash of the same file before it changed; None: it is seen for the first time (a start)

    A file that held something later before was set back on purpose: that is a change. One that comes forward along what was (a machine
    that gets its files late) is not, and neither is one that a process starts with.
    """
    place = held.place(file.hash)
    return place >= 0 and file.hash != held.map.hash and (last is None or held.place(last) <= place)


@dataclass(frozen=True, slots=True)
class MapInUse:
    """The version of a route's map that is in use since (epoch ms), and by process why the file beside it is not.

    gone   what the org does not show any more, or of another type: "acme/Contact Score__c"
    """

    route: str
    map: str
    version: int
    since: int
    broken: dict[str, str]
    gone: list[str]


def shown(flow: Flow, versions: Mapping[str, MapVersion], broken: Mapping[str, Mapping[str, str]]) -> list[MapInUse]:
    """For `status`: what is in use of the flow's routes. `broken`: by process and route why a file is not."""
    return [
        MapInUse(
            v.route, v.map.name, v.number, v.since, {name: told[v.route] for name, told in broken.items() if v.route in told}, _gone(v)
        )
        for v in sorted(versions.values(), key=lambda v: v.route)
        if v.route in flow.routes
    ]


def _gone(version: MapVersion) -> list[str]:
    found = []
    for source, fields in (version.map.org or {}).items():
        found += [f"{source} {path}" for path in (*fields.gone, *(name for name, kind in fields.added.items() if not kind))]
    return found
