"""Metric names hold to Prometheus' rules, and what is emitted in Ray's processes can be scraped from its port."""

import math
import re
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from triptych.observe.metrics import (
    METRICS,
    OTHER,
    RL_ROW,
    TRAIN_ROW,
    EngineMetrics,
    GatewayMetrics,
    RlMetrics,
    TrainMetrics,
)

RL = dict.fromkeys(RL_ROW, 0.5) | {"step": 3, "skipped": 1.0, "seconds_sample": 2.0, "seconds_update": 4.0}
TRAIN = dict.fromkeys(TRAIN_ROW, 0.25) | {
    "step": 7,
    "skipped": 0.0,
    "heldout_loss": 9.0,
    "tokens": 30.0,
    "worker_tokens_per_second": [10.0, 20.0],
    "seconds_forward": 1.5,
    "seconds_data": 0.0,
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Any) -> None:
    assert re.fullmatch(r"triptych_(gateway|train|rl)_[a-z0-9_]+", metric.name)
    assert metric.exported == f"ray_{metric.name}"
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".")
    assert set(metric.labels) <= {"model", "outcome", "code", "run", "stage", "part", "phase", "worker", "looks_like"}


def test_every_name_is_defined_once() -> None:
    assert len(METRICS) == len(set(METRICS.values())) >= 30


@pytest.fixture(scope="module")
def scraped() -> Iterator[dict[str, Family]]:
    """What a node's metrics port says after two processes emitted everything."""
    import ray

    class Emits:
        def emit(self) -> None:
            self.train, self.rl = TrainMetrics("reviews", "sft"), RlMetrics("reviews", "ppo")
            self.train.record(TRAIN)
            self.train.record({"skipped": 1.0, "tokens": 12.0, "seconds_forward": math.nan})
            self.diverged = TrainMetrics("reviews", "diverged")
            self.diverged.record({"loss": 1.0})
            self.diverged.record({"loss": math.nan})
            for _ in range(2):
                self.rl.record(RL)
            self.gateway = GatewayMetrics()
            for outcome in ("ok", "error", "cancelled"):
                self.gateway.started("reviews-ppo@1")
                if outcome == "ok":
                    self.gateway.first_token("reviews-ppo@1", 0.07)
                    self.gateway.finished("reviews-ppo@1", seconds=0.7, prompt_tokens=20, completion_tokens=30)
                elif outcome == "error":
                    self.gateway.failed("reviews-ppo@1", "overloaded")
                else:
                    self.gateway.cancelled("reviews-ppo@1")
            self.gateway.started("reviews-sft@2")
            self.gateway.rejected("model_not_found")
            self.gateway.unreadable(1)
            self.engine = EngineMetrics()
            self.engine.adapter_effect("reviews-ppo@1", "right", 0.99)

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    ray.init("local", num_cpus=1, num_gpus=0, include_dashboard=False)
    try:
        emits: Any = ray.remote(Emits)
        actors = [emits.options(num_cpus=0).remote() for _ in range(2)]
        ray.get([actor.emit.remote() for actor in actors])
        node = ray.nodes()[0]
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        wanted = {metric.exported for metric in METRICS.values()}
        _scrape(url, wanted, workers=2)
        time.sleep(4)  # Ray drops a gauge that was not set for two intervals
        yield _scrape(url, wanted, workers=2)
    finally:
        ray.shutdown()
        monkeypatch.undo()


def _scrape(url: str, wanted: set[str], workers: int) -> dict[str, Family]:
    """Families by sample name (a counter's with `_total`), once all wanted ones came from every worker."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
        complete = all(
            len({sample.labels["WorkerId"] for sample in found[name].samples}) == workers
            for name in wanted & found.keys()
        )
        if wanted <= found.keys() and complete:
            return found
        assert time.monotonic() < deadline, f"not exported: {sorted(wanted - found.keys())}"
        time.sleep(0.5)


def _one(family: Family, worker: str | None = None, **labels: str) -> Sample:
    """The sample with these labels of one process."""
    worker = worker or family.samples[0].labels["WorkerId"]
    matching = [s for s in family.samples if {"WorkerId": worker, **labels}.items() <= s.labels.items()]
    assert len(matching) == 1
    return matching[0]


@pytest.mark.slow
@pytest.mark.cluster
def test_kinds_and_labels_arrive(scraped: dict[str, Family]) -> None:
    for metric in METRICS.values():
        family = scraped[metric.exported]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        assert all(set(metric.labels) <= sample.labels.keys() for sample in family.samples)


@pytest.mark.slow
@pytest.mark.cluster
def test_training_values(scraped: dict[str, Family]) -> None:
    stage = {"run": "reviews", "stage": "sft"}
    assert _one(scraped["ray_triptych_train_loss"], **stage).value == 0.25
    assert {sample.labels["stage"] for sample in scraped["ray_triptych_train_loss"].samples} == {"sft"}  # NaN: a gap
    assert _one(scraped["ray_triptych_train_step"], **stage).value == 7
    assert _one(scraped["ray_triptych_train_non_finite_steps_total"], **stage).value == 1
    assert _one(scraped["ray_triptych_train_tokens_total"], **stage).value == 42
    rates = scraped["ray_triptych_train_worker_tokens_per_second"].samples
    assert {(sample.labels["worker"], sample.value) for sample in rates} == {("0", 10.0), ("1", 20.0)}
    assert _one(scraped["ray_triptych_train_seconds_total"], **stage).value == 1.5  # zero and NaN parts add nothing


@pytest.mark.slow
@pytest.mark.cluster
def test_rl_values(scraped: dict[str, Family]) -> None:
    assert _one(scraped["ray_triptych_rl_policy_version"]).value == 3
    assert _one(scraped["ray_triptych_rl_reward_mean"]).value == 0.5
    assert _one(scraped["ray_triptych_rl_non_finite_steps_total"]).value == 2
    seconds = scraped["ray_triptych_rl_seconds_total"]
    assert _one(seconds, phase="sample").value == 4
    assert _one(seconds, phase="update").value == 8


@pytest.mark.slow
@pytest.mark.cluster
def test_gateway_values(scraped: dict[str, Family]) -> None:
    requests = scraped["ray_triptych_gateway_requests_total"]
    for outcome in ("ok", "error", "cancelled"):
        assert _one(requests, model="reviews-ppo@1", outcome=outcome).value == 1
    assert _one(requests, model=OTHER, outcome="error").value == 1
    errors = scraped["ray_triptych_gateway_errors_total"]
    assert _one(errors, code="overloaded").labels["model"] == "reviews-ppo@1"
    assert _one(errors, code="model_not_found").labels["model"] == OTHER
    assert _one(scraped["ray_triptych_gateway_prompt_tokens_total"]).value == 20
    assert _one(scraped["ray_triptych_gateway_completion_tokens_total"]).value == 30
    in_flight = scraped["ray_triptych_gateway_in_flight_requests"]
    assert _one(in_flight, model="reviews-ppo@1").value == 0
    assert _one(in_flight, model="reviews-sft@2").value == 1
    first = scraped["ray_triptych_gateway_time_to_first_token_seconds"]
    assert _one(first, le="0.05").value == 0
    assert _one(first, le="0.1").value == 1
