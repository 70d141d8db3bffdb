"""An error's class says what is done: retry, dead letter, pause, or the end."""

import asyncio
from typing import Any

import orjson
import pytest

from agents.guard import LONGEST_BELIEVED, Guard, per_record, split
from models.dead_letter import DeadLetter
from models.errors import CodeError, FatalError, HeadraceError, PausedError, PermanentError, SettingsError, TemporaryError
from streams import metrics
from streams.engine.stage import Abandoned, Output
from streams.letters import LARGEST_LETTER, dead_letter_output
from streams.topics import Topics
from tests.support.memory import MemoryPartition, MemoryRecord

TOPICS = Topics("unit")


def record(value: bytes | None = b"\xff original", headers: list[tuple[str, bytes]] | None = None) -> MemoryRecord:
    return MemoryRecord("unit.in.acme.Contact", 7, b"003", value, headers or [("kind", b"change"), ("kind", b"\xff")], partition=3)


def letter(out: Output) -> DeadLetter:
    return DeadLetter.model_validate(orjson.loads(out.value or b""))


class Remote:
    """Answers with what it is given, one after another."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls, self.probes = list(answers), 0, 0
        self.slept: list[float] = []
        self.guard = Guard("unit", "remote", sleep=self.sleep)
        self.partition = MemoryPartition()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def action(self) -> Any:
        self.calls += 1
        return self._next()

    async def probe(self) -> None:
        self.probes += 1
        self._next()

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def call(self) -> Any:
        return await self.guard.call(self.partition, self.action, self.probe, 1.0)


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("x"), PermanentError("no"), RecursionError(), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
def test_whatever_a_rule_raises_is_the_dead_letter_of_its_record_with_the_bytes_as_they_came(error: Exception) -> None:
    def rule() -> int:
        raise error

    dead: list[Output] = []
    assert per_record("process", record(), rule, topics=TOPICS, redrive_to="unit.in.acme.Contact", dead=dead, route="people") is None
    [out] = dead
    found = letter(out)
    assert out.topic == TOPICS.dead_letters
    assert out.key == found.id.encode() == b"unit.in.acme.Contact/3/7/people"
    assert (found.original_value, found.original_key) == (b"\xff original", b"003")
    assert found.original_headers == [("kind", b"change"), ("kind", b"\xff")]
    assert (found.stage, found.route, found.redrive_to, found.retryable) == ("process", "people", "unit.in.acme.Contact", False)
    assert found.reason


@pytest.mark.parametrize("error", [FatalError("state"), MemoryError()])
def test_a_fatal_error_is_nobodys_dead_letter(error: BaseException) -> None:
    def rule() -> int:
        raise error

    dead: list[Output] = []
    with pytest.raises(type(error)):
        per_record("process", record(), rule, topics=TOPICS, redrive_to="x", dead=dead)
    assert dead == []


def test_a_rule_that_passes_leaves_no_letter() -> None:
    dead: list[Output] = []
    assert per_record("process", record(), lambda: 0, topics=TOPICS, redrive_to="x", dead=dead) == 0
    assert dead == []


def test_equal_causes_share_a_fingerprint_and_others_do_not() -> None:
    def cause(text: str) -> str:
        return letter(dead_letter_output("write", record(), PermanentError(text), topics=TOPICS, redrive_to="x")).cause

    assert cause("row 17: 'abc' is no number") == cause("row 4: 'x' is no number")
    assert cause("row 17: 'abc' is no number") != cause("row 17: 'abc' is no date")


def test_no_letter_is_above_what_kafka_takes_and_one_too_large_says_where_the_original_is() -> None:
    found = dead_letter_output("process", record(b"x" * 999_000), PermanentError("no"), topics=TOPICS, redrive_to="x")
    assert len(found.value or b"") < LARGEST_LETTER
    assert letter(found).original_value is None
    assert "999,000 bytes" in letter(found).reason
    kept = dead_letter_output("process", record(b"x" * 600_000), PermanentError("no"), topics=TOPICS, redrive_to="x")
    assert letter(kept).original_value == b"x" * 600_000


async def test_a_target_out_of_reach_is_tried_for_ever_with_growing_waits() -> None:
    remote = Remote(*[TemporaryError("away")] * 30, "done")
    assert await remote.call() == "done"
    assert remote.calls == 31
    assert max(remote.slept) <= 1.0, "a wait is slept in slices, so that a lost partition is noticed"
    assert all("retry" in reason or "call" in reason for reason in remote.partition.waits)


def test_the_backoff_is_jittered_grows_and_has_a_cap() -> None:
    guard = Guard("unit", "remote", base=0.5, cap=60)
    assert all(0.25 <= guard.backoff(tries) <= 60 for tries in (1, 5, 50, 5000) for _ in range(50))
    assert max(guard.backoff(1) for _ in range(50)) <= 1.0
    assert len({guard.backoff(9) for _ in range(10)}) == 10


@pytest.mark.parametrize(("asked", "slept"), [(7.5, 7.5), (10**9, LONGEST_BELIEVED)])
async def test_a_retry_after_is_honoured_up_to_what_is_believed(asked: float, slept: float) -> None:
    remote = Remote(TemporaryError("busy", retry_after=asked), "done")
    await remote.call()
    assert sum(remote.slept) == pytest.approx(slept)


async def test_a_retry_after_of_nothing_still_waits() -> None:
    remote = Remote(TemporaryError("busy", retry_after=0), "done")
    await remote.call()
    assert sum(remote.slept) > 0


async def test_one_record_is_given_up_after_its_attempts() -> None:
    remote = Remote(*[TemporaryError("not now", whole=False)] * 9)
    with pytest.raises(TemporaryError):
        await remote.call()
    assert remote.calls == 5


async def test_a_pause_probes_until_it_is_over_and_shows_in_the_metric() -> None:
    remote = Remote(PausedError("key revoked"), PausedError("still"), TemporaryError("away"), None, "done")
    gauge, seen = metrics.PAUSED.labels("remote"), []

    async def sleep(seconds: float) -> None:
        seen.append(gauge._value.get())

    remote.guard = Guard("unit", "remote", sleep=sleep, probe_seconds=1)
    assert await remote.call() == "done"
    assert (remote.calls, remote.probes) == (2, 3)
    assert set(seen) == {1}
    assert gauge._value.get() == 0


async def test_two_partitions_pause_together_and_the_metric_falls_with_the_last() -> None:
    guard = Guard("unit", "remote2", probe_seconds=0.01, sleep=lambda _: asyncio.sleep(0))
    gauge = metrics.PAUSED.labels("remote2")
    first, second = Remote(PausedError("x"), None, "done"), Remote(PausedError("x"), *[PausedError("x")] * 5, None, "done")
    first.guard = second.guard = guard
    second.partition.number = 1
    works = [asyncio.create_task(first.call()), asyncio.create_task(second.call())]
    await works[0]
    assert gauge._value.get() == 1
    await works[1]
    assert gauge._value.get() == 0


@pytest.mark.parametrize("error", [PermanentError("no"), FatalError("no"), SettingsError("no"), Abandoned("no")])
async def test_what_asks_for_no_retry_gets_none(error: Exception) -> None:
    remote = Remote(error)
    with pytest.raises(type(error)):
        await remote.call()
    assert remote.calls == 1


async def test_what_no_target_may_raise_ends_the_process_without_a_secret_in_its_text() -> None:
    remote = Remote(KeyError("Api-Key: abcdef0123456789abcdef0123456789"))
    with pytest.raises(FatalError) as caught:
        await remote.call()
    assert "abcdef0123456789" not in str(caught.value)


async def test_a_lost_partition_calls_nobody_and_ends_its_waits() -> None:
    remote = Remote("done")
    remote.partition.owned = False
    with pytest.raises(Abandoned):
        await remote.call()
    assert remote.calls == 0

    waiting = Remote(TemporaryError("away", retry_after=600))

    async def lose(seconds: float) -> None:
        waiting.slept.append(seconds)
        waiting.partition.owned = False

    waiting.guard = Guard("unit", "remote", sleep=lose)
    with pytest.raises(Abandoned):
        await waiting.call()
    assert waiting.slept == [1.0]


@pytest.mark.parametrize("bad", [set(), {0}, {9}, {3, 4}, set(range(10))])
async def test_a_refused_batch_is_halved_until_only_the_guilty_are_left(bad: set[int]) -> None:
    written: set[int] = set()
    guilty: dict[int, HeadraceError] = {}

    async def write(items: Any) -> None:
        if found := bad & set(items):
            raise PermanentError(f"{len(found)} of {len(items)}")
        written.update(items)

    await split(range(10), write, guilty.__setitem__)
    assert written == set(range(10)) - bad
    assert set(guilty) == bad
    assert all(str(error) == "1 of 1" for error in guilty.values())


async def test_a_letter_fits_into_kafka_whatever_its_record_was() -> None:
    for key, value in ((b"k" * 900_000, b"v"), (b"k" * 600_000, b"v" * 390_000), (b"k", b"v" * 990_000)):
        original = MemoryRecord("unit.in.acme.Contact", 7, key, value, partition=3)
        out = dead_letter_output("process", original, PermanentError("too odd"), topics=TOPICS, redrive_to="unit.in.acme.Contact")
        assert len(out.key or b"") + len(out.value or b"") < LARGEST_LETTER
        assert letter(out).offset == 7
        assert "too large to be kept here" in letter(out).reason


async def test_once_a_call_is_answered_the_partition_waits_for_nobody() -> None:
    remote = Remote("ok", ValueError("a fault"))
    assert await remote.call() == "ok"
    with pytest.raises(CodeError):
        await remote.call()
    assert [reason for reason in remote.partition.waits if reason.endswith("over")] == ["call to remote over"] * 2


async def test_what_people_hold_is_not_called_not_even_for_what_is_in_hand_and_the_wait_is_declared() -> None:
    remote, why = Remote(TemporaryError("busy"), "done"), ["warehouse is paused", "warehouse is paused", ""]
    remote.guard = Guard("unit", "remote", sleep=remote.sleep, held=lambda: why.pop(0) if why else "")
    assert await remote.call() == "done"
    assert remote.calls == 2
    assert remote.partition.waits[:2] == ["warehouse is paused", "warehouse is paused"]


async def test_a_partition_that_is_taken_away_while_people_hold_its_target_is_given_up() -> None:
    remote = Remote("never")
    remote.guard = Guard("unit", "remote", sleep=remote.sleep, held=lambda: "paused")

    async def lose(seconds: float) -> None:
        remote.partition.owned = False

    remote.guard._sleep = lose
    with pytest.raises(Abandoned):
        await remote.call()
    assert remote.calls == 0
