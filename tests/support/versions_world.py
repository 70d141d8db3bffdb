"""The random world with maps that change while it turns: workers that lag, old selects, writes of older shapes in both lanes.

Every version writes its number into the body, so a target's record says by which map it was shaped. At rest a record holds what its shape
says of the truth as far as no version since left that out; never does a lower number replace a higher one; and once everything is read
anew the target equals the truth by the last map.
"""

from functools import cache
from typing import Any, ClassVar

from agents.maps import InUse, Maps, load_maps
from agents.targets.base import Effect
from models.flow import Flow
from models.write import Body, Outcome
from streams.engine.stage import Output
from streams.map_versions import MapText, MapVersion
from tests.support.flows import DATA, Facts
from tests.support.memory import MemoryRecord
from tests.support.rules_targets import Rows
from tests.support.rules_world import FIELDS, TOPICS, World, _object, _without_empty

EXTRAS = ("x__c", "y__c")
Extras = frozenset[str]


class Lagging:
    """The maps as one worker knows them; `at` is the version it is at, `last` the one in use."""

    def __init__(self, world: "VersionsWorld") -> None:
        self.world, self.at = world, world.number

    @property
    def now(self) -> Maps:
        return self.world.maps_of(self.at)

    def version(self, route: str) -> int:
        return self.at

    def columns(self, target: str) -> dict[str, Any]:
        return {}

    async def catch_up(self) -> None:
        self.at = self.world.number


class VersionsWorld(World):
    """One scenario."""

    fields: ClassVar[dict[str, dict[str, Any]]] = {
        name: {**fields, **dict.fromkeys(EXTRAS, (None, 1, 2, 3))} for name, fields in FIELDS.items()
    }

    def __init__(self, seed: int, *, renames: bool) -> None:
        self.number, self.extras = 1, [frozenset[str](), frozenset[str]()]
        self.fell: str | None = None
        self.resting = False
        super().__init__(seed, renames=renames)
        if not renames:
            self._watch(self.rows)

    def for_process(self) -> InUse:
        self.processing, self.writing = Lagging(self), Lagging(self)
        return self.processing

    def new_writer(self, maps: Any) -> Any:
        return super().new_writer(self.writing)

    def maps_of(self, number: int) -> Maps:
        return _compiled(_Key(self.flow), number, self.extras[number])

    def _watch(self, rows: Rows) -> None:
        """Note a record's body of a lower number in the place of a higher one. (Where the one that spoke leaves, another may speak as it
        was shaped long ago: nobody asked to emit that anew.)
        """
        write = rows._write

        def watched(effect: Effect) -> Outcome:
            before, body = rows.rows.get(effect.key, (0, None))[1], effect.body
            outcome = write(effect)
            old, new = (shapes(one) if one else {} for one in (before, body))
            for id in old.keys() & new.keys() if outcome is Outcome.WRITTEN else ():
                if old[id] > new[id]:
                    self.fell = f"{effect.key}: shape {old[id]} of {id} was overwritten by {new[id]}"
            return outcome

        rows._write = watched  # type: ignore[method-assign]

    # -- what changes -----------------------------------------------------------------------------------------------------------------

    def change_map(self) -> None:
        """The next version: some of the extra fields."""
        self.extras.append(frozenset(extra for extra in EXTRAS if self.r.random() < 0.5))
        self.number += 1

    def lagging(self) -> int:
        """What some worker is at."""
        return self.number if self.resting or self.r.random() < 0.7 else self.r.randint(max(1, self.number - 2), self.number)

    def selected(self, row: dict[str, Any], headers: dict[str, str]) -> tuple[str | None, dict[str, Any]]:
        """By what some process took for the map when it began to read; the fetch agent catches up with who asked."""
        source = f"acme/{row['attributes']['type']}"
        plan = self.maps_of(self.lagging()).plan(source)
        if plan is not None and headers.get("plan") not in (None, plan.print):
            plan = self.maps_of(self.number).plan(source)
        assert plan is not None
        wanted = {path.partition(".")[0] for path in plan.select} | {"attributes"}
        return plan.print, {name: value for name, value in row.items() if name in wanted}

    def process(self, place: tuple[str, str]) -> bool:
        self.processing.at = self.lagging()
        return super().process(place)

    def deliver(self, lane: str, part: int = 0, *, crash: bool = False) -> None:
        if crash or self.r.random() < 0.1:  # another worker has the partition now; it may not know the last version yet
            self.writing.at = self.lagging()
            self.writer = self.new_writer(None)
        super().deliver(lane, part, crash=crash)

    def step(self) -> None:
        if self.r.random() < 0.06:
            self.change_map()
        super().step()

    def rest(self) -> None:
        self.resting = True
        super().rest()

    def read_all(self) -> None:
        """A snapshot."""
        self.reads += [(self.place(), id, {"reason": "snapshot", "run": "s2"}, "bulk") for id in self.ids if id in self.truth]

    def _ship(self, outputs: Any) -> None:
        """As the world, and what the writer sends back."""
        output: Output
        for output in outputs:
            if ".in." in output.topic:
                inbound = TOPICS.parse_inbound(output.topic)
                log = self.log[inbound.sobject, "bulk" if inbound.bulk else "live"]
                log.append(MemoryRecord(output.topic, len(log), output.key, output.value, output.headers))
            else:
                super()._ship([output])

    # -- what should be ---------------------------------------------------------------------------------------------------------------

    def differs(self) -> str | None:
        """What a record of the target holds that it must not, or lacks, by the shape it says it has."""
        for key, body in self.standing().items():
            number = number_of(body)
            kept = frozenset.intersection(*self.extras[number:])
            held = self.speaker(key)
            if held is None:
                return f"{key} stands, and nobody speaks for it"
            lead = next((one for _, one in self.speaking() if one["k__c"] == key and "Status" in one), None)
            wanted = _plain(held, kept, self.renames) | ({"lead": {"status": lead["Status"]}} if lead else {})
            found = {name: value for name, value in body.items() if name != "shape" and (name not in EXTRAS or name in kept)}
            if (self.renames and _without_empty(wanted) != _without_empty(found)) or (not self.renames and wanted != found):
                return f"{key} of shape {number} (now {self.number}): wanted {wanted}, found {found}"
        missing = {held["k__c"] for id, held in self.speaking()} - self.standing().keys()
        return f"missing: {missing}" if missing else self.fell

    def standing(self) -> dict[str, Body]:
        return self.found()

    def speaking(self) -> list[tuple[str, dict[str, Any]]]:
        """Records that speak, in the order in which they decide."""
        ids = sorted(self.ids, key=lambda id: (list(FIELDS).index(_object(id)), id))
        held = [(id, self.truth[id]) for id in ids if id in self.truth]
        return [(id, one) for id, one in held if not one["deleted"] and not (self.filtered and one["a__c"] >= 70)]

    def speaker(self, key: str) -> dict[str, Any] | None:
        return next((held for _, held in self.speaking() if held["k__c"] == key), None)


