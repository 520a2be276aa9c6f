"""Grafana dashboards as data: panels with their Prometheus queries, and the JSON that Grafana reads.

Triptych's metric names come from `observe.metrics`, the others are those of Ray 2.60 and of vLLM within Ray. A counter
has a series for each of Ray's processes, so queries sum after `rate`, never before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triptych.observe import metrics as m

_STAGE = '{run=~"$run",stage=~"$stage"}'
_MODEL = '{model=~"$model"}'
_BY_STAGE = "{{run}} {{stage}}"
_WINDOW = "[$__rate_interval]"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    """One graph: legend -> PromQL expression. `unit` is Grafana's; `stacked` stacks the series."""

    title: str
    expressions: dict[str, str]
    unit: str = "short"
    stacked: bool = False


@dataclass(frozen=True)
class Dashboard:
    """Panels in reading order, and the labels that its reader can choose: variable -> the query of its values."""

    title: str
    choices: dict[str, str]
    panels: tuple[Panel, ...]


def _gauge(title: str, metric: m.Metric, unit: str = "short") -> Panel:
    return Panel(title, {_BY_STAGE: f"max by (run, stage) ({metric.exported}{_STAGE})"}, unit)


def _new(series: str, within: str = "$__rate_interval") -> str:
    """PromQL for the increase of a rare counter; `increase` misses the first event, with which the series begins."""
    return f"clamp_min({series} - ({series} offset {within} or {series} * 0), 0)"


def _count(title: str, metric: m.Metric) -> Panel:
    return Panel(title, {_BY_STAGE: f"sum by (run, stage) ({_new(metric.exported + _STAGE)})"})


def _shares(metric: m.Metric, label: str) -> Panel:
    """Share of each part in the seconds of all, of the chosen stages together. A step of RL may take minutes."""
    seconds = _new(metric.exported + _STAGE, "30m")
    return Panel(
        "Where the last half hour went",
        {f"{{{{{label}}}}}": f"sum by ({label}) ({seconds}) / ignoring ({label}) group_left sum({seconds})"},
        "percentunit",
        stacked=True,
    )


def _quantiles(title: str, bucket: str, by: str, selector: str = "", unit: str = "s") -> Panel:
    rate = f"sum by (le, {by}) (rate({bucket}{selector}{_WINDOW}))"
    quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return Panel(
        title, {f"{name} {{{{{by}}}}}": f"histogram_quantile({q}, {rate})" for name, q in quantiles.items()}, unit
    )


def _rate(title: str, by: str, series: str, unit: str = "short") -> Panel:
    return Panel(title, {f"{{{{{by}}}}}": f"sum by ({by}) (rate({series}{_WINDOW}))"}, unit)


def _by(title: str, by: str, expression: str, unit: str = "short") -> Panel:
    return Panel(title, {f"{{{{{by}}}}}": expression}, unit)


_OF_STAGES = {"run": "label_values({name}, run)", "stage": 'label_values({name}{{run=~"$run"}}, stage)'}


def _stages(metric: m.Metric) -> dict[str, str]:
    return {variable: query.format(name=metric.exported) for variable, query in _OF_STAGES.items()}


TRAINING = Dashboard(
    "Triptych / Training",
    _stages(m.TRAIN_STEP),
    (
        _gauge("Tokens per second", m.TRAIN_TOKENS_PER_SECOND),
        Panel(
            "Tokens per second of each worker",
            {
                _BY_STAGE + " {{worker}}": "max by (run, stage, worker) "
                f"({m.TRAIN_WORKER_TOKENS_PER_SECOND.exported}{_STAGE})"
            },
        ),
        _gauge("Model FLOPs utilisation", m.TRAIN_MFU, "percentunit"),
        _gauge("Loss", m.TRAIN_LOSS),
        _gauge("Pairs in the right order", m.TRAIN_ACCURACY, "percentunit"),
        _gauge("Gradient norm", m.TRAIN_GRAD_NORM),
        _gauge("Learning rate", m.TRAIN_LEARNING_RATE, "sci"),
        _gauge("Steps", m.TRAIN_STEP),
        _shares(m.TRAIN_SECONDS, "part"),
        _gauge("Peak memory", m.TRAIN_MEMORY, "bytes"),
        _count("Steps skipped: gradient not finite", m.TRAIN_NON_FINITE),
        Panel("Workers that died", {"": f"sum({_new('ray_node_manager_unexpected_worker_failure_total')})"}),
    ),
)

