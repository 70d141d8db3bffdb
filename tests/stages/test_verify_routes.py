"""What a route should have brought, by both tables, against what a target holds: each way to differ goes its own way back."""

import bisect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from agents.maps import load_maps
from agents.rules.delivery import Delivered, apply
from agents.rules.merge import RecordState, merge
from agents.rules.message import from_row
from agents.rules.reconcile import Difference
from agents.rules.writes import decode_write, encode_write
from agents.tables import delivered_key, records_key
from agents.targets import make_target
from agents.targets.base import Fault
from agents.verify import read_states
from agents.verify_targets import RouteCheck
from models.dead_letter import dead_letter
from models.envelope import Envelope, Kind, Reason
from models.errors import PermanentError
from models.flow import Flow
from models.settings import Settings
from models.write import Body, OnDelete, Op, Write
from streams.consume import read_all
from streams.engine.stage import Output
from streams.publish import send
from streams.topics import Topics

pytestmark = pytest.mark.kafka
SOURCE = "acme/Contact"


def flow(on_delete: OnDelete = "tombstone") -> Flow:
    auth = {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}
    route = {"from": [SOURCE], "to": "warehouse", "map": "contact", "on_delete": on_delete}
    return Flow.model_validate(
        {
            "connections": {"acme": {"type": "salesforce", "url": "http://localhost", "auth": auth}},
            "targets": {"warehouse": {"type": "postgres", "dsn": "postgresql://nowhere"}},
            "routes": {"contacts": route},
        }
    )


class Shelf:
    """A target that holds what the test puts there. `unfit`: a key whose body it cannot convert."""

    unfit = ""

    def __init__(self, bodies: Mapping[str, Body]) -> None:
        self.held: dict[str, Body | None] = dict(bodies)

    async def differing(self, object: str, expected: Mapping[str, Body]) -> Mapping[str, Fault]:
        if self.unfit in expected:
            raise PermanentError("cannot convert")
        found: dict[str, Fault] = {}
        for key, body in expected.items():
            if key not in self.held:
                found[key] = "missing"
            elif (there := self.held[key]) != body:
                found[key] = "deleted" if there is None else "changed"
        return found

    async def standing(self, object: str, after: str, until: str | None = None) -> Sequence[str]:
        standing = (key for key, body in self.held.items() if body is not None)
        return sorted(key for key in standing if key > after and (until is None or key < until))[:3]


class Hashed(Shelf):
    """One that has a hash of whole ranges."""

    def hash_of(self, object: str, key: str, body: Body) -> int:
        return zlib.crc32(key.encode() + orjson.dumps(body, option=orjson.OPT_SORT_KEYS))

    async def hashes(self, object: str, bounds: Sequence[str]) -> Sequence[tuple[int, int]]:
        found = [(0, 0)] * (len(bounds) + 1)
        for key, body in self.held.items():
            if body is not None:
                count, total = found[place := bisect.bisect_right(bounds, key)]
                found[place] = count + 1, total + self.hash_of(object, key, body)
        return found


@pytest.fixture(params=[Shelf, Hashed])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Shelf]:
    """Each way to compare, with ranges of two keys."""
    monkeypatch.setattr("agents.verify_targets.RANGE", 2)
    shelf: type[Shelf] = request.param
    return shelf


class Tables:
    """Both changelogs, as processing and writer would have left them, and the target as it should be."""

    def __init__(self, settings: Settings, flow: Flow) -> None:
        self.settings, self.flow, self.topics = settings, flow, Topics(settings.installation)
        self.maps = load_maps(flow, {name: make_target(name, t, settings.installation) for name, t in flow.targets.items()})
        plan = self.maps.plan(SOURCE)
        assert plan is not None
        self.plan = plan
        [self.way] = self.maps.ways(SOURCE)
        self.outputs: list[Output] = []
        self.bodies: dict[str, Body] = {}

    def record(self, id: str, *, gone: bool = False, first: str | None = "F") -> None:
        """A record that is known, and perhaps deleted since."""
        row = dict.fromkeys(self.plan.select) | {
            "Id": id,
            "IsDeleted": gone,
            "FirstName": first,
            "LastName": id,
            "SystemModstamp": "2026-01-02T03:04:05.000+0000",
        }
        state = RecordState.decode(None, id)
        merge(
            state,
            from_row(row, Envelope(kind=Kind.ROW, reason=Reason.SNAPSHOT, received=0, epoch=1, began=1), self.plan),
            self.plan,
            "live",
            0,
        )
        self.outputs.append(Output(self.topics.changelog("records"), records_key(SOURCE, id), state.encode()))

    def delivered(self, id: str, *, released: bool = False, stands: bool = True) -> str:
        """A record that speaks for its key, or did."""
        key, body = f"acme/{id}", {"lastName": id}
        op = Op.RELEASE if released else Op.WRITE
        write = Write(op=op, route="contacts", object=self.way.object, key=key, source=f"{SOURCE}/{id}", order=0, revision=1,
                      body=None if released else body, on_delete="tombstone")  # fmt: skip
        state = Delivered.decode(None)
        apply(state, decode_write(encode_write(write)), "live", 0)
        self.outputs.append(Output(self.topics.changelog("delivered"), delivered_key("warehouse", self.way.object, key), state.encode()))
        if stands:
            self.bodies[key] = body
        return key

    def both(self, *ids: str) -> None:
        for id in ids:
            self.record(id)
            self.delivered(id)

    async def check(self, shelf: Shelf) -> RouteCheck:
        """Send them, and compare."""
        await send(self.settings, self.outputs)
        check = RouteCheck(self.settings, self.flow, self.way, shelf, "verify-1")  # type: ignore[arg-type]
        await read_states(self.settings, SOURCE, check.seen)
        await check.run()
        return check