def shapes(body: Body) -> dict[str, int]:
    """By record that says something in a body, the version that shaped it. Raises AssertionError where it is two at once."""
    found = [(id, int(name[1:])) for name, id in body["shape"].items() if id is not None]
    assert len(dict(found)) == len(found), body
    return dict(found)


def number_of(body: Body) -> int:
    """By which version the record that decides was shaped."""
    found = shapes(body)
    return found[min(found)]


def _plain(held: dict[str, Any], extras: Extras, renames: bool) -> Body:
    boss = held["Boss__c"]
    body = {"a": held["a__c"], "b": held["b__c"], "boss": {"mail": boss and f"{boss}@x"}} | ({} if renames else {"k": held["k__c"]})
    body |= {"work": {"department": held["Department"]}} if "Department" in held else {}
    return body | {extra: held[extra] for extra in extras}


class _Key:
    """A flow as a key of the cache: there are few, and they live as long as the tests."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def __hash__(self) -> int:
        return id(self.flow)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.flow is self.flow


@cache
def _compiled(key: _Key, number: int, extras: Extras) -> Maps:
    route = key.flow.routes["route"]
    renames, head = "users" in route.map, "dataFields." if "users" in route.map else ""
    lines = [(DATA / route.map).read_text(), f"Id: {head}shape.v{number}", *(f"{extra}: {head}{extra}" for extra in sorted(extras))]
    facts = Facts(renames=True, key_field="email", default_object="users") if renames else Facts()
    return load_maps(key.flow, {"warehouse": facts}, {"route": MapVersion("route", number, MapText.of(route.map, "\n".join(lines)))})


def versions_scenario(seed: int, *, renames: bool) -> str | None:
    """Run one; None when all is as it must be, else what is not."""
    world = VersionsWorld(seed, renames=renames)
    for _ in range(world.r.randrange(20, 90)):
        world.step()
    try:
        world.rest()
        if wrong := world.differs():
            return f"seed {seed}: {wrong}"
        world.read_all()
        world.rest()
    except AssertionError as error:
        return f"seed {seed}: {error}"
    wrong = world.differs()
    numbers = {number_of(body) for body in world.standing().values()}
    return f"seed {seed}, all read anew: {wrong or numbers}" if wrong or numbers - {world.number} else None
