"""What Kafka's retention removed before it was read is taken up as an incident; what the subscriber cannot fetch waits for a person."""

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from models.settings import Settings
from streams.engine.loss import Loss, letter, told
from streams.engine.stage import Output
from streams.kafka import admin
from streams.losses import accept_removed
from streams.publish import TransactionalPublisher
from streams.salesforce.incidents import read_incidents
from streams.topics import Topics
from tests.support.flows import flow
from tests.support.salesforce import Desk, connected, flow_for, inbound, repaired, subscribed

pytestmark = pytest.mark.kafka


async def removed(settings: Settings, topic: str, read: int = 5, begin: int = 8) -> TopicPartition:
    """Ten records, of which `read` were read before those below `begin` were removed; told, as a worker does."""
    part = TopicPartition(topic, 0)
    async with TransactionalPublisher(settings, f"{settings.installation}.test") as publisher:
        await publisher.send([Output(topic, b"003Qx00000Ke4RtIAJ", b"{}", [], 0)] * 10, offsets={part: read}, group=settings.installation)
        async with admin(settings) as broker:
            await broker.delete_records({part: RecordsToDelete(before_offset=begin)})
        await publisher.send([letter(Loss(topic, 0, read, begin, 10), Topics(settings.installation))])
    return part


async def committed(settings: Settings, part: TopicPartition) -> int:
    async with admin(settings) as broker:
        return int((await broker.list_consumer_group_offsets(settings.installation, partitions=[part]))[part].offset)


@pytest.mark.parametrize("name", ["in.acme.Contact", "writes.warehouse"])
async def test_what_retention_removed_is_read_again_by_itself(settings: Settings, desk: Desk, name: str) -> None:
    part = await removed(settings, f"{settings.installation}.{name}")
    sources = {"acme/Contact"} if "Contact" in name else {"acme/Contact", "acme/Account"}
    async with subscribed(settings, flow_for(desk.url)) as task:
        await connected(desk, task)
        closed = await repaired(settings, len(sources), task)
    assert {i.source for i in closed} == sources
    assert {(i.cause, i.since) for i in closed} == {("log lost", 0)}
    assert (await told(settings), await committed(settings, part)) == ({}, 8)
    kept = {r["Id"] for r in (await desk.call("GET", "records?type=Contact"))["records"]}
    assert kept == {(r.key or b"").decode() for r in await inbound(settings, "Contact", bulk=True)}


async def test_what_nobody_can_fetch_or_what_was_made_anew_waits_for_a_person(settings: Settings) -> None:
    contacts = {"from": ["acme/Contact"], "to": "warehouse", "map": "person"}
    both = flow(contacts=contacts, orders={"from": ["shop"], "to": "warehouse", "map": "maps/order.yaml"})
    await removed(settings, f"{settings.installation}.writes.warehouse")
    assert await accept_removed(settings, both, ["acme/Contact"]) == []
    await removed(settings, f"{settings.installation}.in.acme.Contact", read=30)
    assert await accept_removed(settings, both, ["acme/Contact"]) == []
    assert await accept_removed(settings, flow(contacts=contacts), ["acme/Lead"]) == [], "it is another channel's"
    assert (len(await told(settings)), await read_incidents(settings)) == (2, {})
