"""Figures of the bench: medians, ratios round by round, quantiles; and the report holds what was measured and names what was not."""

from typing import Any

import pytest

from deploy.bench.figures import quantile, ratio, spread
from deploy.bench.report import DEBEZIUM, TITLES, markdown, ratios

ORACLE = {"compared": 10, "missing": 0, "stale": 3, "unexpected": 0}


def entry(*rates: float) -> dict[str, Any]:
    return {"events_per_second": list(rates), "cpu_us_per_event": [1.0 for _ in rates], "peak_mb": 5, "oracle": ORACLE}


def run(cases: dict[str, Any]) -> dict[str, Any]:
    machine = {"cores": 2, "cpu": "x", "memory_gb": 1, "system": "Linux", "load_before": 0.1, "versions": {"python": "3"}, "commit": "abc"}
    return {"command": "headrace bench", "at": "now", "seconds": 1.0, "machine": machine, "cases": cases, "ratios": ratios(cases)}


def test_spread_and_ratio() -> None:
    assert spread([3, 1, 2]).median == 2
    said = ratio([10, 30], [5, 10])
    assert (round(said.median, 3), said.low, said.high) == (2.667, 2, 3)


@pytest.mark.parametrize(("one", "other"), [([], [1]), ([1], []), ([1], [0])])
def test_nothing_measured_is_said(one: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError, match=r"nothing"):
        ratio(one, other)


def test_a_quantile_is_a_value_that_was_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 0.999), quantile(values, 0.0)) == (50, 99, 100, 1)
    assert quantile([7.0], 0.5) == 7
    assert quantile([], 0.5) is None


def test_ratios_are_made_only_of_what_was_measured() -> None:
    cases = {"b": {"Headrace": entry(40, 40), "stock Faust": entry(2, 2), "stock Faust, tuned": {"failed": "no"}}}
    assert [(r["to"], r["ratio"]) for r in ratios(cases)] == [("stock Faust", 20)]
    assert ratios({"b": {"failed": "no Kafka"}}) == []
    recovered = {name: {"changelog_records_per_second": rate} for name, rate in (("Headrace, 100,000 records", 200), ("stock Faust", 8))}
    assert [(r["case"], r["ratio"]) for r in ratios({"e": recovered})] == [("e", 25)]


def test_the_throughput_of_one_worker_and_two_and_the_memory_are_compared_too() -> None:
    cases = {"c": {"Headrace, two workers": entry(30, 30), "Headrace": entry(20, 20), DEBEZIUM: entry(60, 60)}}
    said = {(r["case"], r["figure"]): r["ratio"] for r in ratios(cases)}
    assert said == {("c", "events per second"): 0.5, ("c", "peak mb"): 1, ("f", "events per second"): 1.5}


def test_the_report_shows_stale_rows_and_what_could_not_be_measured() -> None:
    cases = {
        "c": {"Headrace, two workers": entry(10, 20), "Quix Streams": {"failed": "no wheel"}},
        "d": {"at_50%": {"p50": 3}, "beside": {"others": {"p99": 4}, "that": {"p99": 5}}},
        "e": {"failed": "it ended"},
    }
    text = markdown(run(cases))
    assert "| Headrace, two workers | 15 (10 to 20) | 1 | 5 | 10 | 0 | 3 |" in text
    assert "not measured: no wheel" in text
    assert "Could not be measured: it ended" in text
    assert "| at 50% | p50 3 |" in text
    assert "| beside that | p99 5 |" in text
    assert TITLES["a"] not in text
