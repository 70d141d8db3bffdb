"""Fifty tenants in one process: each is polled, none waits for another that is refused."""

import asyncio
import time
from pathlib import Path

import orjson
import pytest

from models.flow import Flow
from streams.consume import read_all
from streams.salesforce.subscriber import run_subscriber
from streams.topics import Topics, ensure
from tests.support.broker import settings_for, topics
from tests.support.salesforce import FIELDS, acme, flow_for, org, until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
TENANTS = 50


@pytest.mark.timeout(300)
async def test_fifty_tenants_are_polled_by_one_process_and_one_that_is_refused_holds_up_none(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, tmp_path, partitions=1)
    names = [f"t{n}" for n in range(TENANTS)]
    async with topics(settings, []), org(20) as desk:
        one = flow_for(desk.url, poll={"Contact": 5})
        connection = acme(one)
        refused = connection.model_copy(update={"auth": connection.auth.model_copy(update={"client_id": "nobody"})})
        flow = Flow.model_validate(
            {
                "connections": dict.fromkeys(names, connection) | {"t0": refused},
                "targets": one.targets,
                "routes": {f"r{name}": {"from": [f"{name}/Contact"], "to": "warehouse", "map": "person"} for name in names},
            }
        )
        fields = {f"{name}/Contact": FIELDS["acme/Contact"] for name in names}
        await ensure(settings, Topics(settings.installation).all(flow, settings))
        stop, begun = asyncio.Event(), time.monotonic()
        runs = [
            asyncio.create_task(run_subscriber(settings, flow, name, fields, start_from=None, stop=stop, snapshot=False)) for name in names
        ]
        try:
            await until(desk.state, lambda s: s["counts"].get("rest requests", 0) >= TENANTS - 1, 120)
            made = await desk.create("Everybody's")

            async def there() -> list[str]:
                found = [(n, await read_all(settings, Topics(settings.installation).inbound(f"{n}/Contact", bulk=True))) for n in names[1:]]
                return [n for n, records in found if made not in {orjson.loads(r.value or b"")["Id"] for r in records}]

            await until(there, lambda missing: not missing, 120)
        finally:
            stop.set()
            await asyncio.gather(*runs)
        print(f"\n{TENANTS - 1} tenants polled within {time.monotonic() - begun:.0f} s of the start")
