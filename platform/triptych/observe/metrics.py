"""Every Prometheus metric of Triptych: names, kinds, help and labels, and the objects that emit them.

Values go through `ray.util.metrics`; Ray exports them on each node's metrics port with `ray_` before the name:
`Metric.exported` is the name to query, and each process has a `WorkerId` of its own. A histogram's `_sum` is made of
its buckets' middles: take quantiles, not means. Labels are bounded: runs, stages, phases, versions in the registry.
"""

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One Prometheus metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""

    @property
    def exported(self) -> str:
        """The name on Ray's metrics port."""
        return f"ray_{self.name}"


_MODEL = ("model",)
_STAGE = ("run", "stage")
_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REPEAT_S = 1.0
"""Seconds between two settings of a gauge; Ray exports every ten seconds and keeps a value for twenty."""

OTHER = "other"
"""Label of a request whose model is not in the registry."""

GATEWAY_REQUESTS = Metric(
    "triptych_gateway_requests_total",
    "counter",
    "Requests that ended, by adapter version and outcome (ok, error, cancelled).",
    ("model", "outcome"),
)
GATEWAY_ERRORS = Metric(
    "triptych_gateway_errors_total", "counter", "Requests answered with an error, by its code.", ("model", "code")
)
GATEWAY_PROMPT_TOKENS = Metric("triptych_gateway_prompt_tokens_total", "counter", "Tokens of prompts.", _MODEL)
GATEWAY_COMPLETION_TOKENS = Metric("triptych_gateway_completion_tokens_total", "counter", "Tokens of answers.", _MODEL)
GATEWAY_UNREADABLE = Metric(
    "triptych_gateway_unreadable_adapters", "gauge", "Adapter versions left out, for they cannot be read or judged.", ()
)
GATEWAY_IN_FLIGHT = Metric("triptych_gateway_in_flight_requests", "gauge", "Requests under way.", _MODEL)
GATEWAY_FIRST_TOKEN = Metric(
    "triptych_gateway_time_to_first_token_seconds",
    "histogram",
    "From a streamed request's arrival to its first token.",
    _MODEL,
    _SECONDS,
)
GATEWAY_SECONDS = Metric(
    "triptych_gateway_request_seconds", "histogram", "From a request's arrival to its last token.", _MODEL, _SECONDS
)

GATEWAY_ADAPTER_EFFECT = Metric(
    "triptych_gateway_adapter_effect",
    "gauge",
    "Share of an adapter's effect that an engine showed when it had loaded it (1: right), by what it looks like.",
    ("model", "looks_like"),
)

TRAIN_STEP = Metric("triptych_train_step", "gauge", "Optimizer steps done.", _STAGE)
TRAIN_LOSS = Metric("triptych_train_loss", "gauge", "Loss of the last step.", _STAGE)
TRAIN_ACCURACY = Metric(
    "triptych_train_accuracy", "gauge", "Pairs of the last step that the reward model puts in order.", _STAGE
)
TRAIN_TOKENS_PER_SECOND = Metric(
    "triptych_train_tokens_per_second", "gauge", "Tokens, padding excluded, by the seconds of the steps.", _STAGE
)
TRAIN_WORKER_TOKENS_PER_SECOND = Metric(
    "triptych_train_worker_tokens_per_second",
    "gauge",
    "Tokens of each worker, padding excluded, by the seconds that it did not spend on communication.",
    (*_STAGE, "worker"),
)
TRAIN_TOKENS = Metric("triptych_train_tokens_total", "counter", "Tokens trained on, padding excluded.", _STAGE)
TRAIN_MODEL_FLOPS = Metric(
    "triptych_train_model_flops_per_second", "gauge", "FLOP/s that the model needs, of all workers.", _STAGE
)
TRAIN_MFU = Metric(
    "triptych_train_mfu_ratio", "gauge", "Model FLOP/s over the peak of the GPUs, where that is known.", _STAGE
)
TRAIN_MEMORY = Metric(
    "triptych_train_peak_memory_bytes", "gauge", "Peak memory of the worker with most: of its GPU, else in all.", _STAGE
)
TRAIN_GRAD_NORM = Metric("triptych_train_grad_norm", "gauge", "Norm of the gradient before clipping.", _STAGE)
TRAIN_LEARNING_RATE = Metric("triptych_train_learning_rate", "gauge", "Learning rate of the last step.", _STAGE)
TRAIN_NON_FINITE = Metric(
    "triptych_train_non_finite_steps_total", "counter", "Steps skipped: their gradient was not finite.", _STAGE
)
TRAIN_SECONDS = Metric(
    "triptych_train_seconds_total",
    "counter",
    "Seconds by what training waits for (data, forward, backward, communication, optimizer, evaluate, checkpoint, "
    "other).",
    (*_STAGE, "part"),
)

