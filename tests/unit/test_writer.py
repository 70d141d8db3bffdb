"""What the writer itself decides, with a target in memory; what targets must do is in tests/conformance."""

import asyncio

import pytest
from msgspec.structs import replace

from agents.anew import in_topic_source
from agents.guard import Guard
from agents.rules.writes import encode_write
from agents.targets.base import Columns, TargetLike
from agents.writer import STAGE, writer_stage
from models.errors import TemporaryError
from models.flow import Flow, Salesforce, Webhook
from models.write import Body, Outcome, WriteResult
from streams import metrics
from streams.engine.stage import Abandoned, Stage
from tests.conformance.suite import ANN, BOB, CAT, A, B, Bench, Fields
from tests.support.memory import outputs
from tests.support.toy_target import Target, ToyOptions


class ToyRig:
    """The toy behind a bench."""

    object = "things"

    def __init__(self) -> None:
        self.columns: Columns = {"name": "text"}
        self.toy = Target("toy", ToyOptions(), "unit")

    def target(self, name: str, installation: str) -> TargetLike:
        return self.toy

    def body(self, key: str, fields: Fields) -> Body:
        return dict(fields)


@pytest.fixture
def rig() -> ToyRig:
    return ToyRig()


@pytest.fixture
def bench(rig: ToyRig) -> Bench:
    return Bench(rig)  # type: ignore[arg-type]


def keys(rig: ToyRig) -> list[list[str]]:
    return [[effect.key for effect in batch] for batch in rig.toy.batches]


def count(bench: Bench, outcome: str) -> float:
    return float(metrics.WRITTEN.labels(bench.name, "people", outcome)._value.get())


async def test_batches_keep_to_records_bytes_and_those_that_go_alone(rig: ToyRig, bench: Bench) -> None:
    writes = [bench.write(key, {"name": "x"}, f"acme/Contact/{key}") for key in ("a", "b", "c", "d", "e!", "f")]
    await bench.give(*writes, bench.write("g", {"name": "x" * 99_900}, "acme/Contact/g"))
    assert keys(rig) == [["a", "b", "c"], ["e!"], ["d", "f"], ["g"]]


async def test_keys_equal_to_the_target_are_one_effect_and_the_last_counts(rig: ToyRig, bench: Bench) -> None:
    await bench.give(bench.write("Ann", {"name": "one"}), bench.write("ANN", {"name": "two"}))
    assert keys(rig) == [["ann"]]
    assert rig.toy.held == {"ann": {"name": "two"}}


async def test_a_target_is_started_once_and_not_for_an_empty_decision(rig: ToyRig, bench: Bench) -> None:
    await bench.give(bench.write(ANN, None, on_delete="ignore"))
    assert rig.toy.starts == 0
    await bench.give(bench.write(ANN, {"name": "Ann"}))
    await bench.give(bench.write(ANN, {"name": "Anna"}))
    assert rig.toy.starts == 1


@pytest.mark.parametrize(
    "value", [None, b"", b"\xff\xfe", b"[]", b"{}", b'{"op":"write"}', b"[" * 100_000, b'{"op":"drop table","key":"x"}', b"null"]
)
async def test_a_poison_write_is_a_dead_letter_with_its_bytes_and_stops_nobody(rig: ToyRig, bench: Bench, value: bytes | None) -> None:
    good = bench.write(BOB, {"name": "Bob"})
    topic = bench.topics.writes(bench.name)
    await bench.handle(bench.log.chunk(topic, (b"things|x", value), (good.kafka_key, encode_write(good))))
    [letter] = bench.dead
    assert (letter.original_value, letter.stage, letter.redrive_to) == (value, "write", topic)
    assert rig.toy.held == {BOB: {"name": "Bob"}}


async def test_a_write_under_the_key_of_another_is_refused(rig: ToyRig, bench: Bench) -> None:
    write = bench.write(ANN, {"name": "Ann"})
    await bench.handle(bench.log.chunk(bench.topics.writes(bench.name), (b"things|other", encode_write(write))))
    assert len(bench.dead) == 1
    assert rig.toy.held == {}


