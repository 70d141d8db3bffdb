"""The limits guard: what it reads, who steps back first, and that what is live always finds calls left."""

import random
from collections import Counter, deque
from typing import Any

import pytest

from models.errors import PausedError, TemporaryError
from streams.salesforce.limits import (
    CEILINGS,
    DAILY_CALLS,
    DAILY_EVENTS,
    DAY,
    STALE,
    Budget,
    Limit,
    LimitReachedError,
    Step,
    parse_header,
    parse_limits,
    refused_for_a_limit,
)
from streams.salesforce.rest import classify


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("api-usage=18/5000", (18, 5000)),
        ("api-usage=25/5000; per-app-api-usage=17/250(appName=sample-app)", (25, 5000)),
        ("per-app-api-usage=17/250(appName=sample-app); api-usage=25/5000", (25, 5000)),
        ("per-app-api-usage=17/250(appName=api-usage)", None),
        ("api-usage=5001/5000", (5001, 5000)),
        ("api-usage=1/0", None),
        ("api-usage=-1/5", None),
        ("api-usage=1", None),
        ("api-usage=" + "9" * 5000 + "/5", None),
        ("api-usage=1/" + "9" * 5000, None),
        ("", None),
        (None, None),
        ("\x00", None),
    ],
)
def test_the_header_is_read_as_salesforce_writes_it_and_nothing_else_is(text: str | None, found: tuple[int, int] | None) -> None:
    assert parse_header(text) == found


def test_limits_are_read_by_name_and_what_is_odd_is_left_out() -> None:
    body = {
        DAILY_CALLS: {"Max": 15000, "Remaining": 14998, "Ant Migration Tool": {"Max": 0, "Remaining": 0}},
        DAILY_EVENTS: {"Max": 10000, "Remaining": -5},
        "DailyBulkV2QueryJobs": {"Max": "x", "Remaining": 1},
        "StreamingApiConcurrentClients": {"Max": True, "Remaining": True},
        "DailyBulkApiBatches": [],
        "Other": {"Max": 1, "Remaining": 1},
    }
    assert parse_limits(body) == {DAILY_CALLS: Limit(15000, 14998), DAILY_EVENTS: Limit(10000, -5)}


@pytest.mark.parametrize("body", [None, [], "x", 5, {}, {DAILY_CALLS: None}, {DAILY_CALLS: {"Max": -1, "Remaining": 0}}])
def test_a_body_that_says_nothing_changes_nothing(body: Any) -> None:
    budget = Budget("acme")
    budget.told(body)
    assert (budget.most, budget.left, budget.step) == (0, None, Step.NORMAL)
    budget.admit("verify")


