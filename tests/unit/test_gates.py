"""Gates against swarms: which of them hold a route, that the target sees nothing of it, and that the other routes go on."""

import json
from collections import Counter
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError

from agents.gates import Watch
from models.flow import Gates
from models.write import Write
from streams.pauses import parse_pause
from streams.quality import HOUR_MS
from tests.support.flows import CONTACTS, flow, maps
from tests.support.memory import table
from tests.support.pipeline import TOPICS, Pipeline

BODY = {"Email": "a@x.org", "FirstName": "Z", "LastName": "M", "Title": "t", "Phone": "1", "AccountId": "2"}


class Gated(Pipeline):
    """With what it paused."""

    def __init__(self, **gates: Any) -> None:
        routes: dict[str, dict[str, Any]] = {"gated": CONTACTS | {"gates": gates}, "open": CONTACTS | {"object": "other"}}
        super().__init__(flow(**routes), maps(**routes))
        self.pauses: list[str] = []

    def take(self, outputs: Any) -> list[Write]:
        found = [parse_pause(out.key, out.value) for out in outputs if out.topic == TOPICS.pauses]
        self.pauses += [str(pause) for pause in found]
        return super().take(outputs)

    async def tell(self, kind: str, ids: range, body: dict[str, Any] | None = None, hour: int = 1) -> dict[str, int]:
        """Writes by route."""
        at = self.offsets.get(TOPICS.inbound("acme/Contact"), 0) + 10
        records = [self.change("Contact", f"003{n}", kind, at + n, at + n, body) for n in ids]
        for record in records:
            record.timestamp = hour * HOUR_MS
        made = await self.feed(*records)
        return {route: sum(write.route == route for write in made) for route in ("gated", "open")}


async def test_a_mass_delete_holds_its_route_and_no_record_leaves_the_target() -> None:
    p = Gated(delete=3)
    await p.tell("CREATE", range(8), BODY)
    assert await p.tell("DELETE", range(3)) == {"gated": 3, "open": 3}, "as many as the gate lets through"
    assert await p.tell("DELETE", range(3, 5)) == {"gated": 0, "open": 2}
    [said] = p.pauses
    assert "route gated" in said
    assert "4 records" in said or "5 records" in said
    assert await p.tell("DELETE", range(5, 7)) == {"gated": 0, "open": 2}, "before the pause is read"
    parked = [key for key in table(p.partition, "records") if key.startswith(b"\x01parked|gated|")]
    assert len(parked) == 4, "what is held is told when the route goes on"
    p.paused = {"gated"}
    assert (await p.tell("DELETE", range(7, 8)))["gated"] == 0
    p.paused = set()
    assert (await p.tell("CREATE", range(20, 22), BODY))["gated"] == 2, "it goes on"
    assert len(p.pauses) == 1


def counted() -> Counter[str]:
    """What the metrics say was processed, by outcome, emitted, by route, and of each route good."""
    told = {
        "headrace_records_processed_total": "outcome",
        "headrace_writes_emitted_total": "route",
        "headrace_quality_records_total": "route",
    }
    found: Counter[str] = Counter()
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name in told:
                found[f"{family.name.removeprefix('headrace_')} {sample.labels[told[sample.name]]}"] += int(sample.value)
    return found


async def test_a_chunk_that_is_done_again_for_a_gate_counts_once_and_as_it_stands() -> None:
    p = Gated(null=3)
    await p.tell("CREATE", range(8), BODY)
    before = counted()
    assert await p.tell("UPDATE", range(6), {"Title": None}) == {"gated": 0, "open": 6}
    assert counted() - before == {"records_processed changed": 6, "writes_emitted open": 6, "quality_records open": 6}


async def test_a_field_that_becomes_empty_everywhere_holds_the_route() -> None:
    p = Gated(null=3)
    await p.tell("CREATE", range(8), BODY)
    assert (await p.tell("UPDATE", range(4), {"Title": "other"}))["gated"] == 4
    assert await p.tell("UPDATE", range(4), {"Title": None}) == {"gated": 0, "open": 4}
    [said] = p.pauses
    assert "Title became empty in 4 records" in said


async def test_a_spike_is_measured_by_the_busiest_hour_before_and_the_first_hours_pass() -> None:
    p = Gated(spike=2)
    assert (await p.tell("CREATE", range(300), BODY, hour=1))["gated"] == 300
    assert (await p.tell("UPDATE", range(200), {"Title": "a"}, hour=2))["gated"] == 200
    assert not p.pauses
    for n in range(3):
        await p.tell("UPDATE", range(300), {"Title": f"b{n}"}, hour=3)
    [said] = p.pauses
    assert "900 records within an hour, 300 in the busiest" in said


async def test_without_gates_nothing_is_held_and_no_hour_adds_up_to_the_next() -> None:
    p = Gated()
    await p.tell("CREATE", range(50), BODY)
    assert (await p.tell("DELETE", range(50)))["gated"] == 50
    q = Gated(delete=3)
    await q.tell("CREATE", range(9), BODY)
    for hour in range(3):
        assert (await q.tell("DELETE", range(hour * 3, hour * 3 + 3), hour=hour + 1))["gated"] == 3


async def test_a_record_that_was_never_written_is_no_loss() -> None:
    p = Gated(delete=1, null=1)
    await p.tell("CREATE", range(5), BODY | {"Title": None})
    await p.tell("DELETE", range(30, 35))
    assert not p.pauses


def test_of_a_worker_with_half_the_partitions_half_is_asked() -> None:
    route = CONTACTS | {"gates": {"delete": 10}}
    watch = Watch(flow(gated=route), TOPICS)
    seen: Any = {("gated", "delete"): 5}
    assert watch.passed(seen, 0.5, HOUR_MS) == {}
    assert list(watch.passed(seen, 0.5, HOUR_MS)) == ["gated"]


@pytest.mark.parametrize("wrong", [{"delete": 0}, {"null": -1}, {"spike": 1}, {"other": 1}, {"delete": "many"}])
def test_a_gate_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Gates.model_validate(wrong)
    assert json.dumps(wrong)
