"""What docker/ gives to Prometheus and Grafana is valid, and names no series that nobody declares.

Method: promtool for the configuration, the rules and their own tests; for the dashboards a JSON schema of what they use
of Grafana's documented model. That each panel has data: tests/e2e/test_watching.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from loadtest.live.series import SERIES
from server.metrics import Metrics
from tests.e2e.conftest import ROOT

PROMETHEUS, GRAFANA = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt install prometheus")

DATASOURCE = {"const": {"type": "prometheus", "uid": "${datasource}"}}
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "description", "datasource", "gridPos", "targets", "fieldConfig", "options"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["timeseries", "stat", "state-timeline"]},
        "title": {"type": "string", "minLength": 3},
        "description": {"type": "string", "pattern": "\\.$"},
        "datasource": DATASOURCE,
        "gridPos": {"$ref": "#/$defs/grid"},
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["datasource", "expr", "legendFormat", "refId"],
                "properties": {
                    "datasource": DATASOURCE,
                    "expr": {"type": "string", "minLength": 3},
                    "refId": {"type": "string", "pattern": "^[A-Z]$"},
                },
                "additionalProperties": {"type": "string"},
            },
        },
        "fieldConfig": {
            "type": "object",
            "required": ["defaults", "overrides"],
            "properties": {
                "defaults": {
                    "type": "object",
                    "required": ["unit"],
                    "properties": {"unit": {"enum": ["s", "none", "bytes", "percentunit"]}},
                }
            },
        },
        "options": {"type": "object"},
    },
    "additionalProperties": False,
}
ROW = {
    "type": "object",
    "required": ["id", "type", "title", "collapsed", "panels", "gridPos"],
    "properties": {"type": {"const": "row"}, "collapsed": {"const": False}, "panels": {"const": []}},
}
DASHBOARD: dict[str, Any] = {
    "type": "object",
    "required": ["uid", "title", "description", "tags", "schemaVersion", "panels", "templating", "time", "refresh"],
    "properties": {
        "uid": {"type": "string", "pattern": "^tokenclock-[a-z]+$", "maxLength": 40},
        "title": {"type": "string"},
        "tags": {"contains": {"const": "tokenclock"}},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "panels": {"type": "array", "minItems": 10, "items": {"if": ROW, "else": PANEL}},
        "templating": {
            "properties": {
                "list": {"contains": {"properties": {"name": {"const": "datasource"}, "type": {"const": "datasource"}}}}
            }
        },
    },
    "$defs": {
        "grid": {
            "type": "object",
            "required": ["h", "w", "x", "y"],
            "properties": {
                "h": {"type": "integer", "minimum": 1},
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "y": {"type": "integer", "minimum": 0},
            },
            "additionalProperties": False,
        }
    },
}


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "recording.yml", "alerts.yml"],
        ["test", "rules", "rules.test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_is_content(command: list[str]):
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False, cwd=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_tests_of_the_rules_can_fail(tmp_path: Path):
    for path in PROMETHEUS.iterdir():
        shutil.copy(path, tmp_path)
    slack = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8").replace("vector(2)", "vector(9)")
    (tmp_path / "alerts.yml").write_text(slack, encoding="utf-8")
    done = subprocess.run(
        ["promtool", "test", "rules", "rules.test.yml"], capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert b"TtftOverObjective" in done.stderr


def test_every_alert_is_tested_and_says_what_to_do():
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    assert len(alerts) >= 5
    tests = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case.get("exp_alerts")}
    assert fired == set(alerts)
    assert all({"summary", "remedy"} == set(rule["annotations"]) for rule in alerts.values())


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_is_what_grafana_reads(path: Path):
    dashboard = read(path)
    jsonschema.validate(dashboard, DASHBOARD)
    panels = dashboard["panels"]
    for name in ("id", "title"):
        assert len({panel[name] for panel in panels}) == len(panels), f"{name}s are unique"
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, f"panels at {one} and {other} overlap"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(one["gridPos"]["y"] <= other["gridPos"]["y"] for one, other in pairwise(panels))


def test_there_are_two_dashboards_of_different_names():
    assert [path.stem for path in DASHBOARDS] == ["loadtest", "server"]
    assert len({read(path)["uid"] for path in DASHBOARDS}) == 2


def test_provisioning_finds_prometheus_and_the_dashboards():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["type"], source["url"]) == ("prometheus", "prometheus", "http://prometheus:9090")
    current = {read(path)["templating"]["list"][0]["current"]["value"] for path in DASHBOARDS}
    assert current == {source["uid"]}
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/dashboards.yml").read_text())["providers"]
    watch = yaml.safe_load((GRAFANA.parent / "compose.watch.yaml").read_text())["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in watch["volumes"]


def expressions() -> Iterator[tuple[str, str]]:
    for name in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                yield name, rule["expr"]
    for path in DASHBOARDS:
        for panel in read(path)["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"]


def test_every_series_that_is_asked_for_is_declared_or_recorded():
    declared = {series.name for series in (*SERIES, *Metrics().series)} | {"up"}
    declared |= {"process_resident_memory_bytes", "process_cpu_seconds_total"}  # prometheus_client's, of the server
    groups = [
        yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8")) for name in ("recording.yml", "alerts.yml")
    ]
    declared |= {
        rule["record"] for each in groups for group in each["groups"] for rule in group["rules"] if "record" in rule
    }
    asked = {
        (where, re.sub(r"_(bucket|sum|count)$", "", name) if name not in declared else name)
        for where, expression in expressions()
        for name in re.findall(
            r"\b(?:tokenclock|tgi|gen_ai|process|up)[\w:]*", re.sub(r'"[^"]*"|by \([^)]*\)', "", expression)
        )
        if name != "process"
    }
    assert len(asked) > 60
    assert {(where, name) for where, name in asked if name not in declared} == set()
