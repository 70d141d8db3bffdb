"""A whole Headrace for a test: deploy/rig.py on the session's servers, or on a broker of its own that a test may kill."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.demo import compare_now
from deploy.oracle import Verdict
from deploy.rig import Rig

ACME = """
connections:
  acme:
    type: salesforce
    url: ${SF_URL}
    auth: {flow: client_credentials, client_id: ${SF_CLIENT_ID}, client_secret: ${SF_CLIENT_SECRET}}
"""
"""Begins a flow file: the rig's Salesforce. WAREHOUSE: and its PostgreSQL."""
WAREHOUSE = f"{ACME}targets:\n  warehouse: {{type: postgres, dsn: ${{DATABASE_URL}}, schema: crm}}\n"
VARIABLES = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL")


@contextmanager
def rig(folder: Path, kafka: str | None, database_url: str | None, **options: Any) -> Iterator[Rig]:
    """A rig, not yet started. `kafka` None: a local broker of its own, which it may kill; the same for `database_url`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(VARIABLES, (kafka, database_url), strict=True):
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, value)
        with Rig(folder, **options) as made:
            yield made


def queries(made: Rig, *sobjects: str) -> Callable[[], list[tuple[str, int]]]:
    """What is asked from now on, of these sObjects or of all: SOQL and rows. Counts are no rows. Others are polled by a clock (Owner)."""

    def asked() -> list[tuple[str, int]]:
        every = made.ask("GET", "/sandbox/queries")["queries"]
        assert len(every) < 1000, "the sandbox forgets the oldest: what was before cannot be told any more"
        return [(text, found) for text, found in every if not sobjects or any(f" FROM {sobject}" in text for sobject in sobjects)]

    before = len(asked())
    return lambda: [(text, found) for text, found in asked()[before:] if "COUNT()" not in text]


def metric(made: Rig, role: str, metric: str, **labels: str) -> float:
    """What a process says of a metric with these labels among its own; -1 while it says nothing."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{made.ports[role]}/metrics", timeout=5) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                if sample.name == metric and labels.items() <= sample.labels.items():
                    return float(sample.value)
    return -1.0


def nothing_waits(made: Rig) -> None:
    """Until no hop has anything to do: what was sent into the flow before has had all its consequences."""

    def quiet() -> bool:
        code, printed = made.command("status", "--json")
        assert code == 0, printed
        return not any(hop["lag"] for hop in json.loads(printed)["hops"])

    made.await_("nothing waits", quiet)


def verdict_of(made: Rig) -> Verdict:
    """Compare both ends once, now."""
    with made.database() as database:
        return compare_now(made, database)


def explain(made: Rig, verdict: Verdict) -> str:
    """For an assertion's message: what differs, and where to look."""
    logs = "\n".join(f"--- {name}\n{process.log_tail(8)}" for name, process in made.processes.items() if name in ("worker", "subscribe"))
    return f"{verdict.count} differences: {verdict.differences[:8]}\n{logs}"