async def test_a_write_of_a_route_that_is_gone_is_dropped(rig: ToyRig, bench: Bench) -> None:
    await bench.give(replace(bench.write(ANN, {"name": "Ann"}), route="old"))
    assert rig.toy.batches == []
    assert bench.dead == []


async def test_a_dead_write_says_what_to_redrive_and_is_tried_again_by_an_equal_write(rig: ToyRig, bench: Bench) -> None:
    rig.toy.answers[ANN] = WriteResult(Outcome.DEAD, "no such colour", "colour")
    await bench.give(bench.write(ANN, {"name": "Ann"}))
    [letter] = bench.dead
    assert (letter.field, letter.source, letter.revision, letter.route) == ("colour", A, 1, "people")
    assert letter.redrive_to == bench.topics.inbound("acme/Contact")
    rig.toy.answers.clear()
    await bench.give(bench.write(ANN, {"name": "Ann"}))
    assert len(rig.toy.batches) == 2
    assert (count(bench, "dead"), count(bench, "written")) == (1, 1)


async def test_a_record_whose_attempts_are_used_up_is_retryable(rig: ToyRig, bench: Bench) -> None:
    rig.toy.errors = [TemporaryError("locked", whole=False)] * 5
    await bench.give(bench.write(ANN, {"name": "Ann"}))
    [letter] = bench.dead
    assert (letter.retryable, letter.attempts) == (True, 5)


async def test_the_dead_letter_names_the_source_that_speaks_not_the_one_that_triggered(rig: ToyRig, bench: Bench) -> None:
    await bench.give(bench.write(ANN, {"name": "Ann"}, A))
    rig.toy.answers[ANN] = WriteResult(Outcome.DEAD, "no")
    await bench.give(bench.write(ANN, {"name": "lead"}, B, always=True))
    assert [letter.source for letter in bench.dead] == [A]


async def test_the_image_is_what_was_last_written(rig: ToyRig, bench: Bench) -> None:
    for name in ("one", "two", "three"):
        await bench.give(bench.write(ANN, {"name": name}))
    assert [batch[0].image for batch in rig.toy.batches] == [None, {"name": "one"}, {"name": "two"}]


async def test_turns_only_grow_over_both_lanes(rig: ToyRig, bench: Bench) -> None:
    for number in range(8):
        await bench.give(bench.write(ANN, {"name": f"n{number}"}), bulk=number % 3 == 0)
    turns = [batch[0].turn for batch in rig.toy.batches]
    assert turns == sorted(set(turns))


async def test_a_forwarded_write_stays_in_its_lane_and_comes_after_a_dead_rename(rig: ToyRig, bench: Bench) -> None:
    rig.toy.renames = True
    await bench.give(bench.write(ANN, {"name": "Ann"}))
    rig.toy.answers[ANN] = WriteResult(Outcome.DEAD, "no")
    result = await bench.give(*bench.changed_key(ANN, BOB, {"name": "Ann"}), bulk=True)
    assert [key for key, _ in outputs(result, bench.topics.writes(bench.name, bulk=True))] == [f"things|{BOB}".encode()]
    assert outputs(result, bench.topics.writes(bench.name)) == []
    assert rig.toy.held[BOB] == {"name": "Ann"}


async def test_outcomes_add_up_to_the_writes(rig: ToyRig, bench: Bench) -> None:
    old = bench.write(ANN, {"name": "old"})
    await bench.give(bench.write(ANN, {"name": "Ann"}), bench.write(ANN, {"name": "Anna"}), bench.write(BOB, {"name": "Bob"}, B))
    await bench.give(bench.write(ANN, {"name": "Anna"}), old, bench.write(CAT, None, on_delete="ignore"))
    assert sum(count(bench, outcome.value) for outcome in Outcome) == 6


