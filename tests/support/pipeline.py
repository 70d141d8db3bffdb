"""The processing agent without Kafka: records in, writes and requests out; state is kept as the engine would."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from agents.maps import InUse
from agents.process import process_stage
from agents.rejections import GatesOf, no_gates
from agents.rules.writes import decode_write
from models.dead_letter import DeadLetter
from models.envelope import Envelope, Kind, Reason
from models.flow import Flow
from models.settings import Settings
from models.write import Write
from streams.engine.stage import Chunk, Output, Partition, Result
from streams.topics import Topics
from tests.support.memory import MemoryPartition, MemoryRecord

SETTINGS = Settings(installation="t")
TOPICS = Topics("t")


class Pipeline:
    """Feeds the stage's handler; `writes`, `fetches`, `dead` collect what came out."""

    def __init__(self, flow: Flow, maps: InUse, gates: GatesOf = no_gates) -> None:
        self.flow, self.maps = flow, maps
        self.paused: set[str] = set()
        self.stage = process_stage(flow, SETTINGS, maps, self._held, gates)
        self.partition = MemoryPartition()
        self.writes: list[tuple[str, Write]] = []
        self.fetches: list[tuple[dict[str, str], dict[str, str]]] = []
        self.dead: list[DeadLetter] = []
        self.topics: list[str] = []
        self.offsets: dict[str, int] = {}

    async def feed(self, *records: MemoryRecord, commit: bool = True, keep: bool = True) -> list[Write]:
        """One chunk; the writes it made. `commit` False: its offset is not durable yet; `keep` False: nor is its state."""
        result: Result = await self.stage.handler(Chunk(records[0].topic, 0, records), self.partition)
        if keep:
            for table, changes in result.state.items():
                self.partition.keep(table, changes)
        if commit:
            self.partition.offsets[records[0].topic] = records[-1].offset + 1
        return self.take(result.outputs)

    async def _held(self, routes: Collection[str], _partition: Partition) -> frozenset[str]:
        return frozenset(self.paused.intersection(routes))

    def take(self, outputs: Sequence[Output]) -> list[Write]:
        """Sort outputs by where they go."""
        made = []
        for output in outputs:
            assert output.value is not None
            self.topics.append(output.topic)
            if ".writes." in output.topic:
                write = decode_write(output.value).whole()
                assert output.key == write.kafka_key
                made.append(write)
                self.writes.append((output.topic, write))
            elif ".duplicates" in output.topic:  # whose address nobody shares
                made += [write] if (write := decode_write(output.value).whole()).op == "write" else []
            elif ".fetch." in output.topic:
                self.fetches.append((orjson.loads(output.value), {n: raw.decode() for n, raw in output.headers if n != "plan"}))
            elif output.topic == TOPICS.dead_letters:
                self.dead.append(DeadLetter.model_validate_json(output.value))
        return made

    def record(self, source: str, key: str, value: Any, envelope: Envelope, *, bulk: bool = False, timestamp: int = 0) -> MemoryRecord:
        """The next record of an in-topic."""
        topic = TOPICS.inbound(source, bulk=bulk)
        offset = self.offsets[topic] = self.offsets.get(topic, -1) + 1
        raw = value if isinstance(value, bytes) or value is None else orjson.dumps(value)
        return MemoryRecord(topic, offset, key.encode(), raw, envelope.headers(), timestamp=timestamp)

    def change(
        self, sobject: str, id: str, change: str, position: int, second: int, body: Mapping[str, Any] | None = None, **more: Any
    ) -> MemoryRecord:
        """A change event in the live lane; `changed` defaults to the body's names for UPDATE; further names are the envelope's."""
        changed = more.pop("changed", list(body or ()) if change == "UPDATE" else [])
        header = {
            "entityName": sobject,
            "recordIds": [id],
            "changeType": change,
            "commitTimestamp": second * 1000,
            "changedFields": changed,
        }
        payload = {"ChangeEventHeader": header, **(body or {})}
        message = {"data": {"schema": "x", "payload": payload, "event": {"replayId": position}}, "channel": "/data/ChangeEvents"}
        bulk = more.pop("bulk", False)
        known = {"kind": Kind.CHANGE, "reason": Reason.LIVE, "received": second * 1000, "epoch": 1, "position": position, **more}
        return self.record(f"acme/{sobject}", id, message, Envelope(**known), bulk=bulk)

    def row(
        self, sobject: str, id: str, began: int | None, second: int | None, body: Mapping[str, Any] | None = None, **more: Any
    ) -> MemoryRecord:
        """A row; in the bulk lane when `bulk`."""
        stamp = None if second is None else {"SystemModstamp": _rest(second), "IsDeleted": False}
        value = {"attributes": {"type": sobject}, "Id": id, **(stamp or {}), **(body or {})}
        bulk = more.pop("bulk", False)
        known = {"kind": Kind.ROW, "reason": Reason.FETCH, "received": (second or 0) * 1000, "epoch": 1, "began": began, **more}
        return self.record(f"acme/{sobject}", id, value, Envelope(**known), bulk=bulk)


def _rest(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