def test_a_403_for_a_limit_is_told_from_one_for_rights() -> None:
    daily = classify(403, [{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": "TotalRequests Limit exceeded."}])
    many = classify(403, [{"errorCode": "REQUEST_LIMIT_EXCEEDED", "message": "ConcurrentRequests (Operation) Limit exceeded."}])
    rights = classify(403, [{"errorCode": "INSUFFICIENT_ACCESS", "message": "the limit of your rights is exceeded"}])
    assert isinstance(daily, LimitReachedError) and isinstance(many, LimitReachedError)
    assert (daily.retry_after or 0) > (many.retry_after or 0) > 0
    assert isinstance(rights, PausedError)
    assert refused_for_a_limit("API_DISABLED_FOR_ORG", "REQUEST_LIMIT_EXCEEDED") is None


class World:
    """An org that counts calls over its rolling day, others who use it, and one budget of ours."""

    def __init__(self, most: int, share: float = 0.8) -> None:
        self.now, self.most = 0.0, most
        self.budget = Budget("acme", share, clock=lambda: self.now)
        self.calls: deque[tuple[float, bool, str]] = deque()
        self.made: Counter[str] = Counter()
        self.refused = 0

    def used(self) -> int:
        while self.calls and self.calls[0][0] <= self.now - DAY:
            self.calls.popleft()
        return len(self.calls)

    def ours(self) -> int:
        self.used()
        return sum(own for _, own, _ in self.calls)

    def others(self, number: int) -> None:
        self.calls.extend((self.now, False, "") for _ in range(min(number, self.most - self.used())))

    def call(self, purpose: str) -> bool:
        try:
            self.budget.admit(purpose)
        except LimitReachedError as held:
            assert held.retry_after and held.retry_after >= 1
            return False
        if self.used() >= self.most:
            self.refused += 1
            self.budget.refused(LimitReachedError("x", retry_after=900.0))
            self.budget.heard(None, ok=False)
            return False
        self.calls.append((self.now, True, purpose))
        self.made[purpose] += 1
        self.budget.heard(f"api-usage={self.used()}/{self.most}", ok=True)
        return True


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_asked_for_in_three_days_our_share_is_never_passed_and_live_calls_are_made(seed: int) -> None:
    rng = random.Random(seed)
    world, share = World(2000, 0.5), 0.5
    wanted, live = Counter[str](), 0
    while world.now < 3 * DAY:
        world.now += rng.choice((30, 60, 300, 600))
        world.others(rng.randrange(3))
        for purpose in ("verify", "snapshot", "poll"):  # each would use all there is
            for _ in range(rng.randrange(30)):
                wanted[purpose] += 1
                world.call(purpose)
        if rng.random() < 0.05:  # what is live is little
            live += 1
            assert world.call("fetch"), "a live call waited for a snapshot"
        assert world.ours() <= share * world.most
        assert world.used() <= world.most
    assert world.refused == 0
    assert all(world.made[purpose] for purpose in ("verify", "snapshot", "poll"))
    assert live == world.made["fetch"] > 10


def test_who_matters_less_steps_back_first_and_a_person_is_answered_to_the_end() -> None:
    world, order = World(1000, 1.0), []
    purposes = [*CEILINGS, "describe"]
    while purposes:
        for purpose in list(purposes):
            if not world.call(purpose):
                order.append(purpose)
                purposes.remove(purpose)
    ceilings = [CEILINGS.get(purpose, 1.0) for purpose in order]
    assert ceilings == sorted(ceilings)
    assert order[0] == "verify" and order[-1] == "describe"
    assert (world.used(), world.refused) == (1000, 0)


def test_steps_come_one_after_another_before_the_limit_and_go_again_with_the_day() -> None:
    world, steps = World(1000, 1.0), []
    while world.call("describe"):
        world.now += 1
        if world.budget.step not in steps:
            steps.append(world.budget.step)
    assert steps == [Step.NORMAL, Step.NO_OPTIONAL, Step.BATCH, Step.POLL, Step.STOP]
    world.now += DAY + STALE
    assert world.call("describe")
    assert world.budget.step == Step.NORMAL


def test_a_use_that_grows_stops_what_can_wait_before_the_limit_is_near_and_nothing_that_is_live() -> None:
    world = World(10_000)
    for _ in range(45):  # others spend 100 a minute: the limit in an hour
        world.now += 60
        world.others(100)
        world.call("fetch")
    assert world.used() < 0.5 * world.most
    assert (world.budget.forecast() or 0) > world.most
    assert not world.call("snapshot")
    assert world.call("fetch")
    for _ in range(70):
        world.now += 60
        world.call("fetch")
    assert world.call("snapshot"), "the growth is over"


def test_a_steady_use_is_no_growth() -> None:
    world = World(10_000)
    for _ in range(2000):
        world.now += 60
        world.others(4)
        world.call("fetch")
    assert world.call("verify") == (world.used() < 5000)
    assert abs((world.budget.forecast() or 0) - world.used()) < 200


def test_calls_under_way_count_before_they_are_answered() -> None:
    budget = Budget("acme", 1.0, clock=lambda: 0.0)
    budget.admit("describe")
    budget.heard("api-usage=90/100", ok=True)
    admitted = 0
    with pytest.raises(LimitReachedError):
        for _ in range(100):
            budget.admit("fetch")
            admitted += 1
    assert admitted == 5


def test_figures_of_parallel_calls_that_go_back_do_not_free_calls() -> None:
    budget = Budget("acme", 1.0, clock=lambda: 0.0)
    for used in (211_068, 211_063, 211_060):
        budget.admit("fetch")
        budget.heard(f"api-usage={used}/300000", ok=True)
    assert budget.left == 300_000 - 211_068


def test_what_the_list_of_limits_says_late_does_not_free_calls() -> None:
    now = [0.0]
    budget = Budget("acme", 1.0, clock=lambda: now[0])
    late = {DAILY_CALLS: {"Max": 100, "Remaining": 90}}
    budget.told(late)
    assert budget.left == 90
    now[0] = 500
    budget.admit("limits")
    budget.heard("api-usage=97/100", ok=True)
    budget.told(late)
    now[0] = 500 + 200  # the figures of the last two minutes are none
    assert budget.left == 3
    with pytest.raises(LimitReachedError):
        budget.admit("fetch")


def test_after_a_refusal_nobody_asks_until_it_may_be_over_and_then_one() -> None:
    now = [0.0]
    budget = Budget("acme", clock=lambda: now[0])
    for purpose in ("fetch", "snapshot"):
        budget.admit(purpose)
    for _ in range(2):
        budget.refused(LimitReachedError("x", retry_after=900.0))
        budget.heard(None, ok=False)
    assert budget.step == Step.STOP
    for purpose in (*CEILINGS, "limits"):
        with pytest.raises(LimitReachedError) as held:
            budget.admit(purpose)
        assert held.value.retry_after == pytest.approx(900)
    now[0] = 900
    budget.admit("fetch")
    with pytest.raises(LimitReachedError):
        budget.admit("fetch")
    budget.heard(None, ok=True)
    for _ in range(10):
        budget.admit("fetch")


def test_other_errors_block_nobody() -> None:
    budget = Budget("acme")
    budget.admit("fetch")
    budget.refused(TemporaryError("a page of maintenance", retry_after=60))
    budget.heard(None, ok=False)
    budget.admit("fetch")


def test_an_old_figure_lets_one_call_through_to_hear_a_new_one() -> None:
    now = [0.0]
    budget = Budget("acme", clock=lambda: now[0])
    budget.admit("fetch")
    budget.heard("api-usage=99/100", ok=True)
    for _ in range(3):
        with pytest.raises(LimitReachedError):
            budget.admit("fetch")
        now[0] += STALE
        budget.admit("fetch")
        budget.heard(None, ok=False)
    now[0] += STALE
    budget.admit("fetch")
    budget.heard("api-usage=5/100", ok=True)
    budget.admit("verify")


def test_own_calls_are_told_by_purpose_and_forgotten_after_a_day() -> None:
    world = World(1000)
    for purpose in ("fetch", "fetch", "verify"):
        world.call(purpose)
    assert world.budget.own() == {"fetch": 2, "verify": 1}
    world.now += DAY + STALE
    assert not world.budget.own()
