"""A small world around the real rules: truth, lossy clocks, two lanes, crashes, repeats, three kinds of target; compared at rest.

The handlers of the processing agent and of the writer run here, on the bytes they would have in Kafka, and the file of the target that
renames runs over the sandbox's users; time is a seeded random schedule. Whatever the schedule, the target must equal the truth in the end.
"""

import random
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any, ClassVar, TypeVar
from zlib import crc32

import orjson

from agents.duplicates import duplicates_stage
from agents.guard import Guard
from agents.maps import InUse, Maps, load_maps
from agents.process import process_stage
from agents.rules.duplicates import Group, Grouping
from agents.targets import iterable
from agents.writer import Writer
from models.envelope import Envelope, Kind, Reason
from models.flow import Flow
from models.settings import Settings
from models.write import Body
from streams.engine.stage import Chunk, Output, Result
from streams.topics import Topics
from tests.support.flows import Facts, flow
from tests.support.memory import MemoryPartition, MemoryRecord, MemoryStore
from tests.support.rules_targets import Calls, Rows, Users

TOPICS = Topics("t")
SETTINGS = Settings(installation="t")
OBJECTS = ("Contact", "Lead")
LANES = ("live", "bulk")
KEYS = ("x@example.org", "y@example.org", "z@example.org")
FIELDS = {
    "Contact": {"a__c": range(99), "b__c": (None, 1, 2), "k__c": KEYS, "Boss__c": ("u1", "u2", None), "Department": ("d", None)},
    "Lead": {"a__c": range(99), "b__c": (None, 1, 2), "k__c": KEYS, "Boss__c": ("u1", "u2", None), "Status": ("s", "t", None)},
}
"""Possible values. A Lead has no Department: what a Contact left there under a common key must go. Only a Lead has a Status: that stands
beside what the Contact of the same key says."""
Log = dict[tuple[str, str], list[MemoryRecord]]
T = TypeVar("T")


def _maps(query: bool, filtered: bool, renames: bool, on_delete: str, groups: str = "") -> tuple[Flow, Maps]:
    name = "world-people" if groups else "world-users" if renames else "world"
    route = {"from": [f"acme/{sobject}" for sobject in OBJECTS], "to": "warehouse", "map": f"maps/{name}.yaml", "on_delete": on_delete}
    route |= {"quality": ["duplicates"]} if groups else {} if renames else {"key": "k"}
    route |= {"unique": groups} if groups not in ("", "mail") else {}
    route |= {"fetch": "query"} if query else {}
    route |= {"where": "a__c < 70"} if filtered else {}
    made = flow(route=route)
    facts = Facts(renames=True, key_field="email", default_object="users") if renames else Facts()
    return made, load_maps(made, {"warehouse": facts})


SHAPES = {(q, f, r, d): _maps(q, f, r, d) for q in (False, True) for f in (False, True) for r in (False, True) for d in ("delete", "mark")}
GROUPED = {
    (q, f, d, by): _maps(q, f, False, d, by)
    for q in (False, True)
    for f in (False, True)
    for d in ("delete", "mark")
    for by in ("mail", "b", "email")
}


def run(work: Awaitable[T]) -> T:
    """Drive a handler that never really waits."""
    try:
        next(work.__await__())
    except StopIteration as done:
        found: T = done.value
        return found
    raise AssertionError("a handler waited for something: here nobody is to be waited for")


