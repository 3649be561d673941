"""Lists that must agree: metrics in the code, in the docs, in the alert rules and in the dashboard; and rules that say what to do."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hostoffload.metrics.table import METRICS, Metric
from tests.tidy.test_docs import table
from tests.tidy.tree import ROOT
from tests.tools import need

ALERTS = ROOT / "docker" / "prometheus" / "alerts.yaml"
ALERTS_TEST = ROOT / "docker" / "prometheus" / "alerts.test.yaml"
DASHBOARD = ROOT / "docker" / "grafana" / "hostoffload.json"
DOCS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text())
KNOWN = {one.sample_name: one for one in METRICS}
OF_PROMETHEUS = {"up", "ALERTS"}
SERVICE_OF = {"capture": "agent", "publisher": "agent", "cx": "cx", "target": "target"}
# Labels that Prometheus adds, and what a selector of the dashboard may ask for.
ADDED_LABELS = {"instance", "job", "alertname", "alertstate"}
GRID_WIDTH = 24


def told_by(metric: Metric) -> str:
    """Return which services tell a metric, `up` aside, which tells all."""
    return ", ".join(dict.fromkeys(SERVICE_OF[fact.kind] for fact in metric.facts)) or "all"


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query of rules and dashboard with what it belongs to; the dashboard's variables filled in."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", filled(target["expr"])
    for one in BOARD["annotations"]["list"]:
        yield one["name"], one["expr"]


def filled(query: str) -> str:
    """Return a dashboard's query as Grafana would ask it with everything chosen."""
    return re.sub(r"\$(instance|volume)\b", ".*", query).replace("$__rate_interval", "1m")


QUERIES = dict(queries())


def promtool(*arguments: object) -> None:
    """Run promtool; it must be content."""
    need("promtool")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_are_those_of_the_docs() -> None:
    told = dict(table(DOCS, "metric"))
    assert list(told) == list(KNOWN)
    for name, metric in KNOWN.items():
        labels = ", ".join(f"`{one}`" for one in metric.labels).strip("`") or "-"
        assert told[name] == (metric.kind, labels, told_by(metric), metric.meaning.strip("`")), name


def test_alerts_are_those_of_the_docs() -> None:
    told = dict(table(DOCS, "alert"))
    assert list(told) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        severity, when = told[rule["alert"]]
        assert severity == rule["labels"]["severity"]
        lasting = f"` for {rule['for']}" if "for" in rule else ""
        assert when == " ".join(rule["expr"].split()) + lasting, rule["alert"]


@pytest.mark.parametrize("of", QUERIES)
def test_what_a_query_asks_for_exists(of: str) -> None:
    query = QUERIES[of]
    names = set(re.findall(r"\b(?:hostoffload_\w+|up|ALERTS)\b", re.sub(r'"[^"]*"', '""', query)))
    assert names, query
    assert names <= KNOWN.keys() | OF_PROMETHEUS
    known = ADDED_LABELS | {label for name in names & KNOWN.keys() for label in KNOWN[name].labels}
    grouped = re.findall(r"\b(?:by|on|group_left|group_right) \(([^)]*)\)", query)
    asked = set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", query)) | {
        one.strip() for text in grouped for one in text.split(",") if "{" not in one
    }
    assert asked <= known | {""}, query
    for name, stage in re.findall(r'(\w+)\{[^}]*\b(?:stage|mode|part|state)="(\w+)"', query):
        values = {value for fact in KNOWN[name].facts for value in fact.labels.values()}
        assert stage in values, query


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Hostoffload[A-Z]\w+", rule["alert"])
    assert rule["labels"] == {"severity": rule["labels"]["severity"]} and rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "cause", "action"}
    for name, text in rule["annotations"].items():
        assert len(text) > 20 and (text.endswith((".", "?")) or name == "summary"), text
    labels = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    names = set(re.findall(r"hostoffload_\w+", rule["expr"])) & KNOWN.keys()
    assert labels <= ADDED_LABELS | {label for name in names for label in KNOWN[name].labels}


def test_every_rule_is_tried() -> None:
    tried = [one["name"] for one in yaml.safe_load(ALERTS_TEST.read_text())["tests"]]
    assert tried == [rule["alert"] for rule in RULES]


def test_rules_parse() -> None:
    promtool("check", "rules", ALERTS)


def test_each_rule_fires_for_its_fault_alone() -> None:
    promtool("test", "rules", ALERTS_TEST)


def test_queries_of_the_dashboard_parse(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(QUERIES.values())]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", path)


def test_the_dashboard_can_be_drawn() -> None:
    panels = BOARD["panels"]
    assert BOARD["uid"] == "hostoffload" and BOARD["schemaVersion"] >= 36 and "id" not in BOARD
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= GRID_WIDTH
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
            assert [one["refId"] for one in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
            assert all(
                one["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for one in panel["targets"]
            )
    variables = {one["name"] for one in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panels))) <= variables


def test_units_stand_in_the_names() -> None:
    """As Prometheus asks: base units, in the name; a number without one is a count, a sequence or a yes."""
    units = {"Bps": "bytes", "bytes": "bytes", "s": "seconds", "percentunit": "ratio"}
    for panel in BOARD["panels"]:
        unit = units.get(panel.get("fieldConfig", {}).get("defaults", {}).get("unit", ""))
        for target in panel.get("targets", ()):
            names = [name for name in KNOWN if re.search(rf"\b{name}\b", target["expr"])]
            if unit == "ratio" and "/" in target["expr"]:
                continue
            assert unit is None or all(unit in name for name in names), (panel["title"], target["expr"])
