"""The example flows against their golden files: what they read from Salesforce, what a row becomes, and what users come of several."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agents.guard import Guard
from agents.maps import load_maps
from agents.rules.explain import sobject_of
from agents.rules.writes import encode_write
from agents.targets import iterable, make_target
from agents.writer import Writer
from deploy.rig import FLOW
from models.flow import Salesforce
from streams.engine.stage import Chunk, Output
from streams.flow_file import load_flow
from streams.salesforce.auth import Login
from streams.salesforce.rest import Answer, Rest
from tests.support.memory import MemoryRecord
from tests.support.pipeline import SETTINGS, TOPICS, Pipeline
from tests.support.rules_targets import Calls, Users

DATA = Path(__file__).parents[1] / "data" / "golden"
ENVIRONMENT = dict.fromkeys(("SF_URL", "ITERABLE_URL"), "https://example.org") | dict.fromkeys(
    ("SF_CLIENT_ID", "SF_CLIENT_SECRET", "ITERABLE_API_KEY", "DATABASE_URL"), "x"
)
GOLDEN = {name: YAML(typ="safe").load((DATA / f"{name}.yaml").read_text()) for name in ("iterable", "gtm-clarity")}
CASES = [pytest.param(name, case, id=f"{name}: {case['name']}") for name, golden in GOLDEN.items() for case in golden["cases"]]


def pipeline(name: str, where: str | None = None) -> Pipeline:
    flow = load_flow(FLOW.with_name(f"{name}.yaml"), ENVIRONMENT)
    if where is not None:
        flow = flow.model_copy(update={"routes": {key: route.model_copy(update={"where": where}) for key, route in flow.routes.items()}})
    return Pipeline(flow, load_maps(flow, {key: make_target(key, target, "t") for key, target in flow.targets.items()}))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_columns_that_are_read_follow_from_the_maps(name: str) -> None:
    flow = load_flow(FLOW.with_name(f"{name}.yaml"), ENVIRONMENT)
    maps = load_maps(flow, {key: make_target(key, target, "t") for key, target in flow.targets.items()})
    assert {source: sorted(maps.fields(source)) for source in maps.sources} == {
        source: sorted(fields) for source, fields in GOLDEN[name]["select"].items()
    }


@pytest.mark.parametrize(("name", "case"), CASES)
async def test_a_row_becomes_what_the_golden_file_says(name: str, case: dict[str, Any]) -> None:
    p = pipeline(name)
    writes = await p.feed(p.row(case["sobject"], case["id"], 10, 1000, case["before"]))
    if "after" in case:
        [write] = writes
        assert (write.key, write.body) == (case["key"], case["after"])
    else:
        assert writes == []
        assert [field for letter in p.dead for field in case["fails"] if re.search(rf"\b{field}\b", letter.reason)] == case.get("fails", [])
        assert bool(p.dead) == ("fails" in case)


@pytest.mark.parametrize("case", GOLDEN["iterable"]["users"], ids=lambda case: case["name"])
async def test_rows_one_after_another_become_these_users(case: dict[str, Any]) -> None:
    p, target = pipeline("iterable", case.get("where")), iterable.Target("marketing", iterable.IterableOptions(api_key="k"), "t")
    target._http = users = Users()  # type: ignore[assignment]
    writer = Writer("marketing", target, p.flow, SETTINGS, p.maps.now, Guard("write", "marketing"))  # type: ignore[arg-type]
    writer._calls = Calls(target)  # type: ignore[assignment,arg-type]
    topic, offset = TOPICS.writes("marketing"), 0
    for second, row in enumerate(case["rows"], 1000):
        made = await p.feed(p.row(row["sobject"], row["id"], 10, second, row["values"]))
        left = [Output(topic, write.kafka_key, encode_write(write)) for write in made]
        while left:  # a rename sends the write on
            write = left.pop(0)
            offset += 1
            chunk = Chunk(topic, 0, [MemoryRecord(topic, offset, write.key, write.value)])
            result = await writer.handle(chunk, p.partition)
            p.partition.commit(chunk, result)
            left += result.outputs
    assert p.dead == []
    assert {name: without_empty(profile.fields) for name, profile in users.project.profiles.items()} == case["users"]


def without_empty(fields: Any) -> Any:
    """Iterable takes null and an object of nothing for nothing."""
    found = {name: without_empty(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in found.items() if value not in (None, {})}


async def test_a_queue_is_asked_for_once_by_id_and_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    p, golden, asked = pipeline("iterable"), GOLDEN["iterable"], dict[str, list[str]]()
    for sobject in ("Lead", "Contact"):
        queue = [(entry["id"], datetime.fromisoformat(entry["created"])) for entry in golden["queue"] if entry["recordType"] == sobject]
        events = [p.change(sobject, id, "UPDATE", 10 + n, int(at.timestamp()), {"LeadSource": f"s{n}"}) for n, (id, at) in enumerate(queue)]
        await p.feed(*events)
    for request, _ in p.fetches:
        assert set(request) == {"sobject", "id"}, "no more than that is queued"
        assert sobject_of(request["id"]) == request["sobject"], "the first three characters of an id say so too"
        asked.setdefault(request["sobject"], []).append(request["id"])
    assert asked == golden["groups"]
    config = Salesforce.model_validate(p.flow.connections["acme"])
    rest, soql = Rest("acme", config, Login("acme", config)), list[str]()

    async def query(text: str, purpose: str, *, deleted: bool) -> Answer:
        assert deleted, "who was deleted meanwhile is a row too"
        soql.append(text)
        return Answer([], 0, 0)

    monkeypatch.setattr(rest, "query", query)
    for sobject, ids in asked.items():
        await rest.by_ids(sobject, p.maps.now.fields(f"acme/{sobject}"), ids, "fetch")
    assert soql == list(golden["queries"].values())


async def test_the_same_lead_twice_in_the_queue_is_written_once() -> None:
    """As the two entries of a queue that differ by eight seconds."""
    p, case = pipeline("iterable"), GOLDEN["iterable"]["cases"][0]
    await p.feed(*(p.change("Lead", case["id"], "UPDATE", 10 + n, 1000 + 8 * n, {"Status": f"s{n}"}) for n in range(2)))
    assert p.fetches == [({"sobject": "Lead", "id": case["id"]}, {"epoch": "1", "position": "11"})]
    assert [write.key for write in await p.feed(p.row("Lead", case["id"], 11, 1008, case["before"]))] == [case["key"]]
