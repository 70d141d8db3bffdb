"""The look at an org's fields on real Kafka and the sandbox: what becomes of a new one, and of a run whose fields are gone again."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from agents.map_versions import Versions
from agents.org_fields import FieldWatch
from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from models.envelope import Envelope, Reason
from models.flow import Flow
from models.settings import Settings
from streams.consume import read_all
from streams.publish import send
from streams.salesforce.auth import Login
from streams.salesforce.rest import Rest
from streams.salesforce.runs import Run, snapshot_runs
from streams.topics import Topics
from tests.support.flows import TARGETS
from tests.support.salesforce import Desk, acme, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]
SOURCE = "acme/Contact"


async def test_new_fields_are_read_alone_of_all_records_and_of_those_that_are_gone_again_nothing(
    settings: Settings, desk: Desk, tmp_path: Path
) -> None:
    (tmp_path / "m.yaml").write_text("Email: mail\n")
    auth = {"flow": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    flow = Flow.model_validate({
        "connections": {"acme": {"type": "salesforce", "url": desk.url, "auth": auth}},
        "targets": {"warehouse": {"type": "postgres"}},
        "routes": {"people": {"from": [SOURCE], "to": "warehouse", "map": "m.yaml", "fields": "all"}},
        "folder": str(tmp_path),
    })  # fmt: skip
    topics, maps = Topics(settings.installation), await Versions(settings, flow, TARGETS, strict=False).read()
    watch, config = FieldWatch(settings, flow, "acme", maps), acme(flow)
    await watch.first()
    assert "LeadSource" in maps.columns("warehouse")["m"], "known before the first snapshot"
    begun, left = Run("first", SOURCE, by="first", state="done"), Run("left", SOURCE, by="fields", only="Phone,Gone__c")
    await send(settings, [begun.output(topics), left.output(topics)])
    await desk.call("POST", "objects", Contact={"Score__c": "double"}, Lead={"Score__c": "double"})
    rest = Rest("acme", config, Login("acme", config, "."), settings)

    async def runs() -> dict[str, Any]:
        return {run.only: (run.by, run.state) for run in (await snapshot_runs(settings)).values()}

    done = {"": ("first", "done"), "Phone,Gone__c": ("fields", "stopped"), "Phone": ("fields", "done"), "Score__c": ("fields", "done")}
    with capture_logs() as said:
        task = asyncio.create_task(watch.run(rest))
        try:
            await until(runs, lambda found: found == done, task=task)
            await desk.call("POST", "objects", Contact={"Score__c": None})
            rest.forget()  # as when an event tells of another schema
            await until(lambda: _plan(maps), lambda plan: "Score__c" not in plan.select, task=task)
        finally:
            task.cancel()
            await asyncio.wait([task])
            await rest.close()
    assert await runs() == done
    rows = [record for record in await read_all(settings, topics.inbound(SOURCE, bulk=True)) if b"Score__c" in (record.value or b"")]
    assert len(rows) == len((await desk.call("GET", "records?type=Contact"))["records"])
    for row in rows:
        assert orjson.loads(row.value or b"").keys() == {"attributes", "Id", "IsDeleted", "SystemModstamp", "Score__c"}
        envelope = Envelope.from_headers(row.headers)
        assert (envelope.reason, envelope.run, envelope.plan) == (Reason.POLL, None, _print(maps)), "told only of what it changes"
    assert [line["fields"] for line in said if line.get("alert")] == [["Score__c"]], "it is gone, and its column stays"
    assert "Score__c" in maps.columns("warehouse")["m"]


async def _plan(maps: Versions) -> Any:
    return maps.now.plan(SOURCE)


def _print(maps: Versions) -> str:
    plan = maps.now.plan(SOURCE)
    assert plan is not None
    return plan.print
