"""A whole Headrace for a test: deploy/rig.py on the session's servers, or on a broker of its own that a test may kill."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


def record_calls(made: Rig) -> int:
    """Calls so far that Salesforce answers with records. What a clock makes (limits, canary) and descriptions are not among them."""
    counts = made.ask("GET", "/sandbox/state")["counts"]
    return sum(counts.get(f"{resource} requests", 0) for resource in ("query", "queryAll", "composite", "jobs"))


def verdict_of(made: Rig) -> Verdict:
    """Compare both ends once, now."""
    with made.database() as database:
        return compare_now(made, database)


def explain(made: Rig, verdict: Verdict) -> str:
    """For an assertion's message: what differs, and where to look."""
    logs = "\n".join(f"--- {name}\n{process.log_tail(8)}" for name, process in made.processes.items() if name in ("worker", "subscribe"))
    return f"{verdict.count} differences: {verdict.differences[:8]}\n{logs}"