RL = Dashboard(
    "Triptych / RL",
    _stages(m.RL_VERSION),
    (
        Panel(
            "Reward",
            {
                f"mean {_BY_STAGE}": f"max by (run, stage) ({m.RL_REWARD.exported}{_STAGE})",
                f"standard deviation {_BY_STAGE}": f"max by (run, stage) ({m.RL_REWARD_STD.exported}{_STAGE})",
                f"answers without one {_BY_STAGE}": f"max by (run, stage) ({m.RL_REWARD_FAILED.exported}{_STAGE})",
                f"prompts of one score {_BY_STAGE}": f"max by (run, stage) ({m.RL_FLAT_GROUPS.exported}{_STAGE})",
            },
        ),
        _gauge("KL to the reference, nats a response", m.RL_KL),
        _gauge("KL coefficient", m.RL_KL_COEF),
        _gauge("Entropy, nats a token", m.RL_ENTROPY),
        _gauge("Tokens whose gradient was clipped", m.RL_CLIP_FRACTION, "percentunit"),
        _gauge("Tokens of an answer", m.RL_LENGTH),
        _gauge("Answers cut by their length", m.RL_TRUNCATED, "percentunit"),
        _gauge("Engine against learner: log-probability gap", m.RL_GAP),
        _shares(m.RL_SECONDS, "phase"),
        Panel(
            "Policy version of the rollout pool",
            {
                _BY_STAGE: f"max by (run, stage) ({m.RL_VERSION.exported}{_STAGE})",
                f"staleness {_BY_STAGE}": f"max by (run, stage) ({m.RL_STALENESS.exported}{_STAGE})",
            },
        ),
        Panel(
            "Rollout engines replaced",
            {
                _BY_STAGE: f"max by (run, stage) ({m.RL_RESTARTS.exported}{_STAGE})",
                f"share of a step idle {_BY_STAGE}": f"max by (run, stage) ({m.RL_ENGINES_IDLE.exported}{_STAGE})",
                f"learner waits {_BY_STAGE}": f"max by (run, stage) ({m.RL_LEARNER_WAITS.exported}{_STAGE})",
            },
        ),
        _gauge("Policy loss", m.RL_POLICY_LOSS),
        _gauge("Value loss", m.RL_VALUE_LOSS),
        _gauge("Gradient norm", m.RL_GRAD_NORM),
        _gauge("Learning rate", m.RL_LEARNING_RATE, "sci"),
        _gauge("Peak memory of the learner", m.RL_MEMORY, "bytes"),
        _count("Updates skipped: gradient not finite", m.RL_NON_FINITE),
    ),
)

SERVING = Dashboard(
    "Triptych / Serving",
    {"model": f"label_values({m.GATEWAY_REQUESTS.exported}, model)"},
    (
        _rate("Requests by adapter version", "model", f"{m.GATEWAY_REQUESTS.exported}{_MODEL}", "reqps"),
        _rate("Requests by outcome", "outcome", f"{m.GATEWAY_REQUESTS.exported}{_MODEL}", "reqps"),
        _by("Errors by code", "code", f"sum by (code) ({_new(m.GATEWAY_ERRORS.exported + _MODEL)})"),
        _quantiles("Time to the first token", f"{m.GATEWAY_FIRST_TOKEN.exported}_bucket", "model", _MODEL),
        _quantiles("Time of a request", f"{m.GATEWAY_SECONDS.exported}_bucket", "model", _MODEL),
        _by("Requests under way", "model", f"sum by (model) ({m.GATEWAY_IN_FLIGHT.exported}{_MODEL})"),
        _rate("Prompt tokens", "model", f"{m.GATEWAY_PROMPT_TOKENS.exported}{_MODEL}"),
        _rate("Completion tokens", "model", f"{m.GATEWAY_COMPLETION_TOKENS.exported}{_MODEL}"),
        Panel(
            "Healthy replicas",
            {
                "{{deployment}}": "sum by (deployment) (ray_serve_deployment_replica_healthy)",
                "adapters that cannot be read": f"max({m.GATEWAY_UNREADABLE.exported})",
            },
        ),
        Panel(
            "Share of an adapter's effect at its first load",
            {"{{model}}: {{looks_like}}": f"min by (model, looks_like) ({m.GATEWAY_ADAPTER_EFFECT.exported}{_MODEL})"},
        ),
        Panel(
            "Requests in the engines",
            {
                "running": "sum(ray_vllm_num_requests_running)",
                "waiting": "sum(ray_vllm_num_requests_waiting)",
            },
        ),
        _by("Why requests wait", "reason", "sum by (reason) (ray_vllm_num_requests_waiting_by_reason)"),
        _by("Key/value cache in use", "ReplicaId", "max by (ReplicaId) (ray_vllm_kv_cache_usage_perc)", "percentunit"),
        _quantiles("Time between tokens", "ray_vllm_inter_token_latency_seconds_bucket", "model_name"),
        Panel(
            "Prompt tokens found in the prefix cache",
            {
                "": f"(sum(rate(ray_vllm_prefix_cache_hits_total{_WINDOW})) or vector(0))"
                f" / sum(rate(ray_vllm_prefix_cache_queries_total{_WINDOW}))"
            },
            "percentunit",
        ),
        Panel("Preemptions", {"": f"sum({_new('ray_vllm_num_preemptions_total')})"}),
    ),
)

