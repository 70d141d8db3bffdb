"""Dashboards and alerts name only metrics that exist, with labels they have."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram
from ruamel.yaml import YAML

from streams import metrics
from tests.support.panels import DASHBOARDS, DEPLOY, queries

LISTED = [metric for metric in vars(metrics).values() if isinstance(metric, Counter | Gauge | Histogram)]
SCRAPED = {"job", "instance", "role"}
"""Labels that the scrape adds; `up` has no others."""


def exported() -> dict[str, set[str]]:
    """Labels by every name that appears in a scrape."""
    found = {"up": set(SCRAPED)}
    for metric in LISTED:
        name, labels = metric._name, set(metric._labelnames)
        if isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[f"{name}_total" if isinstance(metric, Counter) else name] = labels
    return found


EXPORTED = exported()


def alerts() -> list[dict[str, Any]]:
    """Every rule."""
    groups = YAML(typ="safe").load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def mistakes(expr: str, legend: str = "") -> list[str]:
    """Names in an expression that the list of metrics does not know."""
    found = []
    used = re.findall(r"\b(up|headrace_\w+)\b(?:\{([^}]*)\})?", expr)
    known = set(SCRAPED)
    for name, matchers in used:
        if name not in EXPORTED:
            found.append(f"no metric {name}")
            continue
        known |= EXPORTED[name]
        found += [
            f"{name} has no label {label}" for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers) if label not in EXPORTED[name]
        ]
    grouped = {label.strip() for group in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expr) for label in group.split(",")}
    found += [f"grouped by unknown label {label}" for label in grouped - known]
    found += [
        f"legend shows {label}, which the query drops" for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", legend) if label not in grouped
    ]
    return found if used else [*found, "no metric at all"]


@pytest.mark.parametrize("query", queries(), ids=lambda q: f"{q.panel}: {q.expr}"[:80])
def test_a_panel_asks_only_for_metrics_and_labels_that_exist(query: Any) -> None:
    assert mistakes(query.expr, query.legend) == []


@pytest.mark.parametrize("rule", alerts(), ids=lambda r: r["alert"])
def test_an_alert_names_only_what_exists_and_says_what_to_do(rule: dict[str, Any]) -> None:
    text = " ".join(rule["annotations"].values())
    legend = " ".join(f"{{{{{label}}}}}" for label in re.findall(r"\$labels\.(\w+)", text))
    grouped = "by (" in rule["expr"]
    assert mistakes(rule["expr"], legend if grouped else "") == []
    assert set(rule["annotations"]) == {"summary", "action"}
    assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize(
    "expr", ["rate(headrace_nothing_total[1m])", "sum by (colour) (headrace_lag_records)", 'headrace_lag_records{topik="x"}', "1"]
)
def test_a_mistake_is_found(expr: str) -> None:
    assert mistakes(expr)


def test_a_legend_that_shows_nothing_is_found() -> None:
    assert mistakes("sum by (stage) (headrace_lag_records)", "{{topic}}")


def test_every_metric_is_shown_or_alerted_on() -> None:
    text = " ".join([q.expr for q in queries()] + [rule["expr"] for rule in alerts()])
    unseen = [m._name for m in LISTED if m._name not in text]
    assert unseen == []


def test_metric_names_and_labels_keep_the_rules_of_the_house() -> None:
    closed = {"connection", "sobject", "route", "target", "stage", "outcome", "reason", "channel", "cause", "purpose", "since", "error",
              "topic", "role", "version", "table", "limit", "what", "name"}  # fmt: skip
    for name, labels in EXPORTED.items():
        assert re.fullmatch(r"up|headrace_[a-z_]+", name)
        assert labels <= closed | SCRAPED | {"le"}, name


@pytest.mark.parametrize("path", sorted(DASHBOARDS.glob("*.json")), ids=lambda p: p.name)
def test_a_dashboard_is_what_grafana_reads(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"]
    assert board["title"]
    assert board["schemaVersion"] >= 36
    panels = board["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == _datasource()
            assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"]) > 0


def _datasource() -> str:
    text = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    uid: str = YAML(typ="safe").load(text)["datasources"][0]["uid"]
    return uid
