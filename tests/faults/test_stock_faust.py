"""The ordinary situations in which faust-streaming 0.15.3 loses events (L1-L15), on stock Faust as a control and on ours: nothing lost.

All of it is one race on one Kafka (tests/support/stock_race.py), then a control and a claim per case. A control says "lost" for an event
below the committed offset of a dead process without an output: nobody of its group reads it again. Where a case is also met by the suites
with the real stages and random moments, the table says where. All fifteen are reproduced on Apache Kafka 4.1 in seconds, so no control is
left out; of the variants within a row these are not repeated: send_soon's other race (L9: one message in hand counts as none; the one here
is a flush that gives up after 0.1 s), a delivery that fails by its timeout of 1200 s (L10: here Kafka refuses it), exactly_once's KeyError
for a topic of unknown group (L15: here outputs that no transaction holds, seen twice).
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faust.types.settings import Settings as FaustSettings

from streams.app import create_app
from streams.engine.transport import Transport
from tests.support import stock_ours as ours
from tests.support import stock_race
from tests.support.stock_lives import Fate
from tests.support.stock_plan import EVENTS, GUILTY, HEAD, Plan
from tests.support.stock_race import CRASH, KILLED, Told

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).resolve().parents[2]
ENGINE, WORKERS, EVENT = "test_engine_faults", "test_worker_faults", "test_event_faults"


@dataclass(frozen=True)
class Case:
    """What happens; what the control finds; the stage of ours in the same situation; other tests of it, file and beginning of the name."""

    what: str
    control: Callable[[Fate], bool]
    ours: str
    also: tuple[tuple[str, str], ...] = ()


def guilty_alone(fate: Fate) -> bool:
    """The event that brought the fault about."""
    return fate.lost == [GUILTY]


def guilty_and_others(fate: Fate) -> bool:
    """And what was taken with it."""
    return GUILTY in fate.lost and len(fate.lost) > 1


def head(fate: Fate) -> bool:
    """The event that others overtook."""
    return fate.lost == [HEAD]


def everything(fate: Fate) -> bool:
    """All that was committed."""
    return len(fate.lost) >= HEAD and fate.done == 0


RAISED = (ENGINE, "test_an_error_out_of_a_handler_ends_the_process_with_70_and_commits_nothing_of_its_chunk")
STOPPED = (ENGINE, "test_sigterm_under_load_loses_nothing_and_repeats_nothing")
ABORTED = (ENGINE, "test_a_transaction_open_at_a_crash_is_aborted_by_the_takeover_and_not_waited_for")
MOMENTS = (WORKERS, "test_death_at_chosen_moments_of_a_chunk_loses_nothing_and_puts_out_nothing_twice")

CASES = {
    "L1": Case("an agent raises at an event", guilty_alone, ours.RAISES, (RAISED,)),
    "L2": Case("an agent raises within a batch", guilty_and_others, ours.RAISES, (RAISED,)),
    "L3": Case("an agent of batches raises twice", lambda fate: len(fate.lost) > EVENTS, ours.RAISES, (RAISED,)),
    "L4": Case("an agent raises and its supervisor ends the worker", guilty_alone, ours.RAISES, (RAISED,)),
    "L5": Case("SIGTERM within a batch, not waited for", lambda fate: HEAD in fate.lost, ours.HOLDS, (STOPPED,)),
    "L6": Case("a later event is done before the one at the head", head, ours.HOLDS),
    "L7": Case("one event is not acknowledged", guilty_alone, ours.HOLDS),
    "L8": Case("the same, behind a hole in the offsets", head, ours.HOLES, (ABORTED,)),
    "L9": Case("outputs wait in the send buffer at a commit", everything, ours.DEDUPES, (MOMENTS,)),
    "L10": Case("a delivery fails that nobody waits for", lambda fate: GUILTY in fate.lost, ours.REFUSED),
    "L11": Case("producer_threaded: a commit does not wait for outputs", everything, ours.DEDUPES, (MOMENTS,)),
    "L12": Case("state is ahead of the output at a crash", guilty_alone, ours.DEDUPES, (MOMENTS,)),
    "L13": Case("an output is too large", guilty_and_others, ours.TOO_LARGE, ((EVENT, "test_an_event_whose_output_is_too_large"),)),
    "L14": Case("an event cannot be decoded", guilty_alone, ours.POISONED, ((EVENT, "test_poison_of_every_kind"),)),
    "L15": Case("exactly_once: outputs stand outside the transaction", lambda fate: GUILTY in fate.twice, ours.DEDUPES, (MOMENTS,)),
}
DEAD_LETTERS = {ours.TOO_LARGE: [GUILTY], ours.POISONED: [GUILTY]}
each = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def told(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The race, run once."""
    return stock_race.run(kafka, tmp_path_factory.mktemp("race"))


@pytest.mark.kafka
@each
def test_stock_faust_loses_events_or_repeats_them(told: Told, case: str) -> None:
    """A control: where it fails, the case no longer shows what ours is safe from."""
    assert case in told.stock, told.errors
    assert CASES[case].control(told.stock[case]), f"{CASES[case].what}: {told.stock[case]}"


@pytest.mark.kafka
@each
def test_ours_loses_nothing_and_repeats_nothing(told: Told, case: str) -> None:
    stage = CASES[case].ours
    dead = DEAD_LETTERS.get(stage, [])
    assert stage in told.ours, told.errors
    assert told.ours[stage] == Fate(lost=dead, twice=[], done=EVENTS - len(dead)), CASES[case].what
    assert told.letters.get(stage, []) == dead


@pytest.mark.kafka
def test_the_faults_struck_ours_and_what_was_not_done_was_not_committed(told: Told) -> None:
    assert not told.errors
    assert sorted(told.codes) == [[CRASH, 0, 0], [CRASH, CRASH, KILLED, 0]]
    assert told.committed == {ours.REFUSED: GUILTY, ours.HOLDS: HEAD, ours.HOLES: HEAD}


def test_every_case_has_a_control_and_a_test_of_ours() -> None:
    assert list(CASES) == [f"L{n}" for n in range(1, 16)]
    assert {case.ours for case in CASES.values()} == set(ours.STAGES)
    for case in CASES.values():
        for file, name in case.also:
            tree = ast.parse((ROOT / "tests/faults" / f"{file}.py").read_text())
            tests = [node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
            assert any(found.startswith(name) for found in tests), f"{file}.py has no {name}"


def test_the_environment_cannot_bring_back_what_loses_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust takes each of its settings from the environment first, the broker's address too, whose scheme names the transport."""

    def conf() -> dict[str, object]:
        plan = Plan("127.0.0.1:1", "t", str(tmp_path), [ours.RAISES])
        app = create_app(ours.settings_of(plan), [ours.stage(plan, ours.RAISES)])
        assert isinstance(app.transport, Transport)
        settings = {name: setting for name, setting in FaustSettings.SETTINGS.items() if setting.active and not setting.deprecated}
        return {name: getattr(app.conf, name) for name, setting in settings.items() if setting.env_name}

    broker = {"BROKER_URL": "kafka://b", "BROKER_CONSUMER_URL": "kafka://b", "BROKER_PRODUCER_URL": "kafka://b"}
    clean = conf()
    for name, value in (stock_race.ENVIRONMENT | broker | {"APP_VERSION": "7"}).items():
        monkeypatch.setenv(name, value)
    assert conf() == clean
