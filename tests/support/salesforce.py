"""A sandbox org beside a subscriber on the real Kafka: the flow for it, changes to make, and what arrived."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET
from deploy.sandbox.salesforce.server import Sandbox
from models.envelope import Envelope
from models.flow import Flow, Salesforce
from models.settings import Settings
from streams.consume import read_all
from streams.engine.stage import Record
from streams.kafka import client_options
from streams.salesforce.incidents import Incident, read_incidents
from streams.salesforce.subscriber import run_subscriber
from streams.topics import Topics, ensure
from tests.support.broker import settings_for, topics

FIELDS = {f"acme/{s}": ("Id", "IsDeleted", "SystemModstamp", "Name", "OwnerId") for s in ("Contact", "Account")}


@asynccontextmanager
async def installation(kafka: str, state: Path) -> AsyncIterator[Settings]:
    """Settings whose topics are there; deleted at the end."""
    settings = settings_for(kafka, state)
    wanted = Topics(settings.installation).all(flow_for("http://localhost"), settings)
    async with topics(settings, []):
        await ensure(settings, wanted)
        consumer = AIOKafkaConsumer(**client_options(settings))
        await consumer.start()
        await until(consumer.topics, lambda found: {t.name for t in wanted} <= found)  # the broker hears of them a moment later
        await consumer.stop()
        yield settings


def flow_for(url: str, silence: float = 300.0, **connection: Any) -> Flow:
    """Contacts and Accounts of a sandbox org."""
    auth = {"flow": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    return Flow.model_validate(
        {
            "connections": {"acme": {"type": "salesforce", "url": url, "auth": auth, "silence": silence} | connection},
            "targets": {"warehouse": {"type": "postgres"}},
            "routes": {"people": {"from": ["acme/Contact", "acme/Account"], "to": "warehouse", "map": "person"}},
        }
    )


def acme(flow: Flow) -> Salesforce:
    """Its connection of that name."""
    config = flow.connections["acme"]
    assert isinstance(config, Salesforce)
    return config


class Desk:
    """What a test does to an org through its control paths; the org may run in this process or another."""

    def __init__(self, url: str, sandbox: Sandbox | None = None) -> None:
        self.url, self._sandbox = url, sandbox
        self._http = aiohttp.ClientSession(base_url=url)

    @property
    def sandbox(self) -> Sandbox:
        """The org itself, where it runs in this process."""
        assert self._sandbox is not None
        return self._sandbox

    async def close(self) -> None:
        await self._http.close()

    async def call(self, method: str, path: str, **body: Any) -> Any:
        """One control request; while the org refuses connections (server-restart) it waits."""
        async with asyncio.timeout(20):
            while True:
                try:
                    async with self._http.request(method, f"/sandbox/{path}", json=body or None) as reply:
                        answer = await reply.json()
                        assert reply.status == 200, answer
                        return answer
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.1)

    async def create(self, last_name: str, sobject: str = "Contact") -> str:
        named = {"LastName": last_name} if sobject == "Contact" else {"Name": last_name}
        made = await self.call("POST", "transaction", changes=[{"op": "create", "type": sobject, "values": named}])
        return str(made["ids"][0])

    async def update(self, record: str, value: str) -> int:
        change = {"op": "update", "type": "Contact", "id": record, "values": {"Title": value}}
        return int((await self.call("POST", "transaction", changes=[change]))["replayIds"][0])

    async def delete(self, record: str) -> None:
        await self.call("POST", "transaction", changes=[{"op": "delete", "type": "Contact", "id": record}])

    async def emit(self, *messages: Any, keep: bool = False) -> list[int]:
        """Publish messages as they stand; `keep` their replay ids too."""
        lines = b"\n".join(orjson.dumps(m) for m in messages)
        async with self._http.post(f"/sandbox/emit?keep={int(keep)}", data=lines) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
            return list(answer["replayIds"])

    async def fault(self, name: str, **more: Any) -> None:
        await self.call("POST", "faults", name=name, **more)

    async def state(self) -> Any:
        return await self.call("GET", "state")

    async def published(self, *sobjects: str) -> list[tuple[int, str]]:
        """(replay id, record id) of every event of these objects."""
        commits = (await self.call("GET", "commits"))["commits"]
        return sorted((replay, record) for replay, _, entity, records in commits if entity in sobjects for record in records)


def change(*ids: str, second: int, kind: str = "UPDATE", sobject: str = "Contact", replay: int | None = None, **body: Any) -> Any:
    """A change event as Salesforce sends it; without `replay` the org gives it a position."""
    header = {
        "entityName": sobject,
        "recordIds": list(ids),
        "changeType": kind,
        "changeOrigin": "",
        "transactionKey": "0002a505-7a90-11f3-02c4-55d0b7aa9e10",
        "sequenceNumber": 1,
        "commitTimestamp": second * 1000,
        "commitNumber": 1777887100118022145,
        "commitUser": "005Qx000000Us7EIAS",
        "changedFields": list(body),
    }
    event = {} if replay is None else {"replayId": replay}
    return {"data": {"schema": "s", "payload": {"ChangeEventHeader": header} | body, "event": event}, "channel": "/data/ChangeEvents"}


@asynccontextmanager
async def org(records: int = 0, hold: float = 1.0) -> AsyncIterator[Desk]:
    """A sandbox org in this process."""
    async with Sandbox(records=records, hold=hold) as sandbox:
        desk = Desk(sandbox.url, sandbox)
        try:
            yield desk
        finally:
            await desk.close()


@asynccontextmanager
async def subscribed(settings: Settings, flow: Flow, **more: Any) -> AsyncIterator["asyncio.Task[None]"]:
    """A subscriber in this process; an error of it is the test's."""
    stop = asyncio.Event()
    options: dict[str, Any] = {"start_from": "new", "snapshot": False, "pause_seconds": 0.3} | more
    task = asyncio.create_task(run_subscriber(settings, flow, "acme", FIELDS, stop=stop, **options))
    try:
        yield task
    finally:
        stop.set()
        await task