RL_VERSION = Metric("triptych_rl_policy_version", "gauge", "Policy version that the rollout engines run.", _STAGE)
RL_REWARD = Metric("triptych_rl_reward_mean", "gauge", "Mean score of the step's answers.", _STAGE)
RL_REWARD_STD = Metric("triptych_rl_reward_std", "gauge", "Standard deviation of the step's scores.", _STAGE)
RL_REWARD_FAILED = Metric(
    "triptych_rl_reward_failed", "gauge", "Answers of the step that were left out since they have no score.", _STAGE
)
RL_FLAT_GROUPS = Metric(
    "triptych_rl_flat_groups_fraction",
    "gauge",
    "Prompts of the step whose answers all have one score, where an algorithm compares them.",
    _STAGE,
)
RL_KL = Metric("triptych_rl_kl", "gauge", "Mean KL to the reference, nats a response.", _STAGE)
RL_KL_COEF = Metric("triptych_rl_kl_coef", "gauge", "Coefficient of the KL penalty.", _STAGE)
RL_ENTROPY = Metric("triptych_rl_entropy", "gauge", "Mean entropy of the policy, nats a token.", _STAGE)
RL_CLIP_FRACTION = Metric("triptych_rl_clip_fraction", "gauge", "Tokens whose policy gradient was cut.", _STAGE)
RL_LENGTH = Metric("triptych_rl_response_length", "gauge", "Mean tokens of an answer.", _STAGE)
RL_TRUNCATED = Metric("triptych_rl_truncated_fraction", "gauge", "Answers cut by their length.", _STAGE)
RL_GAP = Metric(
    "triptych_rl_logprob_gap", "gauge", "Mean |engine - learner| log-probability of a sampled token, nats.", _STAGE
)
RL_POLICY_LOSS = Metric("triptych_rl_policy_loss", "gauge", "Policy loss of the last step.", _STAGE)
RL_VALUE_LOSS = Metric("triptych_rl_value_loss", "gauge", "Value loss of the last step.", _STAGE)
RL_MEMORY = Metric(
    "triptych_rl_peak_memory_bytes", "gauge", "Peak memory of the learner with most: of its GPU, else in all.", _STAGE
)
RL_GRAD_NORM = Metric("triptych_rl_grad_norm", "gauge", "Norm of the policy's gradient before clipping.", _STAGE)
RL_LEARNING_RATE = Metric("triptych_rl_learning_rate", "gauge", "Learning rate of the policy.", _STAGE)
RL_NON_FINITE = Metric(
    "triptych_rl_non_finite_steps_total", "counter", "Policy updates skipped: gradient not finite.", _STAGE
)
RL_RESTARTS = Metric("triptych_rl_engine_restarts", "gauge", "Rollout engines replaced since the start.", _STAGE)
RL_STALENESS = Metric(
    "triptych_rl_staleness",
    "gauge",
    "Mean updates of the learner since a token was drawn.",
    _STAGE,
)
RL_ENGINES_IDLE = Metric(
    "triptych_rl_engines_idle_fraction", "gauge", "Share of the step in which an engine did not sample.", _STAGE
)
RL_LEARNER_WAITS = Metric(
    "triptych_rl_learner_waits_fraction", "gauge", "Share of the step in which the learner waited for answers.", _STAGE
)
RL_SECONDS = Metric(
    "triptych_rl_seconds_total",
    "counter",
    "Seconds by phase of the step, and of evaluations and checkpoints.",
    (*_STAGE, "phase"),
)

