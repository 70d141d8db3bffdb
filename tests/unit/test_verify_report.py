"""What a verification claims: a T only where all was compared and nothing is left; the exit code says the same as the sentence."""

from dataclasses import replace

import orjson
import pytest

from agents.rules.reconcile import Difference
from agents.verify import Found
from agents.verify_run import settled
from agents.verify_targets import RouteFound
from deploy.verify import as_facts, sentences, verified

NONE = Found("acme/Contact", "verify-1", through=1_780_000_000, compared=7)
ROUTE = RouteFound("people", "warehouse", comparable=True, lists=True, compared=7)
T = "2026-05-28T20:26:40Z"
WRONG = [Difference("acme/003", "changed")]


@pytest.mark.parametrize(
    ("found", "route", "repair", "claim", "fine"),
    [
        (NONE, ROUTE, True, T, True),
        (NONE, ROUTE, False, T, True),
        (NONE, replace(ROUTE, differences=WRONG), True, T, True),
        (NONE, replace(ROUTE, differences=WRONG), False, None, False),
        (replace(NONE, differences=WRONG), ROUTE, True, T, True),
        (replace(NONE, differences=WRONG), ROUTE, False, None, False),
        (NONE, replace(ROUTE, behind=3), True, None, False),
        (NONE, replace(ROUTE, dead=1), True, None, False),
        (NONE, replace(ROUTE, held=1), True, T, True),
        (NONE, replace(ROUTE, comparable=False), True, None, True),
    ],
)
def test_a_time_is_claimed_only_where_everything_was_compared_and_nothing_is_left(
    found: Found, route: RouteFound, repair: bool, claim: str | None, fine: bool
) -> None:
    assert verified(found, route, repair) == claim
    assert settled(found, route, repair) is fine
    told = sentences(found, [route], repair)
    assert (f"verified through {T}" in told) is (claim is not None)
    assert orjson.loads(as_facts(found, [route], repair))["routes"]["people"]["verified_through"] == claim


def test_the_sentence_counts_by_kind_and_says_whether_it_was_repaired() -> None:
    route = replace(ROUTE, differences=[*WRONG, Difference("a", "missing"), Difference("b", "missing")], repaired=3)
    assert "people → warehouse: verified through" in sentences(NONE, [route], True)
    assert "3 differ (2 missing, 1 changed); 3 repaired." in sentences(NONE, [route], True)
    assert "nothing was repaired" in sentences(NONE, [route], False)
    assert "1 more are held back" in sentences(NONE, [replace(ROUTE, held=1)], True)
    assert "cannot be listed" in sentences(NONE, [replace(ROUTE, lists=False)], True)
