"""Rules and dashboards: promtool takes them, the names exist, every alert fires, resolves, and has its runbook."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.observe.dashboards import BOARDS, expressions, grafana
from triptych.observe.metrics import METRICS
from triptych.serve import errors

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "triptych" / "files" / "rules.yaml"
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
CASES = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text(encoding="utf-8"))
ASKED = [(f"{board}: {panel}", expression) for board, panel, _, expression in expressions()]
ASKED += [(rule.get("alert") or rule["record"], rule["expr"]) for group in GROUPS for rule in group["rules"]]

OTHERS = (ROOT / "tests" / "deploy" / "metrics-of-others.txt").read_text(encoding="utf-8").split()
"""What Ray 2.60, vLLM 0.32 within Ray, KubeRay 1.7 and Prometheus itself export, as far as it is asked for."""


def promtool(*arguments: str | Path) -> str:
    """What promtool says; the test fails where it finds fault, and is skipped where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_well_formed() -> None:
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in promtool("check", "rules", RULES)


def test_every_dashboard_expression_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel_{number}", "expr": expression} for number, (_, expression) in enumerate(ASKED)]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


@pytest.mark.slow
def test_every_alert_fires_and_resolves(tmp_path: Path) -> None:
    assert CASES.keys() == ALERTS.keys()
    file = tmp_path / "alerts.json"
    tests = [_case(alert, case) for alert, case in CASES.items()]
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(json.dumps(content), encoding="utf-8")
    promtool("test", "rules", file)


def _case(alert: str, case: dict[str, Any]) -> dict[str, Any]:
    """The case in promtool's format."""
    labels = {"alertname": alert, "alertstate": "firing", **case["labels"]}
    selector = ",".join(f'{name}="{value}"' for name, value in labels.items())
    firing = f"count(ALERTS{{{selector}}})"
    return {
        "name": alert,
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case["series"].items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": case["fires"], "exp_samples": [{"labels": "{}", "value": 1}]},
            {"expr": firing, "eval_time": case["resolved"], "exp_samples": []},
        ],
    }


def test_the_first_of_rare_events_shows(tmp_path: Path) -> None:
    """A counter that appears with 1 was one event: panels say so for as long as their window, here five minutes."""
    rare = [(panel, text) for _, panel, _, text in expressions() if "offset 5m" in text]
    assert {panel for panel, _ in rare} >= {"Errors by code", "Workers that died", "Steps skipped: gradient not finite"}
    labels = '{run="r",stage="s",model="a@1",code="unavailable"}'
    names = {re.findall(r"\bray_\w+", text)[0] for _, text in rare}
    case = {
        "interval": "1m",
        "input_series": [{"series": f"{name}{labels}", "values": "_x10 1x5 3x20"} for name in names],
        "promql_expr_test": [
            {"expr": f"sum({text})", "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}]}
            for _, text in rare
            for at, value in (("11m", 1), ("17m", 2), ("25m", 0))
        ],
    }
    _check(case, tmp_path)


def test_the_first_seconds_have_shares(tmp_path: Path) -> None:
    """A step of PPO may take minutes: what the first one's went to shows when it ends, not with the second."""
    shares = [text for _, panel, _, text in expressions() if panel == "Where the last half hour went"]
    series = [
        {"series": f'{name}{{run="r",stage="s",{label}="{value}"}}', "values": f"_x3 {seconds}x3"}
        for name, label in (("ray_triptych_rl_seconds_total", "phase"), ("ray_triptych_train_seconds_total", "part"))
        for value, seconds in (("a", 30), ("b", 10))
    ]
    asked = [
        {
            "expr": text,
            "eval_time": "5m",
            "exp_samples": [
                {"labels": f'{{{label}="{value}"}}', "value": share} for value, share in (("a", 0.75), ("b", 0.25))
            ],
        }
        for text in shares
        for label in re.findall(r"sum by \((\w+)\)", text)
    ]
    assert len(asked) == 2
    _check({"interval": "1m", "input_series": series, "promql_expr_test": asked}, tmp_path)


def _check(case: dict[str, Any], folder: Path) -> None:
    file = folder / "case.json"
    file.write_text(json.dumps({"tests": [case]}), encoding="utf-8")
    promtool("test", "rules", file)


@pytest.mark.parametrize(("where", "expression"), ASKED, ids=[where for where, _ in ASKED])
def test_asks_only_for_what_is_exported(where: str, expression: str) -> None:
    ours = {metric.exported: metric for metric in METRICS.values()}
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\b(by|on|ignoring) \([^)]*\)', "", expression)
    names = set(re.findall(r"\b(?:ray_|kuberay_|autoscaler_|triptych:)[a-z0-9_:]+|\bup\b", bare))
    assert names
    for name in names:
        if name.startswith("triptych:"):
            assert name in RECORDED
        elif name.startswith("ray_triptych_"):
            metric = ours[name.removesuffix("_bucket")]
            assert (metric.kind == "histogram") == name.endswith("_bucket")
            assert (metric.kind == "counter") <= bool(re.search(r"rate|increase|offset", expression)), "a bare counter"
        else:
            assert name in OTHERS