class World:
    """One scenario."""

    fields: ClassVar[dict[str, dict[str, Any]]] = FIELDS

    def __init__(self, seed: int, *, renames: bool, groups: bool = False) -> None:
        self.r = random.Random(seed)
        self.renames, self.groups = renames, groups
        self.query, self.filtered = self.r.random() < 0.4, self.r.random() < 0.4
        made, maps = SHAPES[self.query, self.filtered, renames, self.r.choice(("delete", "mark"))]
        if groups:
            on_delete, by = self.r.choice(("delete", "mark")), self.r.choice(("mail", "b", "email"))
            made, maps = GROUPED[self.query, self.filtered, on_delete, by]
            self.other = GROUPED[self.query, self.filtered, on_delete, self.r.choice(("mail", "b", "email"))]
        self.flow, self.maps = made, maps
        self.stage, self.compare = process_stage(made, SETTINGS, self.for_process()), duplicates_stage(SETTINGS)
        self.truth: dict[str, dict[str, Any]] = {}
        self.ids = [f"{'AB'[n % 2]}{n}" for n in range(self.r.choice((1, 2, 3)))]
        self.keys: tuple[str | None, ...] = KEYS[: self.r.choice((1, 2, 3))]
        if groups:
            self.ids = [f"{'AB'[n % 2]}{n}" for n in range(self.r.choice((2, 3, 4)))]
            self.keys = (*KEYS[: self.r.choice((1, 1, 2))], None)
        self.position, self.second = 100, 1000
        self.history: list[tuple[str, str, bytes, Envelope]] = []
        self.sent = 0
        self.log: Log = {(name, lane): [] for name in OBJECTS for lane in LANES}
        self.durable: dict[bytes, bytes] = {}
        self.read = dict.fromkeys(self.log, 0)
        self.partition = MemoryPartition()
        self.partition.stores["records"] = MemoryStore()
        self.unacked: deque[tuple[tuple[str, str], int, Result]] = deque()
        self.requests: deque[tuple[str, dict[str, str]]] = deque()
        self.reads: list[tuple[int, str, dict[str, str], str]] = []
        self.parts = 3 if groups else 1  # rows of one value are in several partitions
        self.writes: dict[tuple[str, int], list[MemoryRecord]] = {(lane, part): [] for lane in LANES for part in range(self.parts)}
        self.written = dict.fromkeys(self.writes, 0)
        self.joins: dict[str, list[MemoryRecord]] = {lane: [] for lane in LANES}
        self.compared = dict.fromkeys(LANES, 0)
        self.switches = groups and self.r.random() < 0.3
        field = self.same.field if groups and not self.switches else None
        self.users, self.rows = Users(), Rows(compares=self.r.random() < 0.5, unique=field)
        target: Any = self.rows
        if renames:
            target = iterable.Target("warehouse", iterable.IterableOptions(api_key="k"), "t")
            target._http = self.users
        self.target = target
        self.writer = self.new_writer(maps)
        self.lossy = True
        self.late = self.r.random() < 0.25
        for _ in range(self.r.randrange(6)):
            self.change()
        if self.late:  # started with --from new: what happened before comes by snapshot only
            self.sent = len(self.history)
        self.first = self.sent

    @property
    def same(self) -> Grouping:
        """By what the route now finds duplicates."""
        found = self.maps.ways("acme/Contact")[0].unique
        assert found is not None
        return found

    def switch(self) -> None:
        """The worker begins anew with a flow that says another `unique:`."""
        self.switches, self.late = False, True  # as people are told: all records are read again
        self.flow, self.maps = self.other
        self.unacked.clear()
        self.read = {place: self.partition.offsets.get(log[0].topic, 0) if log else 0 for place, log in self.log.items()}
        self.stage = process_stage(self.flow, SETTINGS, self.for_process())

    def for_process(self) -> InUse:
        """The maps that the processing agent has."""
        return self.maps

    def new_writer(self, maps: Any) -> Writer:
        """As a worker that begins."""
        writer = Writer("warehouse", self.target, self.flow, SETTINGS, maps, Guard("write", "warehouse"))
        writer._calls = Calls(self.target)  # type: ignore[assignment]
        return writer

    # -- the source -------------------------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """Something happens in the org."""
        r = self.r
        self.position += r.choice((1, 1, 3))
        self.second += r.choice((0, 0, 0, 1, 1, 3, 10))
        id = r.choice(self.ids)
        held = self.truth.get(id)
        if held is None or held["deleted"]:
            kind = "CREATE" if held is None else "UNDELETE"
            held = held or {name: r.choice(self.keys if name == "k__c" else options) for name, options in self.fields[_object(id)].items()}
            body = {name: held[name] for name in self.fields[_object(id)] if held[name] is not None}
            held["deleted"] = False
        elif r.random() < 0.15:
            kind, body, held["deleted"] = "DELETE", {}, True
        else:
            kind = "UPDATE"
            for name in r.sample(list(self.fields[_object(id)]), r.choice((1, 1, 2))):
                held[name] = r.choice(self.keys if name == "k__c" else self.fields[_object(id)][name])
            body = {name: held[name] for name in body_changed(self.fields[_object(id)], held, self.truth.get(id + "@"))}
        self.truth[id], self.truth[id + "@"] = held, dict(held)
        held["stamp"] = self.second
        header = {
            "entityName": _object(id),
            "recordIds": [id],
            "changeType": kind,
            "commitTimestamp": (self.second - r.choice((0, 0, 0, 1))) * 1000,
            "changedFields": list(body) if kind == "UPDATE" else [],
        }
        message = {"data": {"payload": {"ChangeEventHeader": header, **body}, "event": {"replayId": self.position}}, "channel": "c"}
        envelope = Envelope(kind=Kind.CHANGE, reason=Reason.LIVE, received=1, epoch=1, position=self.position)
        self.history.append((_object(id), id, orjson.dumps(message), envelope))

    def place(self) -> int:
        """Durable position of the channel."""
        return self.history[self.sent - 1][3].position or 0 if self.sent else -1

    def forward(self) -> None:
        """The subscriber takes the next event."""
        if self.sent < len(self.history):
            self._append(*self.history[self.sent], "live")
            self.sent += 1

    def resend(self) -> None:
        """The subscriber repeats some."""
        for event in self.history[max(self.first, self.sent - self.r.randrange(1, 4)) : self.sent]:
            self._append(*event, "live")

    def answer(self, began: int, id: str, headers: dict[str, str], lane: str) -> None:
        """A row is read now, by someone who began at `began`."""
        held = self.truth.get(id)
        reason, run_id, route = Reason(headers.get("reason", "fetch")), headers.get("run"), headers.get("route")
        base: dict[str, Any] = {
            "kind": Kind.ROW,
            "reason": reason,
            "received": 1,
            "epoch": 1,
            "began": began,
            "run": run_id,
            "route": route,
        }
        row: dict[str, Any] = {"attributes": {"type": _object(id)}, "Id": id}
        if held is None:
            base["gone"] = self.second
        else:
            stamp = f"1970-01-01T{held['stamp'] // 3600:02}:{held['stamp'] // 60 % 60:02}:{held['stamp'] % 60:02}.000+0000"
            boss = held["Boss__c"]
            row |= {name: held[name] for name in self.fields[_object(id)]} | {"IsDeleted": held["deleted"], "SystemModstamp": stamp}
            row["Boss__r"] = None if boss is None else {"Email": f"{boss}@x"}
            base["plan"], row = self.selected(row, headers)
        self._append(_object(id), id, orjson.dumps(row), Envelope(**base), lane)

    def selected(self, row: dict[str, Any], headers: dict[str, str]) -> tuple[str | None, dict[str, Any]]:
        """Print of the plan by which a row is read, and its columns."""
        return headers.get("plan"), row

    def _append(self, name: str, id: str, value: bytes, envelope: Envelope, lane: str) -> None:
        log = self.log[name, lane]
        topic = TOPICS.inbound(f"acme/{name}", bulk=lane == "bulk")
        log.append(MemoryRecord(topic, len(log), id.encode(), value, envelope.headers()))

    # -- processing -------------------------------------------------------------------------------------------------------------------

    def process(self, place: tuple[str, str]) -> bool:
        """Handle a chunk; its transaction is open until `commit`."""
        log, at = self.log[place], self.read[place]
        chunk = log[at : at + self.r.choice((1, 1, 2, 5))]
        if not chunk:
            return False
        result = run(self.stage.handler(Chunk(chunk[0].topic, 0, chunk), self.partition))
        for key, value in result.state.get("records", ()):
            self.partition.store("records").values[key] = value or b""
        self.read[place] = at + len(chunk)
        self.unacked.append((place, at + len(chunk), result))
        return True

    def commit(self) -> None:
        """The oldest open transaction."""
        if self.unacked:
            place, end, result = self.unacked.popleft()
            self._ship(result.outputs)
            self.durable.update({key: value or b"" for key, value in result.state.get("records", ())})
            topic = self.log[place][0].topic
            self.partition.offsets[topic] = max(self.partition.offsets.get(topic, 0), end)

    def crash(self) -> None:
        """Open transactions are lost, though some of their states may be durable; the disk may be lost too."""
        for _, _, result in list(self.unacked)[: self.r.randrange(len(self.unacked) + 1)] if self.r.random() < 0.5 else ():
            self.durable.update({key: value or b"" for key, value in result.state.get("records", ())})
        self.unacked.clear()
        if self.r.random() < 0.5:
            self.partition.stores["records"].values = dict(self.durable)
        self.read = {place: self.partition.offsets.get(log[0].topic, 0) if log else 0 for place, log in self.log.items()}

    def _ship(self, outputs: Any) -> None:
        output: Output
        for output in outputs:
            assert output.value is not None, output
            if ".fetch." in output.topic:
                self.requests.append((orjson.loads(output.value)["id"], {name: raw.decode() for name, raw in output.headers}))
            elif ".writes." in output.topic:
                lane = "bulk" if output.topic.endswith(".bulk") else "live"
                log = self.writes[lane, crc32(output.key or b"") % self.parts]
                log.append(MemoryRecord(output.topic, len(log), output.key, output.value))
            elif ".duplicates" in output.topic:
                lane = "bulk" if output.topic.endswith(".bulk") else "live"
                self.joins[lane].append(MemoryRecord(output.topic, len(self.joins[lane]), output.key, output.value))
            elif output.topic != TOPICS.quality:
                raise AssertionError(f"a dead letter in a world without faults: {output.value!r}")

    def decide(self, lane: str) -> bool:
        """The duplicates stage takes a few records; it crashes at times: before anything counts, or when only its state does."""
        at = self.compared[lane]
        chunk = self.joins[lane][at : at + self.r.choice((1, 1, 2, 4))]
        if not chunk:
            return False
        result = run(self.compare.handler(Chunk(chunk[0].topic, 0, chunk), self.partition))
        crash = self.r.random() if self.lossy else 1.0
        if crash > 0.1:
            self.partition.keep("groups", result.state.get("groups", []))
        if crash > 0.2:
            self.compared[lane] = at + len(chunk)
            self._ship(result.outputs)
        return True

    # -- delivery ---------------------------------------------------------------------------------------------------------------------

    def deliver(self, lane: str, part: int = 0, *, crash: bool = False) -> None:
        """The writer takes a few records; `crash`: the target was called, nothing of it is durable."""
        at = self.written[lane, part]
        chunk = self.writes[lane, part][at : at + self.r.choice((1, 1, 2, 4))]
        if not chunk:
            return
        result = run(self.writer.handle(Chunk(chunk[0].topic, 0, chunk), self.partition))
        if not crash:
            self.written[lane, part] = at + len(chunk)
            self.partition.store("delivered").values.update({key: value or b"" for key, value in result.state.get("delivered", ())})
            self._ship(result.outputs)

    # -- schedule ---------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens."""
        r, x = self.r, self.r.random()
        if self.groups and r.random() < 0.3:
            self.decide(r.choice(LANES))
        if self.switches and r.random() < 0.05:
            self.switch()
        if x < 0.22:
            self.change()
        elif x < 0.42:
            self.forward()
        elif x < 0.45:
            self.resend()
        elif x < 0.52:
            self.reads.append((self.place(), r.choice(self.ids), {"reason": "snapshot", "run": "s"}, "bulk"))
        elif x < 0.58 and self.reads:
            self.answer(*self.reads.pop(r.randrange(len(self.reads))))
        elif x < 0.62 and self.requests:
            id, headers = self.requests.popleft()
            self.reads.append((self.place(), id, headers, "live"))
        elif x < 0.80:
            self.process((r.choice(OBJECTS), "live" if r.random() < 0.7 else "bulk"))
        elif x < 0.90:
            self.commit()
        elif x < 0.93:
            self.crash()
        else:
            part = r.randrange(self.parts) if self.groups else 0
            self.deliver(r.choice(LANES), part, crash=r.random() < 0.2)

    def rest(self) -> None:
        """Everything on its way arrives. Raises AssertionError when it never ends."""
        if self.late:
            self.reads += [(self.place(), id, {"reason": "snapshot", "run": "s"}, "bulk") for id in self.ids if id in self.truth]
        for _ in range(400):
            while self.sent < len(self.history):
                self.forward()
            while self.requests:
                id, headers = self.requests.popleft()
                self.reads.append((self.place(), id, headers, "live"))
            while self.reads:
                self.answer(*self.reads.pop(0))
            busy = max(map(self.process, self.log))
            while self.unacked:
                self.commit()
            self.lossy = False
            for lane in LANES:
                while self.decide(lane):
                    busy = True
            for lane, part in self.r.sample(list(self.writes), len(self.writes)) if self.groups else self.writes:
                while self.written[lane, part] < len(self.writes[lane, part]):
                    busy = True
                    self.deliver(lane, part)
            if not (busy or self.requests or self.reads):
                return
        raise AssertionError("it never comes to rest")

    def wanted(self) -> dict[str, Body]:
        """What the target should hold: order of the sources, then the lowest id, decide between two records of one key."""
        found: dict[str, Body] = {}
        for id in sorted(self.ids, key=lambda id: (OBJECTS.index(_object(id)), id)):
            held = self.truth.get(id)
            if held is None or held["deleted"] or (self.filtered and held["a__c"] >= 70):
                continue
            boss = held["Boss__c"]
            body = {"a": held["a__c"], "b": held["b__c"], "k": held["k__c"], "boss": {"mail": boss and f"{boss}@x"}}
            body |= {"work": {"department": held["Department"]}} if "Department" in held else {"lead": {"status": held["Status"]}}
            whole = found.setdefault(held["k__c"], body)
            found[held["k__c"]] = body | whole
        return {key: _without_empty(body | {"k": None}) for key, body in found.items()} if self.renames else found

    def elected(self) -> str | None:
        """Where one record of each address must stand, as the source has it: what is wrong, or None."""
        wanted, found = self.people(), self.found()
        table = self.partition.store("groups").values
        groups = {key.decode(): Group.decode(raw) for key, raw in table.items() if key[:1] != b"\x01" and b"\0" not in key}
        members = {name: {source.rpartition("/")[2] for source, m in group.members.items() if m.speaks} for name, group in groups.items()}
        known: dict[str, set[str]] = {}
        for id, body in wanted.items():
            if (name := self.same.group(body)) is not None:
                known.setdefault(f"warehouse|route|{name}", set()).add(id)
        if known != (members := {name: ids for name, ids in members.items() if ids}):
            return f"groups {members}, of which the source knows {known}"
        winners = {str(groups[name].winner()).rpartition("/")[2] for name in members}
        stands = {f"acme/{id}": body for id, body in wanted.items() if self.same.group(body) is None or id in winners}
        return None if stands == found else f"should stand {stands}, found {found}"

    def people(self) -> dict[str, Body]:
        found: dict[str, Body] = {}  # by id what each record that may stand is
        for id in self.ids:
            held = self.truth.get(id)
            if held is None or held["deleted"] or (self.filtered and held["a__c"] >= 70):
                continue
            boss = held["Boss__c"]
            body = {"a": held["a__c"], "b": held["b__c"], "email": held["k__c"], "boss": {"mail": boss and f"{boss}@x"}}
            found[id] = body | (
                {"work": {"department": held["Department"]}} if "Department" in held else {"lead": {"status": held["Status"]}}
            )
        return found

    def found(self) -> dict[str, Body]:
        """What it holds."""
        if not self.renames:
            return {key: body for key, (_, body) in self.rows.rows.items() if body is not None}
        held = {email: profile.fields for email, profile in self.users.project.profiles.items() if not profile.fields.get(iterable.FLAG)}
        return {email: _without_empty(fields) for email, fields in held.items()}


def body_changed(fields: Iterable[str], now: dict[str, Any], before: dict[str, Any] | None) -> list[str]:
    """Names whose value is another one; all when nothing is known of before."""
    return [name for name in fields if before is None or now[name] != before[name]] or ["a__c"]


def _without_empty(body: Body) -> Body:
    """What is empty is not there."""
    inner = {name: _without_empty(value) if isinstance(value, dict) else value for name, value in body.items()}
    return {name: value for name, value in inner.items() if value not in (None, {})}


def _object(id: str) -> str:
    return OBJECTS["AB".index(id[0])]


def scenario(seed: int, *, renames: bool = False, groups: bool = False) -> str | None:
    """Run one; None when the target equals the truth, else what differs."""
    world = World(seed, renames=renames, groups=groups)
    for _ in range(world.r.randrange(20, 90)):
        world.step()
    try:
        world.rest()
    except AssertionError as error:
        return str(error)
    if groups:
        return (told := world.elected()) and f"seed {seed}: {told}"
    wanted, found = world.wanted(), world.found()
    return None if wanted == found else f"seed {seed}: wanted {wanted}, found {found}"
