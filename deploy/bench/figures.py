"""Medians, spreads and ratios of what was measured. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the rounds of one contender."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError when there is nothing."""
    if not values:
        raise ValueError("nothing was measured")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Of the medians; low and high of the rounds side by side, which share what else the machine did at the time."""
    pairs = [a / b for a, b in zip(one, other, strict=False) if b > 0]
    base = spread(other).median
    if base <= 0 or not pairs:
        raise ValueError("nothing to compare with")
    return Spread(spread(one).median / base, min(pairs), max(pairs), len(pairs))


def quantile(values: Sequence[float], q: float) -> float | None:
    """The smallest value that a share `q` of all does not exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]
