"""Replay with a real Kafka: everything of the range once, nothing of its own, whatever kills it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from msgspec.structs import replace

from models.envelope import Envelope, Kind, Reason
from models.errors import FatalError, SettingsError, TemporaryError
from models.flow import Flow
from models.settings import Settings
from streams import replay
from streams.bounds import Moment, iso
from streams.consume import read_all
from streams.engine.stage import Output, Record
from streams.held import offsets
from streams.kafka import client_options
from streams.publish import send
from streams.replay import Replay, run_replay
from streams.topics import Topics, ensure
from tests.support.broker import settings_for, topics

pytestmark = pytest.mark.kafka
FLOW = Flow.model_validate(
    {
        "connections": {
            "acme": {"type": "salesforce", "auth": {"flow": "client_credentials", "client_id": "x", "client_secret": "y"}},
            "shop": {"type": "webhook", "secrets": ["x"]},
        },
        "targets": {"warehouse": {"type": "postgres"}},
        "routes": {
            "contacts": {"from": ["acme/Contact"], "to": "warehouse", "map": "m"},
            "both": {"from": ["acme/Contact", "shop"], "to": "warehouse", "map": "m"},
        },
    }
)
CHANGE = Envelope(kind=Kind.CHANGE, reason=Reason.LIVE, received=1, channel="/data/ChangeEvents", epoch=2, position=77, index=1)
ROW = Envelope(kind=Kind.ROW, reason=Reason.SNAPSHOT, received=2, channel="/data/ChangeEvents", epoch=2, began=70, run="snapshot-1")


class Desk:
    """An installation with topics."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.topics = settings, Topics(settings.installation)

    async def put(self, source: str, envelope: Envelope, values: list[bytes], *, bulk: bool = False) -> None:
        """Records of an in-topic; the key is the value's."""
        topic = self.topics.inbound(source, bulk=bulk)
        await send(self.settings, [Output(topic, value, value, envelope.headers()) for value in values])

    async def replay(self, from_: str = "-1h", to: str = "now", *, route: str = "contacts", **more: Any) -> Replay:
        """Run to its end."""
        more.setdefault("stop", asyncio.Event())
        return await asyncio.wait_for(run_replay(self.settings, FLOW, route, from_, to, **more), 60)

    async def replayed(self, source: str = "acme/Contact") -> list[tuple[Record, Envelope]]:
        """What came out."""
        records = await read_all(self.settings, self.topics.inbound(source, bulk=True))
        found = [(r, Envelope.from_headers(r.headers)) for r in records]
        return [(r, e) for r, e in found if e.reason == Reason.REPLAY]

    async def admin(self) -> AIOKafkaAdminClient:
        """A started admin client."""
        admin = AIOKafkaAdminClient(**client_options(self.settings))
        await admin.start()
        return admin


@pytest.fixture
async def desk(kafka: str, tmp_path: Path) -> AsyncIterator[Desk]:
    settings = settings_for(kafka, tmp_path, partitions=2)
    async with topics(settings, []):
        await ensure(settings, Topics(settings.installation).all(FLOW, settings))
        desk = Desk(settings)
        wanted = {topic.name for topic in desk.topics.all(FLOW, settings)}
        admin = await desk.admin()
        there: set[str] = set()
        while wanted - there:  # each broker learns of a new topic in its own time
            there = set(await admin.list_topics())
        await admin.close()
        yield desk


def values(count: int) -> list[bytes]:
    """Made-up record values."""
    return [b"v%04d" % n for n in range(count)]


async def test_both_lanes_come_again_with_their_own_envelope_under_run_and_route(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, [b"change"])
    await desk.put("acme/Contact", ROW, [b"row"], bulk=True)
    await desk.put("shop", CHANGE, [b"of another source"])
    state = await desk.replay()
    assert (state.done, state.sent, state.skipped, state.left_out) == (True, 2, 0, 0)
    again = {r.value: (r.key, e) for r, e in await desk.replayed()}
    assert again[b"change"] == (b"change", replace(CHANGE, reason=Reason.REPLAY, run=state.run, route="contacts"))
    assert again[b"row"] == (b"row", replace(ROW, reason=Reason.REPLAY, run=state.run, route="contacts"))
    assert not await desk.replayed("shop")


async def test_every_source_of_the_route_comes_again(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, values(3))
    await desk.put("shop", Envelope(kind=Kind.HOOK, reason=Reason.LIVE, received=1, delivery="d"), values(4))
    assert (await desk.replay(route="both")).sent == 7
    assert (len(await desk.replayed()), len(await desk.replayed("shop"))) == (3, 4)


