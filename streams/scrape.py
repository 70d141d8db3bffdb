"""Asks processes for their /metrics and reads the answers. Knows nothing of what the metrics mean; never raises for one that is silent."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

SCRAPE_SECONDS = 3.0

Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]
"""Value by metric name and sorted labels."""


async def scrape(addresses: Mapping[str, str]) -> dict[str, Samples]:
    """Samples by process name, of those that answered. `addresses`: URL of /metrics by process name."""

    async def one(http: aiohttp.ClientSession, url: str) -> Samples | None:
        try:
            async with http.get(url) as answer:
                return parse(await answer.text())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SCRAPE_SECONDS)) as http:
        answers = await asyncio.gather(*(one(http, url) for url in addresses.values()))
    return {name: samples for name, samples in zip(addresses, answers, strict=True) if samples is not None}


def parse(text: str) -> Samples:
    """Samples of Prometheus' text format. Raises ValueError."""
    found: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def total(answers: Iterable[Samples]) -> Samples:
    """Equal labels summed."""
    found: Samples = defaultdict(lambda: defaultdict(float))
    for samples in answers:
        for name, values in samples.items():
            for labels, value in values.items():
                found[name][labels] += value
    return found


def highest(answers: Iterable[Samples], name: str) -> dict[Labels, float]:
    """Of a gauge that several processes serve: the highest, by labels."""
    found: dict[Labels, float] = {}
    for samples in answers:
        for labels, value in samples.get(name, {}).items():
            found[labels] = max(value, found.get(labels, value))
    return found


def by_label(samples: Samples, name: str, by: str, **wanted: str) -> dict[str, int]:
    """Sums of a counter by one label, where the others are as wanted."""
    found: dict[str, int] = defaultdict(int)
    for labels, value in samples.get(name, {}).items():
        has = dict(labels)
        if all(has.get(n) == v for n, v in wanted.items()):
            found[has.get(by, "")] += int(value)
    return {n: v for n, v in sorted(found.items()) if v}


def quantile(q: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """Estimate from cumulative (upper bound, count) pairs, as Prometheus does; None without observations."""
    ordered = sorted(buckets)
    if not ordered or not (total := ordered[-1][1]):
        return None
    below, start = 0.0, 0.0
    for bound, count in ordered:
        if count >= q * total:
            if bound == float("inf"):
                return start
            return start + (bound - start) * (q * total - below) / (count - below)
        below, start = count, bound
    return start
