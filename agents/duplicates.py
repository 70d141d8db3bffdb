"""The stage that keeps back all but one of the records that share a value: a mail address, or what the route says is `unique`.

Processing sends it the writes of such records under that value, so that one partition sees all of them, whatever partitions they come
from. It reads no flow: target, route and group are the key, and what it says goes the way of every write. Calls nobody outside.
"""

from agents.guard import each_record
from agents.rules.duplicates import Decided, Group, decide, field_of
from agents.rules.quality import Fault
from agents.rules.writes import WireWrite, decode_write
from agents.tally import Tally, failed
from models.errors import FatalError, PermanentError
from models.settings import Settings
from streams.engine.stage import Changes, Chunk, Output, Partition, Record, Result, Stage
from streams.topics import Topics

STAGE, TABLE = "duplicates", "groups"


def duplicates_stage(settings: Settings) -> Stage:
    """The stage."""
    topics = Topics(settings.installation)

    async def handle(chunk: Chunk, partition: Partition) -> Result:
        return _Chunk(chunk, partition, topics).run()

    return Stage(STAGE, [topics.duplicates()], [topics.duplicates(bulk=True)], handle, (TABLE,))


def group_key(target: str, route: str, group: str) -> bytes:
    """Key of a group in the topic and in the table."""
    return f"{target}|{route}|{group}".encode()


def _kept(group: bytes, source: str) -> bytes:
    """Key of a member's write in the table: no name of a target, route or group holds the separator."""
    return group + b"\x00" + source.encode()


class _Chunk:
    """One chunk's work."""

    def __init__(self, chunk: Chunk, partition: Partition, topics: Topics) -> None:
        self.chunk, self.topics, self.partition = chunk, topics, partition
        self.store, self.lane, self.tally = partition.store(TABLE), topics.lane(chunk.topic), Tally(STAGE)
        self.groups: dict[bytes, Group] = {}
        self.writes: dict[bytes, bytes | None] = {}  # kept anew, None: no more
        self.outputs: list[Output] = []

    def run(self) -> Result:
        """Outputs and state."""
        keys = list(dict.fromkeys(record.key for record in self.chunk.records if record.key))
        self.groups = {key: Group.decode(raw) for key, raw in zip(keys, self.store.get_many(keys), strict=True)}
        for _ in each_record(STAGE, self.chunk.records, self._one, topics=self.topics, redrive_to=self.chunk.topic, dead=self.outputs):
            pass
        changes: Changes = [*((key, group.encode()) for key, group in self.groups.items()), *self.writes.items()]
        self.tally.count()
        counted, results = self.tally.close(TABLE, self.partition, self.topics, self.chunk.records[0].timestamp)
        return Result([*self.outputs, *results], {TABLE: [*changes, *counted]} if changes or counted else {})

    def _one(self, record: Record) -> bool:
        key, write = record.key or b"", decode_write(record.value)
        target, bar, rest = key.decode().partition("|")
        if not bar or record.value is None:
            raise PermanentError("the record's key names no target and group: what writes to this topic beside Headrace?")
        field = field_of(rest.partition("|")[2])
        group, kept = self.groups[key], _kept(key, write.source)
        member = group.members.get(write.source)
        if member is None or write.revision >= member.revision:
            self.writes[kept] = record.value if write.op == "write" else None
        try:
            decided = decide(group, write, self.lane, record.offset, lambda source: self._stored(key, source), field=field)
        except PermanentError:
            del self.writes[kept]  # a group that is full knows nothing of this source
            failed(self.tally.of(write.run, write.route), write.source, (Fault(field, "too many share it", "-"),))
            raise
        topic = self.topics.writes(target, bulk=self.lane == "bulk")
        self.outputs += [Output(topic, name, value) for name, value in decided.said]
        if write.op == "write" and not decided.again:
            self._count(write, decided)
        return True

    def _stored(self, key: bytes, source: str) -> bytes:
        kept = _kept(key, source)
        raw = self.writes[kept] if kept in self.writes else self.store.get_many([kept])[0]
        if raw is None:
            raise FatalError(f"table {TABLE} lacks the write of a member of a group: rebuild it from its changelog")
        return raw

    def _count(self, write: WireWrite, decided: Decided) -> None:
        """One record came, and where another one shares its value one is removed: this one, or the one that stood until now."""
        result = self.tally.of(write.run, write.route)
        won = decided.winner == write.source and not decided.stale
        held = decided.before if won else write.source
        result.came += 1
        if held is None or (won and held == write.source):
            result.passed += 1
        else:
            result.removed += 1
            result.held.append((held, decided.winner or held))
