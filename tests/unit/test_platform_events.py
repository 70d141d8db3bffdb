"""Platform events as a source: each is a record of its own, emitted once, kept nowhere; what is none says so."""

from typing import Any

import orjson
import pytest

from deploy.context import choose_source
from models.change_event import ChangeEventError
from models.envelope import Envelope, Kind, Reason
from models.errors import SettingsError
from models.platform_event import parse_platform_event
from streams.salesforce.messages import Intake, Plan
from streams.salesforce.positions import Position
from streams.topics import Topics
from tests.support.flows import flow, maps
from tests.support.memory import MemoryRecord
from tests.support.pipeline import Pipeline

CHANNEL = "/event/Paid__e"
TOPIC = "t.in.acme.Paid__e"
PAID = {"from": ["acme/Paid__e"], "to": "warehouse", "map": "maps/paid.yaml", "object": "paid"}
LATEST = {"from": ["acme/Paid__e"], "to": "marketing", "map": "maps/paid.yaml", "where": "Amount__c > 0"}


def paid(replay: int, uuid: str | None = None, second: int = 0, **values: Any) -> Any:
    event = {"replayId": replay} | ({} if uuid is None else {"EventUuid": uuid})
    payload = {"CreatedDate": f"2026-05-04T09:30:{second:02d}.500Z", "CreatedById": "005Qx000000Us7EIAS"} | values
    return {"data": {"schema": "s", "payload": payload, "event": event}, "channel": CHANNEL}


def intake(position: int | None = 100, channel: str = CHANNEL) -> Intake:
    return Intake("acme", channel, Topics("t"), {"Paid__e"}, Position(1, position, 1000, "00D", "https://x", 5_000, "new"))


def keys(plan: Plan) -> list[str]:
    return [(o.key or b"").decode() for o in plan.outputs if o.topic == TOPIC]


def test_every_event_is_a_record_named_by_its_uuid_or_its_position() -> None:
    into = intake()
    plan = into.plan([paid(101, "uuid-0001", Order__c="A"), paid(103), paid(101, "uuid-0001", Order__c="A")], 42)
    assert keys(plan) == ["uuid-0001", "1-103"]
    assert (plan.repeats, into.position.position, plan.received) == (1, 103, {"Paid__e": 2})
    envelope = Envelope.from_headers(plan.outputs[0].headers)
    assert (envelope.kind, envelope.position, envelope.delivery, envelope.channel) == (Kind.EVENT, 101, "uuid-0001", CHANNEL)
    assert orjson.loads(plan.outputs[0].value or b"") == paid(101, "uuid-0001", Order__c="A")


def test_on_a_channel_of_several_each_message_says_which_event_it_is() -> None:
    def named(message: Any, name: Any) -> Any:
        return {"data": message["data"] | {"event": message["data"]["event"] | {"EventApiName": name}}, "channel": "/event/Shop__chn"}

    into = intake(channel="/event/Shop__chn")
    given = [named(paid(101, "uuid-0001"), "Paid__e"), named(paid(102, "uuid-0002"), "Booked__e"), paid(103), named(paid(104), 7)]
    plan = into.plan(given, 42)
    assert (keys(plan), plan.unrouted, plan.dead) == (["uuid-0001"], 1, {"ChangeEventError": 2})
    assert into.position.position == 104


@pytest.mark.parametrize(
    "bad", [None, [], {}, {"data": 5}, {"data": {"payload": []}}, paid(-1), {"data": {"payload": {}, "event": {"replayId": "7"}}}]
)
def test_what_is_no_platform_event_is_a_dead_letter_and_the_next_one_comes(bad: Any) -> None:
    with pytest.raises(ChangeEventError):
        parse_platform_event(bad)
    plan = intake().plan([bad, paid(101, "uuid-0001")], 0)
    assert (keys(plan), plan.dead) == (["uuid-0001"], {"ChangeEventError": 1})


def test_one_too_large_for_kafka_is_a_dead_letter_that_says_so() -> None:
    plan = intake().plan([paid(101, "uuid-0001", Order__c="x" * 1_100_000)], 0)
    assert (keys(plan), plan.dead) == ([], {"TooLarge": 1})


def pipeline(**routes: dict[str, Any]) -> Pipeline:
    return Pipeline(flow(**routes), maps(**routes))


def record(p: Pipeline, message: Any, uuid: str, **more: Any) -> MemoryRecord:
    bulk = more.pop("bulk", False)
    known = {"kind": Kind.EVENT, "reason": Reason.LIVE, "received": 1, "epoch": 1, "position": 101, "delivery": uuid, **more}
    return p.record("acme/Paid__e", uuid, message, Envelope(**known), bulk=bulk)


async def test_an_event_is_mapped_and_emitted_once_again_after_a_crash_and_never_for_a_repeat() -> None:
    p = pipeline(paid=PAID)
    first = record(p, paid(101, "uuid-0001", Order__c="A", Amount__c=5), "uuid-0001")
    [write] = await p.feed(first, keep=False)
    assert (write.key, write.body) == (
        "acme/uuid-0001",
        {"uuid": "uuid-0001", "order": "A", "amount": 5, "at": "2026-05-04T09:30:00.500Z"},
    )
    assert [w.revision for w in await p.feed(first)] == [write.revision], "a redelivery says the same again"
    assert await p.feed(record(p, paid(105, "uuid-0001", Order__c="A"), "uuid-0001")) == [], "another position, the same event"
    assert [key for key in p.partition.store("records").values if not key.startswith(b"\x01quality|")] == []
    again = record(p, paid(101, "uuid-0001", Order__c="A"), "uuid-0001", bulk=True, reason=Reason.REPLAY, run="r", route="paid")
    assert [w.revision for w in await p.feed(again)] == [write.revision], "a replay is not older than what it repeats"


async def test_of_events_under_one_key_the_one_published_last_speaks_and_a_filter_keeps_out() -> None:
    p = pipeline(latest=LATEST)
    out = []
    for n, (uuid, second, amount) in enumerate((("uuid-9", 10, 5), ("uuid-1", 20, 6), ("uuid-5", 15, 7), ("uuid-0", 30, 0))):
        out += await p.feed(record(p, paid(101 + n, uuid + "000", second, Email__c="A@x.org", Amount__c=amount), uuid + "000"))
    assert [w.key for w in out] == ["a@x.org"] * 3
    assert len({w.source for w in out}) == 1
    assert max(out, key=lambda w: w.revision).body == out[1].body


async def test_a_change_event_in_its_topic_is_a_dead_letter() -> None:
    p = pipeline(paid=PAID)
    assert await p.feed(record(p, paid(101), "x", kind=Kind.CHANGE)) == []
    assert "put there by somebody else" in p.dead[0].reason


def test_nothing_of_it_can_be_read_again() -> None:
    with pytest.raises(SettingsError, match="is a platform event"):
        choose_source(flow(paid=PAID), "acme/Paid__e")
    assert flow(paid=PAID).channels("acme") == (CHANNEL,)
    assert flow(paid=PAID).sobjects("acme") == ()