async def until(
    ask: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float = 90.0, task: "asyncio.Task[Any] | None" = None
) -> Any:
    """Ask until the answer is the wanted one; the last answer is in the error."""
    answer = None
    try:
        async with asyncio.timeout(seconds):
            while not wanted(answer := await ask()):
                if task is not None and task.done():
                    task.result()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s; last answer: {str(answer)[:2000]}") from None
    return answer


async def connected(desk: Desk, task: "asyncio.Task[None] | None" = None, channel: str = "/data/ChangeEvents") -> None:
    """Until a session of the org has subscribed."""
    await until(desk.state, lambda s: any(channel in x["channels"] for x in s["sessions"]), task=task)


async def first_came(settings: Settings, desk: Desk, task: "asyncio.Task[None] | None" = None) -> str:
    """Until a session has subscribed and a new Contact has come by it; its id."""
    await connected(desk, task)
    person = await desk.create("Before")
    await until(lambda: arrived(settings, "Contact"), lambda found: len(found) == 1, task=task)
    return person


async def inbound(settings: Settings, *sobjects: str, bulk: bool = False) -> list[Record]:
    """Records of in-topics of connection acme."""
    names = Topics(settings.installation)
    found: list[Record] = []
    for sobject in sobjects:
        found += await read_all(settings, names.inbound(f"acme/{sobject}", bulk=bulk))
    return found


async def arrived(settings: Settings, *sobjects: str) -> list[tuple[int, str]]:
    """(position, record id) of every event in the in-topics, sorted; doubled ones are there twice."""
    return sorted((envelope_of(r).position or 0, (r.key or b"").decode()) for r in await inbound(settings, *sobjects))


async def order_of(settings: Settings, *sobjects: str) -> dict[str, list[int]]:
    """Positions per record id, in the order of the topic."""
    found: dict[str, list[int]] = defaultdict(list)
    for record in await inbound(settings, *sobjects):
        found[(record.key or b"").decode()].append(envelope_of(record).position or 0)
    return found


def envelope_of(record: Record) -> Envelope:
    return Envelope.from_headers(record.headers)


async def letters(settings: Settings) -> list[Any]:
    """Dead letters."""
    return [orjson.loads(r.value or b"") for r in await read_all(settings, Topics(settings.installation).dead_letters)]


async def repaired(settings: Settings, count: int, task: "asyncio.Task[None]") -> list[Incident]:
    """Until there are so many incidents and all are closed; in the order of their opening."""

    def ended(found: dict[str, Incident]) -> bool:
        mine = [i for i in found.values() if i.source.startswith("acme/")]
        return len(mine) == count and all(i.state == "closed" for i in mine)

    found = await until(lambda: read_incidents(settings), ended, task=task)
    return [i for i in found.values() if i.source.startswith("acme/")]
