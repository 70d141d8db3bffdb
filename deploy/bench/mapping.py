"""What mapping costs: a map of twelve fields and all gates beside orjson, which parses the same record. In this process, without Kafka."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import orjson

from agents.map_file import read_map
from agents.rules.explain import values_of
from agents.rules.mapping import compile_map
from agents.rules.quality import gate
from deploy.bench.figures import spread
from models.errors import SettingsError

CALLS, ROUNDS = 20_000, 7
RECORD = {
    "attributes": {"type": "Contact", "url": "/services/data/v67.0/sobjects/Contact/003Qx00000Ke4RtIAJ"},
    "Id": "003Qx00000Ke4RtIAJ",
    "IsDeleted": False,
    "SystemModstamp": "2026-05-04T09:30:11.000+0000",
    "Email": "Zoe.Martin@Acme.Example",
    "FirstName": "Zoë",
    "LastName": "Martin ",
    "Title": "Head of Operations",
    "Phone": "(415) 555-2671",
    "AccountId": "001Qx000006bKxGIAU",
    "LeadSource": None,
    "Birthdate": "1984-02-29",
    "LastCURequestDate": "2026-04-30T22:15:00.000+0000",
    "Owner": {
        "attributes": {"type": "User", "url": "/services/data/v67.0/sobjects/User/005Qx000001aBcDIAU"},
        "Email": "Ops@Acme.Example",
        "IsActive": True,
    },
}


def mapping() -> dict[str, Any]:
    """Nanoseconds a record, and the ratio; of the rounds the medians, lowest and highest."""
    path = Path(__file__).parent / "person.yaml"
    found, problems = read_map(path)
    if found is None or problems:
        raise SettingsError("\n".join(map(str, problems)))
    compiled, raw = compile_map(found, "Contact"), orjson.dumps(RECORD)
    gates = gate(("required", "types"), "person", found.types(("Contact",)), compiled.required, found.done())
    values = values_of(RECORD, compiled.fields)
    shapes, parses, ratios = [], [], []
    for _ in range(ROUNDS):
        parses.append(_nanoseconds(lambda: orjson.loads(raw)))
        shapes.append(_nanoseconds(lambda: gates.check(compiled.apply(values), "003")))
        ratios.append(shapes[-1] / parses[-1])
    ratio = spread(ratios)
    return {
        "mapping and gates, 12 fields": {"ns a record": round(spread(shapes).median)},
        "orjson, the same record": {"ns a record": round(spread(parses).median), "bytes": len(raw)},
        "ratio": {"median": round(ratio.median, 1), "low": round(ratio.low, 1), "high": round(ratio.high, 1), "aim": "at most 8"},
    }


def _nanoseconds(call: Callable[[], object]) -> float:
    begun = perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (perf_counter_ns() - begun) / CALLS