def test_labels_are_those_of_the_metrics() -> None:
    for where, expression in ASKED:
        for name, labels in re.findall(r"ray_(triptych_[a-z0-9_]+?)(?:_bucket)?\{([^}]*)\}", expression):
            asked = set(re.findall(r"(\w+)=", re.sub(r'"[^"]*"', "", labels)))
            assert asked <= set(METRICS[name].labels), where


def test_error_codes_are_those_of_the_gateway() -> None:
    known = set(re.findall(r'"([a-z_]+)"', Path(errors.__file__).read_text(encoding="utf-8")))
    for where, expression in ASKED:
        for codes in re.findall(r'code=~?"([^"]*)"', expression):
            for code in codes.split("|"):
                assert any(re.fullmatch(code, name) for name in known), f"{where}: {code}"


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
    assert alert.lower() == anchor


def test_dashboards_show_every_metric_of_ours() -> None:
    asked = " ".join(expression for _, expression in ASKED)
    unseen = {metric.exported for metric in METRICS.values() if metric.exported not in asked}
    assert unseen <= {"ray_triptych_train_tokens_total", "ray_triptych_train_model_flops_per_second"}


@pytest.mark.parametrize("name", BOARDS)
def test_dashboards_hold_together(name: str) -> None:
    board = grafana(name)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert variables == {"datasource", *BOARDS[name].choices}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) - {"__rate_interval"}
    assert used == variables
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(titles)


@pytest.mark.parametrize("name", ["laptop", "compose"])
def test_scrape_configurations_are_well_formed(name: str, tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "prometheus" / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    [rules] = config["rule_files"]
    assert (ROOT / "deploy" / "prometheus" / rules).resolve() == RULES or name == "compose"
    shutil.copy(RULES, tmp_path / "rules.yaml")
    (tmp_path / "prometheus.yaml").write_text(text.replace(rules, "rules.yaml"), encoding="utf-8")
    promtool("check", "config", tmp_path / "prometheus.yaml")


def test_cluster_configuration_finds_the_charts_pods() -> None:
    # Debian's promtool does not know Kubernetes: the labels and ports are compared with those of the chart.
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "cluster.yaml").read_text(encoding="utf-8"))
    [scrape] = config["scrape_configs"]
    assert (ROOT / "deploy" / "prometheus" / config["rule_files"][0]).resolve() == RULES
    assert scrape["job_name"] == "triptych"  # what the alerts ask for
    pod = (ROOT / "deploy" / "manifests" / "rayservice.yaml").read_text(encoding="utf-8")
    label = scrape["kubernetes_sd_configs"][0]["selectors"][0]["label"]
    assert label.replace("=", ": ") in pod
    ports = scrape["relabel_configs"][0]["regex"].split("|")
    assert all(f"name: {port}" in pod for port in ports)