async def test_a_hook_comes_again_with_the_version_of_its_first_coming(desk: Desk) -> None:
    await desk.put("shop", Envelope(kind=Kind.HOOK, reason=Reason.LIVE, received=1, delivery="d"), values(20))
    first = {r.value: r.offset for r in await read_all(desk.settings, desk.topics.inbound("shop"))}
    await desk.replay(route="both")
    assert {r.value: e.position for r, e in await desk.replayed("shop")} == first


async def test_what_came_by_replay_or_redrive_is_left_out_and_a_second_replay_does_not_grow(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, values(5))
    await desk.put("acme/Contact", replace(CHANGE, reason=Reason.REDRIVE, run="r"), [b"redriven"])
    first, second = await desk.replay(), await desk.replay()
    assert (first.sent, first.skipped, second.sent, second.skipped) == (5, 1, 5, 6)
    assert first.run != second.run


async def test_records_that_are_not_ours_are_counted_and_stop_nothing(desk: Desk) -> None:
    topic = desk.topics.inbound("acme/Contact")
    await send(desk.settings, [Output(topic, b"a", b"no headers"), Output(topic, b"b", None, [("kind", b"\xff")])])
    await desk.put("acme/Contact", CHANGE, [b"good"])
    state = await desk.replay()
    assert (state.sent, state.left_out, state.done) == (1, 2, True)


async def test_only_the_range_comes_again_by_time(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, [b"before"])
    await asyncio.sleep(0.01)
    begin = iso(int(time.time() * 1000))
    await desk.put("acme/Contact", CHANGE, [b"in it"])
    await asyncio.sleep(0.01)
    end = iso(int(time.time() * 1000))
    await desk.put("acme/Contact", CHANGE, [b"after"])
    await desk.replay(begin, end)
    assert [r.value for r, _ in await desk.replayed()] == [b"in it"]


async def test_what_comes_while_the_range_is_looked_up_is_not_in_it(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, [b"before"])
    await asyncio.sleep(0.01)
    now = int(time.time() * 1000)
    await desk.put("acme/Contact", CHANGE, [b"after"])
    wanted = [TopicPartition(desk.topics.inbound("acme/Contact"), number) for number in range(2)]
    fixed = await offsets(desk.settings, wanted, Moment(0, fixed=True), Moment(now, fixed=True), now)
    open_ = await offsets(desk.settings, wanted, Moment(0, fixed=True), Moment(now, fixed=False), now)
    assert sum(end - start for start, end in fixed.values()) == 1
    assert sum(end - start for start, end in open_.values()) == 2


async def test_only_the_range_comes_again_by_offset(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, values(40))
    topic = desk.topics.inbound("acme/Contact")
    wanted = [r.value for r in await read_all(desk.settings, topic) if r.partition == 1 and 2 <= r.offset < 6]
    assert (await desk.replay("1:2", "1:6")).sent == len(wanted) == 4
    assert sorted(r.value or b"" for r, _ in await desk.replayed()) == sorted(value or b"" for value in wanted)
    assert (await desk.replay("acme/Contact:0:0", "0:999999")).done


async def test_a_killed_replay_goes_on_and_every_record_comes_exactly_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_RECORDS", 7)
    await desk.put("acme/Contact", CHANGE, values(100))
    begin, end = "2020-01-01", iso(int(time.time() * 1000) + 1)
    await asyncio.sleep(0.01)
    runs = []
    for kill_after in (1, 2, 3):
        seen: list[Replay] = []
        reached = asyncio.Event()

        def note(state: Replay, seen: list[Replay] = seen, limit: int = kill_after, reached: asyncio.Event = reached) -> None:
            seen.append(state)
            if len(seen) > limit:
                reached.set()

        task = asyncio.create_task(desk.replay(begin, end, progress=note))
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        runs.append(seen[-1].run)
    state = await desk.replay(begin, end)
    assert {*runs, state.run} == {state.run}, "the same question began another run"
    assert state.done
    assert state.sent == 100
    assert Counter(r.value for r, _ in await desk.replayed()) == Counter(values(100))
    assert (await desk.replay(begin, end, run_id=state.run)).sent == 100, "a finished run was not left alone"
    assert len(await desk.replayed()) == 100


async def test_a_second_process_on_the_same_run_ends_the_first_and_nothing_comes_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_RECORDS", 5)
    await desk.put("acme/Contact", CHANGE, values(60))
    started = asyncio.Event()
    first = asyncio.create_task(desk.replay(run_id="mine", progress=lambda _: started.set()))
    await asyncio.wait_for(started.wait(), 30)
    second = await desk.replay(run_id="mine")
    assert second.done
    [ended] = await asyncio.gather(first, return_exceptions=True)
    assert isinstance(ended, FatalError | Replay)
    assert Counter(r.value for r, _ in await desk.replayed()) == Counter(values(60))


