"""The figures of a run as Markdown, and the ratios that decide whether an aim was met. Pure."""

from collections.abc import Mapping
from typing import Any

from deploy.bench.figures import ratio, spread

TITLES = {
    "a": "(a) Pass-through: Kafka to Kafka",
    "b": "(b) Parse, merge, map, one durable write to Kafka",
    "c": "(c) The whole way: raw change events in Kafka to rows in PostgreSQL",
    "d": "(d) Latency, commit in the sandbox Salesforce to row in PostgreSQL, open loop",
    "e": "(e) Recovery",
    "f": "(f) One worker and two: throughput, and stop time of a rebalance",
    "g": "(g) Mapping and all gates of a 12-field map, beside orjson parsing the same record",
    "snapshot": "A snapshot through Kafka into PostgreSQL, beside live changes",
}
RATE, MEMORY, RECOVERED = "events_per_second", "peak_mb", "changelog_records_per_second"
DEBEZIUM = "Kafka Connect (Debezium JDBC sink)"
AIMS = (
    ("a", RATE, "Headrace", "plain aiokafka", "at least 0.8"),
    ("a", RATE, "Headrace", "stock Faust", ""),
    ("b", RATE, "Headrace", "stock Faust", "at least 15"),
    ("b", RATE, "Headrace", "stock Faust, tuned", "at least 8"),
    ("b", RATE, "Headrace", "plain aiokafka", ""),
    ("c", RATE, "Headrace, two workers", "by hand (aiokafka + psycopg)", "at least 0.6"),
    ("c", RATE, "Headrace, two workers", DEBEZIUM, "at least 0.5"),
    ("c", MEMORY, "Headrace, two workers", DEBEZIUM, "at most 0.33"),
    ("c", RATE, "Headrace, two workers", "Quix Streams", ""),
    ("e", RECOVERED, "Headrace, 100,000 records", "stock Faust", ""),
    ("f", RATE, "Headrace, two workers", "Headrace", ""),
)
NOTE = (
    "One machine, one run, rounds interleaved; every contender was warm and its work lay in Kafka before its clock began. "
    "Read the ratios. CPU is the contender's own, without Kafka's and PostgreSQL's."
    " The loops by hand keep their state in memory: no crash must come."
)


def ratios(cases: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of what both have; `low` and `high` of the rounds side by side, where there were rounds."""
    found = []
    for case, figure, one, other, aim in AIMS:
        entries = cases.get("c" if case == "f" else case, {})  # (f) compares what (c) measured
        pair = [entries.get(name, {}).get(figure) for name in (one, other)] if "failed" not in entries else []
        if pair and all(pair):
            said = ratio(*(value if isinstance(value, list) else [value] for value in pair))
            figures = {"ratio": round(said.median, 2), "low": round(said.low, 2), "high": round(said.high, 2)}
            found.append({"case": case, "figure": figure.replace("_", " "), "of": one, "to": other, "aim": aim} | figures)
    return found


def markdown(run: Mapping[str, Any]) -> str:
    """The whole run."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        "# headrace bench",
        "",
        f"`{run['command']}`, {run['at']}, {run['seconds']:.0f} s, commit {machine['commit'] or 'unknown'}",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, {machine['system']}, "
        f"load before {machine['load_before']}; {versions}",
        "",
        NOTE,
    ]
    for case, title in TITLES.items():
        if (found := run["cases"].get(case)) is not None:
            lines += ["", f"## {title}", ""]
            lines += (
                [f"Could not be measured: {found['failed']}"] if "failed" in found else _table(found) if case in "abc" else _nested(found)
            )
    if run["ratios"]:
        lines += ["", "## Ratios", "", "| case | figure | of | to | ratio (rounds) | aim |", "| --- | --- | --- | --- | --- | --- |"]
        lines += [
            f"| {r['case']} | {r['figure']} | {r['of']} | {r['to']} | {r['ratio']} ({r['low']} to {r['high']}) | {r['aim']} |"
            for r in run["ratios"]
        ]
    return "\n".join(lines) + "\n"


def _table(entries: Mapping[str, Any]) -> list[str]:
    lines = [
        "| contender | events/s, median (low to high) | CPU µs/event | memory MB | compared | missing | stale rows |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, said in entries.items():
        if "failed" in said:
            lines.append(f"| {name} | not measured: {said['failed']} | | | | | |")
            continue
        rate, cpu, oracle = spread(said["events_per_second"]), spread(said["cpu_us_per_event"]), said["oracle"]
        stale = oracle.get("stale", "")
        lines.append(
            f"| {name} | {rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f}) | {cpu.median:.0f} | {said['peak_mb']} "
            f"| {oracle['compared']:,} | {oracle['missing'] + oracle['unexpected']} | {stale} |"
        )
    return lines


def _nested(found: Mapping[str, Any]) -> list[str]:
    lines = ["| what | figures |", "| --- | --- |"]
    for name, said in found.items():
        for what, value in (
            said.items() if isinstance(said, Mapping) and any(isinstance(v, Mapping) for v in said.values()) else [("", said)]
        ):
            label = f"{name} {what}".replace("_", " ").strip()
            figures = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            lines.append(f"| {label} | {figures} |")
    return lines
