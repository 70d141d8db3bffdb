"""Two connections whose record ids collide (a full-copy sandbox beside production) stay apart in everything that has a name or a key."""

from typing import Any

import pytest

from agents.anew import in_topic_source
from agents.maps import load_maps
from agents.parked import prefix
from agents.refill import ASIDE
from agents.tables import RECORDS
from agents.verify_targets import RouteCheck
from models.envelope import Envelope, Kind, Reason
from models.flow import Flow
from models.settings import Settings
from models.write import Op
from streams.salesforce.positions import position_key
from streams.topics import Topics, sources
from tests.support.flows import AUTH, TARGETS
from tests.support.pipeline import TOPICS, Pipeline
from tests.unit.test_process import ID, ROW

BOTH = ("acme", "uat")


def flow(**route: Any) -> Flow:
    return Flow.model_validate(
        {
            "connections": {name: {"type": "salesforce", "auth": AUTH} for name in BOTH},
            "targets": {"warehouse": {"type": "postgres"}, "marketing": {"type": "iterable"}},
            "routes": {"contacts": {"from": [f"{name}/Contact" for name in BOTH], "to": "warehouse", "map": "person", **route}},
        }
    )


@pytest.fixture
def both() -> Pipeline:
    made = flow()
    return Pipeline(made, load_maps(made, TARGETS))


async def tell(p: Pipeline, connection: str, position: int, second: int, paused: bool = False, **body: Any) -> list[Any]:
    """A row of the one record id, from one of the connections."""
    stamp = {"SystemModstamp": f"2026-01-01T00:00:{second:02}.000+0000", "IsDeleted": False}
    value = {"attributes": {"type": "Contact"}, "Id": ID, **stamp, **ROW, **body}
    envelope = Envelope(kind=Kind.ROW, reason=Reason.FETCH, received=1, epoch=1, began=position)
    return await p.feed(p.record(f"{connection}/Contact", ID, value, envelope))


async def test_equal_ids_are_two_records_and_two_rows_whichever_is_newer(both: Pipeline) -> None:
    [first] = await tell(both, "acme", 10, 5, Title="of acme")
    [second] = await tell(both, "uat", 9, 1, Title="of uat")
    assert (first.key, second.key) == (f"acme/{ID}", f"uat/{ID}")
    assert (first.source, second.source) == (f"acme/Contact/{ID}", f"uat/Contact/{ID}")
    assert [(write.body or {})["title"] for write in (first, second)] == ["of acme", "of uat"]
    assert first.kafka_key != second.kafka_key
    known = {key for key in both.partition.store(RECORDS).values if not key.startswith(b"\x01")}
    assert known == {f"{name}/Contact|{ID}".encode() for name in BOTH}


async def test_what_is_deleted_in_one_stays_in_the_other(both: Pipeline) -> None:
    for name in BOTH:
        await tell(both, name, 10, 5)
    gone = Envelope(kind=Kind.ROW, reason=Reason.FETCH, received=1, epoch=1, began=11, gone=1_790_000_000)
    [release] = await both.feed(both.record("uat/Contact", ID, {"attributes": {"type": "Contact"}, "Id": ID}, gone))
    assert (release.op, release.key) == (Op.RELEASE, f"uat/{ID}")
    [write] = await tell(both, "acme", 12, 30, Title="still here")
    assert write.op is Op.WRITE


async def test_an_incomplete_record_is_asked_of_its_own_org(both: Pipeline) -> None:
    envelope = Envelope(kind=Kind.CHANGE, reason=Reason.LIVE, received=1, epoch=1, position=3)
    header = {"entityName": "Contact", "recordIds": [ID], "changeType": "UPDATE", "commitTimestamp": 1000, "changedFields": ["Title"]}
    event = {"data": {"schema": "x", "payload": {"ChangeEventHeader": header, "Title": "x"}, "event": {"replayId": 3}}, "channel": "c"}
    for name in BOTH:
        await both.feed(both.record(f"{name}/Contact", ID, event, envelope))
    assert both.topics == [TOPICS.fetch("acme"), TOPICS.fetch("uat")]


async def test_dead_letters_of_equal_ids_are_two_letters_and_each_goes_back_to_its_own_topic(both: Pipeline) -> None:
    for name in BOTH:
        await tell(both, name, 10, 5, Email=None, FirstName=None)
    assert {letter.redrive_to for letter in both.dead} == {TOPICS.inbound(f"{name}/Contact") for name in BOTH}
    assert len({letter.id for letter in both.dead}) == 2
    for name in BOTH:
        assert in_topic_source(f"{name}/Contact/{ID}", flow()) == (f"{name}/Contact", ID)


async def test_what_a_paused_route_parks_names_the_connection(both: Pipeline) -> None:
    both.paused.add("contacts")
    for name in BOTH:
        await tell(both, name, 10, 5)
    parked = [key for key in both.partition.store(RECORDS).values if key.startswith(prefix("contacts"))]
    assert len(parked) == 2
    assert not prefix("contacts").startswith(ASIDE.encode())


def test_verify_of_one_does_not_take_the_others_records_for_its_own() -> None:
    made = flow()
    ways = {way.source: way for name in BOTH for way in load_maps(made, TARGETS).ways(f"{name}/Contact")}

    class Target:
        pass

    heads = {RouteCheck(Settings(installation="t"), made, way, Target(), "run")._head for way in ways.values()}  # type: ignore[arg-type]
    assert heads == {"acme/Contact/", "uat/Contact/"}


def test_no_two_topics_and_no_two_positions_have_one_name() -> None:
    made = flow()
    topics = [topic.name for topic in Topics("t").all(made, Settings(installation="t"))]
    assert len(set(topics)) == len(topics)
    assert sources(made) == ("acme/Contact", "uat/Contact")
    assert len({position_key(name, "/data/ChangeEvents") for name in BOTH}) == 2


async def test_only_a_route_with_a_key_of_its_own_makes_one_record_of_two_and_its_first_source_speaks() -> None:
    made = flow(key="email")
    p = Pipeline(made, load_maps(made, TARGETS))
    [first] = await tell(p, "acme", 10, 5)
    [second] = await tell(p, "uat", 10, 5)
    assert first.key == second.key == "a@x.org"
    assert (first.order, second.order) == (0, 1)