async def test_it_stops_when_told_and_goes_on_by_its_run_id(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_RECORDS", 5)
    await desk.put("acme/Contact", CHANGE, values(40))
    stop = asyncio.Event()
    state = await desk.replay(stop=stop, progress=lambda s: stop.set() if s.sent else None)
    assert not state.done
    assert 0 < state.sent < 40
    state = await desk.replay(run_id=state.run)
    assert (state.done, state.sent, len(await desk.replayed())) == (True, 40, 40)


async def test_its_end_is_fixed_before_it_begins(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_RECORDS", 5)
    await desk.put("acme/Contact", CHANGE, values(20))
    late: list[asyncio.Task[None]] = []

    def more(_: Replay) -> None:
        late.append(asyncio.create_task(desk.put("acme/Contact", CHANGE, [b"late"])))

    state = await desk.replay(progress=more)
    await asyncio.gather(*late)
    assert (state.sent, [r for r, _ in await desk.replayed() if r.value == b"late"]) == (20, [])


async def test_an_empty_range_is_done_at_once(desk: Desk) -> None:
    state = await desk.replay("-1s")
    assert (state.done, state.total, state.sent) == (True, 0, 0)


async def test_a_range_that_begins_before_the_log_is_refused_with_what_is_there(desk: Desk) -> None:
    await desk.put("acme/Contact", CHANGE, values(40))
    topic = desk.topics.inbound("acme/Contact")
    admin = await desk.admin()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=5)})
        with pytest.raises(SettingsError, match=r"0:2 is not in Kafka: .* holds offsets 5 to"):
            await desk.replay("0:2", "0:9")
        with pytest.raises(SettingsError, match="is not in Kafka"):
            await desk.replay("0:100000")
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"retention.ms": "1000"})])
        with pytest.raises(SettingsError, match=r"is before what Kafka holds: .* partition 0 is whole only since .* \(offset 5\)"):
            await desk.replay("-1h")
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=-1)})
        with pytest.raises(SettingsError, match="is before what Kafka holds"):
            await desk.replay("-1h")
    finally:
        await admin.close()
    assert not await desk.replayed()


@pytest.mark.parametrize("gone", [-1, 5], ids=["all of it", "some of it"])
async def test_a_quiet_partition_whose_old_records_are_gone_does_not_forbid_what_is_surely_there(desk: Desk, gone: int) -> None:
    await desk.put("acme/Contact", CHANGE, values(40))
    admin = await desk.admin()
    await admin.delete_records({TopicPartition(desk.topics.inbound("acme/Contact"), 0): RecordsToDelete(before_offset=gone)})
    await admin.close()
    assert (await desk.replay("-6d")).done


@pytest.mark.parametrize(
    ("route", "from_", "to", "said"),
    [
        ("nobody", "-1h", "now", "there is no route 'nobody': the flow file has contacts, both"),
        ("contacts", "soon", "now", "neither a time nor an offset"),
        ("contacts", "-1h", "-2h", "exchange them"),
        ("contacts", "2999-01-01", "now", "lies in the future"),
        ("contacts", "0:5", "0:5", "exchange them"),
        ("contacts", "0:5", "1:9", "different partitions"),
        ("contacts", "2:0", "now", "there is no partition 2: this installation has 0 to 1"),
        ("contacts", "shop:0:0", "now", "the route does not read shop: it reads acme/Contact"),
        ("both", "0:0", "now", "the route reads acme/Contact, shop: write acme/Contact:0:0"),
    ],
)
async def test_a_nonsense_question_is_answered_in_words_and_sends_nothing(desk: Desk, route: str, from_: str, to: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("?", r"\?")):
        await desk.replay(from_, to, route=route)


@pytest.mark.parametrize("run", ["", "a b", "a.b", "x" * 101, "ü"])
async def test_a_run_id_that_cannot_be_one_is_refused(desk: Desk, run: str) -> None:
    with pytest.raises(SettingsError, match="is no run id"):
        await desk.replay(run_id=run)


async def test_a_run_of_another_route_is_not_continued(desk: Desk) -> None:
    await desk.replay(run_id="mine")
    with pytest.raises(SettingsError, match="run mine is one of route contacts, not of both"):
        await desk.replay(run_id="mine", route="both")


async def test_without_topics_or_without_kafka_it_says_so(kafka: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="was this installation ever started"):
        await Desk(settings_for(kafka, tmp_path)).replay()
    with pytest.raises(TemporaryError, match=r"Kafka at 127\.0\.0\.1:1 is not to be reached"):
        await Desk(settings_for("127.0.0.1:1", tmp_path)).replay()