def kinds(check: RouteCheck) -> dict[str, str]:
    return {one.id.removeprefix("acme/"): one.kind for one in check.found.differences}


async def sent_again(settings: Settings) -> dict[str, Any]:
    records = await read_all(settings, Topics(settings.installation).inbound(SOURCE))
    told = {(r.key or b"").decode(): (orjson.loads(r.value or b""), Envelope.from_headers(r.headers)) for r in records}
    assert all(value == {"Id": id} for id, (value, _) in told.items())
    return {id: (e.reason, e.run, e.route, e.began) for id, (_, e) in told.items()}


async def test_each_way_to_differ_is_told_apart_and_goes_its_own_way_back(settings: Settings, kind: type[Shelf]) -> None:
    tables = Tables(settings, flow())
    tables.both("equal", "missing", "changed", "marked")
    tables.record("unsaid")  # known, and nothing of it reached the writer
    tables.record("undead", gone=True)  # deleted, and the writer was not told
    tables.delivered("undead")
    tables.record("lacking", first=None)  # no good any longer: a dead letter of the processing, the target keeps what it had
    tables.delivered("lacking")
    tables.record("left", gone=True)
    tables.delivered("left", released=True, stands=False)
    tables.delivered("released", released=True)  # the row stands though nobody speaks for it
    shelf = kind(tables.bodies)
    del shelf.held["acme/missing"]
    shelf.held |= {"acme/changed": {"lastName": "other"}, "acme/marked": None, "acme/stranger": {}, "acme/left": None}
    check = await tables.check(shelf)
    assert kinds(check) == {"missing": "missing", "changed": "changed", "marked": "deleted", "unsaid": "missing", "undead": "extra",
                            "released": "extra", "stranger": "extra"}  # fmt: skip
    assert (check.found.compared, check.found.behind, check.found.held) == (6, 0, 1)
    await check.repair()
    again = (Reason.REPAIR, "verify-1", "contacts", None)
    assert await sent_again(settings) == dict.fromkeys(("missing", "changed", "marked", "unsaid", "undead"), again)
    releases = [decode_write(r.value).whole() for r in await read_all(settings, Topics(settings.installation).writes("warehouse"))]
    assert sorted(w.key for w in releases) == ["acme/released", "acme/stranger"]
    for write in releases:
        assert (write.op, write.source, write.on_delete) == (Op.RELEASE, f"{SOURCE}/verify", "tombstone")
    assert check.found.repaired == 7


async def test_where_deletes_are_ignored_what_was_released_may_stand_and_strangers_may_not(settings: Settings, kind: type[Shelf]) -> None:
    tables = Tables(settings, flow("ignore"))
    tables.both("equal")
    tables.record("kept", gone=True)
    tables.delivered("kept", released=True)
    check = await tables.check(kind(tables.bodies | {"acme/stranger": {}}))
    assert check.found.differences == [Difference("acme/stranger", "extra")]


async def test_what_the_target_refused_is_a_dead_letter_and_no_difference_to_repair(settings: Settings, kind: type[Shelf]) -> None:
    tables = Tables(settings, flow())
    tables.both(*(f"r{n}" for n in range(9)))
    letter = dead_letter(stage="write", reason="cannot convert", error="x", at=1, topic="t", partition=0, offset=0, key=b"k", value=b"v",
                         headers=[], redrive_to="t", route="contacts", source=f"{SOURCE}/r4")  # fmt: skip
    tables.outputs.append(Output(tables.topics.dead_letters, letter.id.encode(), letter.model_dump_json().encode()))
    shelf = kind(tables.bodies)
    shelf.unfit = "acme/r4"
    del shelf.held["acme/r4"]
    shelf.held["acme/r7"] = None
    check = await tables.check(shelf)
    assert (kinds(check), check.found.dead) == ({"r7": "deleted"}, 1)


async def test_what_heals_while_it_is_looked_at_is_no_difference(settings: Settings, kind: type[Shelf]) -> None:
    tables = Tables(settings, flow())
    tables.both("a", "b")

    class Healing(kind):  # type: ignore[misc,valid-type]
        async def differing(self, object: str, expected: Mapping[str, Body]) -> Mapping[str, Fault]:
            found: Mapping[str, Fault] = await super().differing(object, expected)
            self.held |= {"acme/a": tables.bodies["acme/a"]}
            return found

    check = await tables.check(Healing({}))
    assert kinds(check) == {"b": "missing"}