METRICS: dict[str, Metric] = {value.name: value for value in list(globals().values()) if isinstance(value, Metric)}
"""All metrics by name."""

TRAIN_ROW = {
    "step": TRAIN_STEP,
    "loss": TRAIN_LOSS,
    "accuracy": TRAIN_ACCURACY,
    "tokens_per_second": TRAIN_TOKENS_PER_SECOND,
    "model_flops_per_second": TRAIN_MODEL_FLOPS,
    "mfu": TRAIN_MFU,
    "peak_memory_bytes": TRAIN_MEMORY,
    "grad_norm": TRAIN_GRAD_NORM,
    "learning_rate": TRAIN_LEARNING_RATE,
}
"""Key of a row in a stage's metrics log -> gauge."""

RL_ROW = {
    "step": RL_VERSION,
    "reward": RL_REWARD,
    "reward_std": RL_REWARD_STD,
    "reward_failed": RL_REWARD_FAILED,
    "flat_groups": RL_FLAT_GROUPS,
    "kl": RL_KL,
    "kl_coef": RL_KL_COEF,
    "entropy": RL_ENTROPY,
    "clipped": RL_CLIP_FRACTION,
    "response_length": RL_LENGTH,
    "truncated": RL_TRUNCATED,
    "logprob_gap": RL_GAP,
    "policy_loss": RL_POLICY_LOSS,
    "value_loss": RL_VALUE_LOSS,
    "grad_norm": RL_GRAD_NORM,
    "learning_rate": RL_LEARNING_RATE,
    "engine_restarts": RL_RESTARTS,
    "staleness": RL_STALENESS,
    "engines_idle": RL_ENGINES_IDLE,
    "learner_waits": RL_LEARNER_WAITS,
    "peak_memory_bytes": RL_MEMORY,
}
"""Key of a row in the metrics log of a reinforcement-learning stage -> gauge."""


class TrainMetrics:
    """Emits the Prometheus metrics of a supervised stage, with each row of its metrics log."""

    def __init__(self, run: str, stage: str) -> None:
        self._emit = _Emitter({"run": run, "stage": stage})

    def record(self, row: Mapping[str, Any]) -> None:
        """Emit a row: keys of TRAIN_ROW, `skipped`, `tokens`, `worker_tokens_per_second` by rank, `seconds_<part>`."""
        self._emit.row(TRAIN_ROW, row)
        self._emit.add(TRAIN_NON_FINITE, row.get("skipped", 0.0))
        self._emit.add(TRAIN_TOKENS, row.get("tokens", 0.0))
        for worker, rate in enumerate(row.get("worker_tokens_per_second", ())):
            self._emit.set(TRAIN_WORKER_TOKENS_PER_SECOND, rate, worker=str(worker))
        for part, seconds in _seconds(row):
            self._emit.add(TRAIN_SECONDS, seconds, part=part)


class RlMetrics:
    """Emits the Prometheus metrics of a reinforcement-learning stage after each step."""

    def __init__(self, run: str, stage: str) -> None:
        self._emit = _Emitter({"run": run, "stage": stage})

    def record(self, row: Mapping[str, Any]) -> None:
        """Emit a row of the metrics log: keys of RL_ROW, `skipped`, and `seconds_<phase>`."""
        self._emit.row(RL_ROW, row)
        self._emit.add(RL_NON_FINITE, row.get("skipped", 0.0))
        for phase, seconds in _seconds(row):
            self._emit.add(RL_SECONDS, seconds, phase=phase)