CLUSTER = Dashboard(
    "Triptych / Cluster",
    {},
    (
        Panel("Nodes", {"up": "count(ray_node_cpu_count)", "pending": "sum(autoscaler_pending_nodes)"}),
        _by("CPU", "instance", "avg by (instance) (ray_node_cpu_utilization)", "percent"),
        _by(
            "Memory",
            "instance",
            "max by (instance) (ray_node_mem_used) / max by (instance) (ray_node_mem_total)",
            "percentunit",
        ),
        Panel(
            "GPU",
            {"{{instance}} {{GpuIndex}}": "max by (instance, GpuIndex) (ray_node_gpus_utilization)"},
            "percent",
        ),
        Panel(
            "GPU memory",
            {"{{instance}} {{GpuIndex}}": "max by (instance, GpuIndex) (ray_node_gram_used) * 1048576"},
            "bytes",
        ),
        Panel(
            "GPU power",
            {"{{instance}} {{GpuIndex}}": "max by (instance, GpuIndex) (ray_node_gpu_power_milliwatts) / 1000"},
            "watt",
        ),
        Panel(
            "GPU temperature",
            {"{{instance}} {{GpuIndex}}": "max by (instance, GpuIndex) (ray_node_gpu_temperature_celsius)"},
            "celsius",
        ),
        _by("Object store", "Location", "sum by (Location) (ray_object_store_memory)", "bytes"),
        _by("Disk in use", "instance", "max by (instance) (ray_node_disk_utilization_percentage)", "percent"),
        _by("Network received", "instance", "sum by (instance) (ray_node_network_receive_speed)", "Bps"),
        _by("Tasks not finished", "State", 'sum by (State) (ray_tasks{State!="FINISHED"})'),
        _by("Actors", "State", "sum by (State) (ray_actors)"),
        _by("Placement groups", "State", "sum by (State) (ray_placement_groups)"),
        Panel(
            "Processes ended",
            {
                "for want of memory": f"sum({_new('ray_memory_manager_worker_eviction_total')})",
                "unexpectedly": f"sum({_new('ray_node_manager_unexpected_worker_failure_total')})",
            },
        ),
    ),
)

BOARDS = {"training": TRAINING, "rl": RL, "serving": SERVING, "cluster": CLUSTER}
"""File name -> dashboard."""


def expressions() -> Iterator[tuple[str, str, str, str]]:
    """(dashboard, panel, legend, expression) of every query, with Grafana's variables filled in."""
    for name, board in BOARDS.items():
        for panel in board.panels:
            for legend, expression in panel.expressions.items():
                yield name, panel.title, legend, filled(expression)


def filled(expression: str, window: str = "5m") -> str:
    """The expression with Grafana's variables filled in: all runs, stages and models, rates over `window`."""
    for variable, value in {"$__rate_interval": window, "$run": ".*", "$stage": ".*", "$model": ".*"}.items():
        expression = expression.replace(variable, value)
    return expression


def grafana(name: str) -> dict[str, Any]:
    """The dashboard as Grafana's JSON; its data source is a variable, so that it fits any Grafana."""
    board = BOARDS[name]
    source = {"type": "prometheus", "uid": "${datasource}"}
    choices = [
        {
            "name": variable,
            "label": variable,
            "type": "query",
            "datasource": source,
            "query": query,
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }
        for variable, query in board.choices.items()
    ]
    datasource = {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"triptych-{name}",
        "title": board.title,
        "tags": ["triptych"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [datasource, *choices]},
        "panels": [_panel(index, panel, source) for index, panel in enumerate(board.panels)],
    }


def _panel(index: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    custom = {"fillOpacity": 40 if panel.stacked else 5, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    return {
        "id": index + 1,
        "title": panel.title,
        "type": "timeseries",
        "datasource": source,
        "gridPos": {
            "x": index % _COLUMNS * _WIDTH,
            "y": index // _COLUMNS * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend or panel.title}
            for number, (legend, expression) in enumerate(panel.expressions.items())
        ],
    }
