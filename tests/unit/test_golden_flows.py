"""The example flows against their golden files: what they read from Salesforce, and what a row of it becomes."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agents.maps import load_maps
from agents.targets import make_target
from deploy.rig import FLOW
from streams.flow_file import load_flow
from tests.support.pipeline import Pipeline

DATA = Path(__file__).parents[1] / "data" / "golden"
ENVIRONMENT = dict.fromkeys(("SF_URL", "ITERABLE_URL"), "https://example.org") | dict.fromkeys(
    ("SF_CLIENT_ID", "SF_CLIENT_SECRET", "ITERABLE_API_KEY", "DATABASE_URL"), "x"
)
GOLDEN = {name: YAML(typ="safe").load((DATA / f"{name}.yaml").read_text()) for name in ("iterable", "gtm-clarity")}
CASES = [pytest.param(name, case, id=f"{name}: {case['name']}") for name, golden in GOLDEN.items() for case in golden["cases"]]


def pipeline(name: str) -> Pipeline:
    flow = load_flow(FLOW.with_name(f"{name}.yaml"), ENVIRONMENT)
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
        assert [field for letter in p.dead for field in case["fails"] if f"{field}: " in letter.reason] == case.get("fails", [])
        assert bool(p.dead) == ("fails" in case)


async def test_the_same_lead_twice_in_the_queue_is_asked_for_once_and_written_once() -> None:
    """As the two entries of a queue that differ by eight seconds."""
    p, case = pipeline("iterable"), GOLDEN["iterable"]["cases"][0]
    await p.feed(*(p.change("Lead", case["id"], "UPDATE", 10 + n, 1000 + 8 * n, {"Status": f"s{n}"}) for n in range(2)))
    assert p.fetches == [({"sobject": "Lead", "id": case["id"]}, {"epoch": "1", "position": "11"})]
    assert [write.key for write in await p.feed(p.row("Lead", case["id"], 11, 1008, case["before"]))] == [case["key"]]