class GatewayMetrics:
    """Emits the metrics of a gateway replica. `model` is always a registered version, the base's name, or `OTHER`."""

    def __init__(self) -> None:
        self._emit = _Emitter({})
        self._in_flight: dict[str, int] = {}

    def started(self, model: str) -> None:
        """Count a request that came in; exactly one of `finished`, `failed` and `cancelled` must follow."""
        self._count(model, 1)

    def first_token(self, model: str, seconds: float) -> None:
        """Record the time to the first token of a streamed request, in seconds."""
        self._emit.observe(GATEWAY_FIRST_TOKEN, seconds, model=model)

    def finished(self, model: str, seconds: float, prompt_tokens: int, completion_tokens: int) -> None:
        """Count a request whose answer is complete."""
        self._emit.observe(GATEWAY_SECONDS, seconds, model=model)
        self._emit.add(GATEWAY_PROMPT_TOKENS, prompt_tokens, model=model)
        self._emit.add(GATEWAY_COMPLETION_TOKENS, completion_tokens, model=model)
        self._end(model, "ok")

    def failed(self, model: str, code: str) -> None:
        """Count a request that was answered with an error."""
        self._emit.add(GATEWAY_ERRORS, 1, model=model, code=code)
        self._end(model, "error")

    def cancelled(self, model: str) -> None:
        """Count a request whose client disconnected."""
        self._end(model, "cancelled")

    def rejected(self, code: str) -> None:
        """Count an error before a registered model was found: no key, or no such model."""
        self._emit.add(GATEWAY_ERRORS, 1, model=OTHER, code=code)
        self._emit.add(GATEWAY_REQUESTS, 1, model=OTHER, outcome="error")

    def unreadable(self, versions: int) -> None:
        """Set the number of versions that are left out because they cannot be read or judged."""
        self._emit.set(GATEWAY_UNREADABLE, versions)

    def _end(self, model: str, outcome: str) -> None:
        self._emit.add(GATEWAY_REQUESTS, 1, model=model, outcome=outcome)
        self._count(model, -1)

    def _count(self, model: str, change: int) -> None:
        self._in_flight[model] = self._in_flight.get(model, 0) + change
        self._emit.set(GATEWAY_IN_FLIGHT, self._in_flight[model], model=model)


class EngineMetrics:
    """Emits the metrics of an engine's replica."""

    def __init__(self) -> None:
        self._emit = _Emitter({})

    def adapter_effect(self, model: str, looks_like: str, share: float) -> None:
        """Record what the first check of an adapter version found."""
        self._emit.set(GATEWAY_ADAPTER_EFFECT, share, model=model, looks_like=looks_like)


def _seconds(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(part, seconds) of each key `seconds_<part>` of a row."""
    for key, value in row.items():
        if key.startswith("seconds_"):
            yield key.removeprefix("seconds_"), value


class _Emitter:
    """Ray's metric objects, made at first use, with fixed labels on each.

    Ray forgets a gauge that was not set for some seconds, and a step may take minutes: a thread sets them again.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        from ray.util import metrics

        self._kinds: dict[str, Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._histogram: Any = metrics.Histogram
        self._labels = labels
        self._made: dict[str, Any] = {}
        self._gauges: dict[tuple[str, tuple[str, ...]], Callable[[], None]] = {}
        threading.Thread(target=_keep, args=(weakref.ref(self),), name="metrics", daemon=True).start()

    def row(self, gauges: Mapping[str, Metric], row: Mapping[str, Any]) -> None:
        for key, metric in gauges.items():
            if key in row:
                self.set(metric, row[key])

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge; a value that is not finite ends its series, so that Prometheus shows a gap."""
        key = (metric.name, tuple(labels.values()))
        if not math.isfinite(value):
            self._gauges.pop(key, None)
            return
        self._gauges[key] = partial(self._of(metric).set, float(value), self._labels | labels)
        self._gauges[key]()

    def repeat(self) -> None:
        """Set every gauge to its last value again."""
        for emit in list(self._gauges.values()):
            emit()

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Increase a counter, unless by 0, which Ray refuses, or by a value that is not finite."""
        if value > 0 and math.isfinite(value):
            self._of(metric).inc(float(value), self._labels | labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        # Ray refuses 0 in a histogram too.
        self._of(metric).observe(max(float(value), 1e-9), self._labels | labels)

    def _of(self, metric: Metric) -> Any:
        if metric.name not in self._made:
            self._made[metric.name] = (
                self._histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
                if metric.kind == "histogram"
                else self._kinds[metric.kind](metric.name, metric.help, metric.labels)
            )
        return self._made[metric.name]


def _keep(emitter: "weakref.ref[_Emitter]") -> None:
    """Repeat the emitter's gauges until it is garbage-collected."""
    while True:
        time.sleep(REPEAT_S)
        alive = emitter()
        if alive is None:
            return
        alive.repeat()
        del alive