def test_a_source_record_leads_back_to_its_in_topic() -> None:
    flow = Flow(
        connections={
            "acme": Salesforce.model_validate({"type": "salesforce", "auth": {"flow": "jwt", "client_id": "x"}}),
            "forms": Webhook.model_validate({"type": "webhook", "secrets": ["made-up"]}),
        },
        targets={},
        routes={},
    )
    assert in_topic_source("acme/Contact/003", flow) == ("acme/Contact", "003")
    assert in_topic_source("forms/a/b", flow) == ("forms", "a/b")
    assert in_topic_source("forms//b", flow) == ("forms", "/b")


def test_values_observed_together_are_counted_as_one_by_one() -> None:
    values = [0.0, 0.005, 0.006, 0.3, 7200.0, 7201.0, 0.3]
    together, single = (metrics.LATENCY.labels(name, "unit", "commit") for name in ("together", "single"))
    metrics.observe_all(together, values)
    for value in values:
        single.observe(value)
    counted = [[sample[:3] for sample in series._child_samples() if sample[0] != "_created"] for series in (together, single)]
    assert counted[0] == counted[1]
    assert counted[0][-2:] == [("_count", {}, 7.0), ("_sum", {}, sum(values))]


class Others:
    """What the other workers have, as this one hears it."""

    def __init__(self, *routes: str) -> None:
        self.now = frozenset(routes)
        self.away = 0

    async def routes(self, _most_seconds: float) -> frozenset[str]:
        if self.away:
            self.away -= 1
            raise TemporaryError("Kafka is away")
        return self.now


def beside(bench: Bench, rig: ToyRig, others: Others) -> Stage:
    guard = Guard(STAGE, bench.name, sleep=bench._sleep)
    return writer_stage(bench.name, bench.target, bench.flow, bench.settings, bench.shapes, guard=guard, elsewhere=others.routes)


async def test_a_write_whose_route_only_another_worker_has_waits_for_the_worker_that_knows_it(rig: ToyRig, bench: Bench) -> None:
    bench.stage = beside(bench, rig, Others("people", "new"))
    strange = replace(bench.write(BOB, {"name": "Bob"}), route="new")
    giving = asyncio.create_task(bench.give(bench.write(ANN, {"name": "Ann"}), strange))
    await bench.heard("lacks new")
    assert not giving.done()
    bench.partition.owned = False  # the process stops: who has the partition next does the whole chunk
    with pytest.raises(Abandoned):
        await giving
    assert rig.toy.held == {}
    assert bench.partition.offsets == {}


async def test_a_write_whose_route_no_worker_has_any_more_is_dropped_and_counted(rig: ToyRig, bench: Bench) -> None:
    others = Others("people", "old")
    others.away = 2
    bench.stage = beside(bench, rig, others)
    before = metrics.WRITTEN.labels(bench.name, "", "stale")._value.get()
    giving = asyncio.create_task(bench.give(replace(bench.write(BOB, {"name": "Bob"}), route="old"), bench.write(ANN, {"name": "Ann"})))
    await bench.heard("are not known now")
    await bench.heard("lacks old")
    others.now = frozenset({"people"})
    await giving
    assert rig.toy.held == {ANN: {"name": "Ann"}}
    assert metrics.WRITTEN.labels(bench.name, "", "stale")._value.get() == before + 1


async def test_what_a_route_of_another_worker_wrote_still_speaks_and_what_a_removed_one_wrote_does_not(rig: ToyRig, bench: Bench) -> None:
    knowing = bench.flow.routes | {"new": bench.flow.routes["people"]}
    narrow, bench.flow = bench.flow, bench.flow.model_copy(update={"routes": knowing})
    bench.stage = bench.fresh_stage()
    await bench.give(replace(bench.write(ANN, {"name": "first"}, A), route="new", order=0))
    bench.flow = narrow
    bench.stage = beside(bench, rig, Others("new"))
    await bench.give(replace(bench.write(ANN, {"name": "second"}, B), order=1))
    assert rig.toy.held == {ANN: {"name": "first"}}
    bench.stage = beside(bench, rig, Others())
    await bench.give(replace(bench.write(ANN, {"name": "second"}, B), order=1))
    assert rig.toy.held == {ANN: {"name": "second"}}
