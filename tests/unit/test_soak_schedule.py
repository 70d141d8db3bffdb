"""The plan of a soak: repeats from its seed, stays in its bounds, and leaves no fault out."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from deploy.sandbox.iterable.state import KINDS as ITERABLE
from deploy.sandbox.salesforce.kinds import KINDS as WIRE
from deploy.sandbox.salesforce.kinds import LOSSES
from deploy.soak.schedule import AT_ONCE, CALM_SECONDS, GAP, KINDS, PAUSE_SECONDS, REST_SECONDS, plan

seeds = st.integers(0, 2**63)
lengths = st.floats(0, 1200, allow_nan=False)


@given(seeds, lengths)
def test_the_same_seed_and_length_give_the_same_plan(seed: int, seconds: float) -> None:
    assert plan(seed, seconds) == plan(seed, seconds)


def test_another_seed_gives_another_plan() -> None:
    assert len({tuple(map(str, plan(seed, 60))) for seed in range(50)}) == 50


@given(seeds, lengths)
def test_every_fault_lies_inside_the_run_and_no_two_meet_on_one_target(seed: int, seconds: float) -> None:
    planned = plan(seed, seconds)
    assert [each.number for each in planned] == list(range(len(planned)))
    assert all(before.at < after.at for before, after in pairwise(planned))
    assert all(CALM_SECONDS <= each.at <= each.end <= seconds for each in planned)
    for each in planned:
        same = [other for other in planned if other.target == each.target and other.at > each.at]
        assert all(other.at >= each.end + REST_SECONDS for other in same)
        assert sum(other.at <= each.at < other.end for other in planned) <= AT_ONCE


@given(seeds, lengths)
def test_faults_that_put_headrace_to_sleep_come_one_by_one_and_not_at_the_end(seed: int, seconds: float) -> None:
    sleepers = [each for each in plan(seed, seconds) if each.pauses]
    assert all(after.at >= before.end + PAUSE_SECONDS for before, after in pairwise(sleepers))
    assert all(each.at <= max(seconds / 3, seconds - PAUSE_SECONDS) for each in sleepers)


@given(seeds)
def test_ten_minutes_leave_out_no_kind_that_has_not_to_wait(seed: int) -> None:
    done = {(each.name, each.target) for each in plan(seed, 600)}
    for kind in KINDS:
        assert kind.pauses or any((kind.name, target) in done for target in kind.targets), kind.name


def test_a_minute_holds_a_dozen_faults() -> None:
    assert all(len(plan(seed, 60)) >= 55 / GAP[1] - 1 for seed in range(200))


WITHHELD = ("gap", "gap-wildcard", "wildcard", "overflow")


def test_every_fault_of_the_wires_and_of_what_is_withheld_is_in_the_pack_but_those_named_in_the_schedule() -> None:
    salesforce = WIRE | {name: LOSSES[name] for name in WITHHELD}
    for target, known, left_out in (("salesforce", salesforce, {"rest-limit", "lock-row"}), ("iterable", ITERABLE, set())):
        named = {kind.name: set(kind.variants) for kind in KINDS if target in kind.targets}
        assert set(named) == set(known) - left_out
        for kind in KINDS:
            if target in kind.targets and kind.name not in ("duplicate", "reorder"):
                assert set(kind.variants) - {""} <= set(known[kind.name].variants), kind.name
