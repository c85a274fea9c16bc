"""Alerts and dashboards: valid objects, real metric names, a section of the runbook each."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics_core import Metric

from serving.gateway.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s" / "components" / "monitoring"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [
    alert for group in RULES["spec"]["groups"] for alert in group["rules"]
]
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("dashboards/*.json")}
PANELS = [
    (name, panel)
    for name, board in DASHBOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
EXPRESSIONS = [
    *((alert["alert"], alert["expr"]) for alert in ALERTS),
    *(
        (f"{name}: {panel['title']}", target["expr"])
        for name, panel in PANELS
        for target in panel["targets"]
    ),
]
# Exporters that no Python package here carries.
FOREIGN = {
    "kuberay_service_condition_ready",
    "kuberay_service_condition_upgrade_in_progress",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_XID_ERRORS",
}
ADDED = {"le", "pod", "namespace"}
"""Labels that a histogram or Prometheus adds."""

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def selectors(expression: str) -> list[Any]:
    """Return every vector selector of a query."""
    # Grafana's variable is a range; the parser knows ranges only as durations.
    left = [promql_parser.parse(expression.replace("$__rate_interval", "5m"))]
    found = []
    while left:
        node = left.pop()
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            left.append(node.vector_selector)
        elif isinstance(node, promql_parser.BinaryExpr):
            left += [node.lhs, node.rhs]
        elif isinstance(node, promql_parser.Call):
            left += node.args
        elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr):
            left.append(node.expr)
        else:
            assert isinstance(node, promql_parser.NumberLiteral), type(node)
    return found


def own_families() -> dict[str, Metric]:
    return {family.name: family for family in Metrics().registry.collect()}


def own_names() -> dict[str, set[str]]:
    """Return the labels of every series that the gateway exports."""
    registry = Metrics().registry
    labels: dict[str, set[str]] = {}
    for collector in registry._collector_to_names:
        for family in collector.describe():  # type: ignore[attr-defined]
            for suffix in SUFFIXES[family.type]:
                labels[family.name + suffix] = set(collector._labelnames)  # type: ignore[attr-defined]
    return labels


def installed_source(package: str, *folders: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def test_there_is_something_to_check() -> None:
    assert len(ALERTS) >= 20
    assert set(DASHBOARDS) == {"gateway", "claims", "cost", "engine", "batch"}
    assert len(EXPRESSIONS) > 60


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_our_metrics_and_their_labels_exist(where: str, expression: str) -> None:
    names = own_names()
    for selector in selectors(expression):
        if not selector.name.startswith("narrowgate_"):
            continue
        assert selector.name in names, f"{where}: {selector.name}"
        given = {matcher.name for matcher in selector.matchers.matchers}
        assert given <= names[selector.name] | ADDED, f"{where}: {given}"


def test_labels_that_queries_keep_exist() -> None:
    names = own_names()
    for where, expression in EXPRESSIONS:
        used = {s.name for s in selectors(expression) if s.name.startswith("narrowgate_")}
        kept = {
            label.strip()
            for group in re.findall(r"by \(([^)]*)\)", expression)
            for label in group.split(",")
        }
        for name in used:
            assert kept <= names[name] | ADDED, f"{where}: {kept}"


def test_metrics_of_vllm_and_ray_exist() -> None:
    vllm = installed_source("vllm", "v1/metrics")
    ray = installed_source("ray", "serve", "_private").replace("{protocol_name}", "http")
    for where, expression in EXPRESSIONS:
        for selector in selectors(expression):
            name = selector.name
            if name.startswith("narrowgate_") or name in FOREIGN:
                continue
            source = vllm if name.startswith("vllm:") else ray
            plain = re.sub("^ray_", "", name)
            stem = re.sub("_(total|bucket|sum|count)$", "", plain)
            assert f'"{plain}"' in source or f'"{stem}"' in source, f"{where}: {name}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_each_alert_has_a_severity_a_summary_and_a_section_of_the_runbook(
    alert: dict[str, Any],
) -> None:
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"].endswith(".")
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert file == "docs/runbook.md"
    headings = [re.sub(r"[^\w\- ]", "", line[3:]).lower().replace(" ", "-")
                for line in page.splitlines() if line.startswith("## ")]  # fmt: skip
    assert anchor in headings
    (row,) = (
        line for line in page.splitlines() if line.startswith("|") and f"`{alert['alert']}`" in line
    )
    assert f"| {alert['labels']['severity']} |" in row
    assert f"(#{anchor})" in row


def test_labels_that_a_summary_names_survive_the_query() -> None:
    for alert in ALERTS:
        named = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        grouped = re.findall(r"by \(([^)]*)\)", alert["expr"])
        kept = {label.strip() for group in grouped for label in group.split(",")}
        if grouped:
            assert named <= kept, alert["alert"]


def test_a_counter_that_an_alert_watches_exists_before_its_first_event() -> None:
    # `increase` sees nothing of a series that is born with its first event: the alert stays silent.
    samples = [sample for family in own_families().values() for sample in family.samples]
    watched = 0
    for alert in ALERTS:
        if "increase(" not in alert["expr"]:
            continue
        for selector in selectors(alert["expr"]):
            wanted = {each.name: each.value for each in selector.matchers.matchers}
            found = [each for each in samples if each.name == selector.name]
            # A value without special characters is a pattern that only it matches.
            assert any(
                all(re.fullmatch(value, each.labels[name]) for name, value in wanted.items())
                for each in found
            ), alert["alert"]
            watched += 1
    assert watched >= 3


def test_the_objects_are_valid() -> None:
    # Importing these models takes seconds, in each worker that collects this file.
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

    PrometheusRule.model_validate(RULES)
    monitors = list(yaml.safe_load_all((FOLDER / "podmonitors.yaml").read_text(encoding="utf-8")))
    assert len(monitors) == 3
    for monitor in monitors:
        PodMonitor.model_validate(monitor)


def test_dashboards_are_distinct_and_complete() -> None:
    uids = [board["uid"] for board in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)
    for name, panel in PANELS:
        assert panel["title"], name
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    for board in DASHBOARDS.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = listed["configMapGenerator"][0]["files"]
    assert sorted(files) == sorted(f"dashboards/{name}.json" for name in DASHBOARDS)


def test_the_alerts_fire_as_their_unit_tests_say(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it is part of Debian's package prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": RULES["spec"]["groups"]}))
    shutil.copy(ROOT / "tests" / "monitoring" / "alerts.yaml", tmp_path / "alerts.yaml")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.yaml"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
