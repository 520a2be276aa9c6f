"""Charts of a report, and their points from a stage's metrics rows."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MAX_POINTS = 400
"""Longer series are averaged over neighbouring steps: a screen shows no more."""

Point = tuple[float, float]
"""(step, value)."""


@dataclass(frozen=True)
class Series:
    """One named line; points ascend by step."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """Series that share axes. `band`: the second is a deviation around the first; `stack`: shares of a whole."""

    title: str
    note: str
    series: list[Series]
    kind: Literal["line", "band", "stack"] = "line"
    from_zero: bool = False
    """True if the axis starts at 0 whatever the values."""


@dataclass(frozen=True)
class _Plan:
    title: str
    note: str
    keys: tuple[tuple[str, str], ...]
    """(key of the row, name in the legend)."""
    kind: Literal["line", "band", "stack"] = "line"
    from_zero: bool = False


_PLANS = (
    _Plan("Loss", "", (("loss", "train"), ("heldout_loss", "held out"))),
    _Plan("Accuracy", "pairs in order", (("accuracy", "train"), ("heldout_accuracy", "held out"))),
    _Plan("Margin", "chosen less rejected score", (("margin", "train"), ("heldout_margin", "held out"))),
    _Plan(
        "Implicit rewards",
        "beta times the log-ratio to the reference",
        (
            ("rewards_chosen", "chosen"),
            ("rewards_rejected", "rejected"),
            ("heldout_rewards_chosen", "chosen, held out"),
            ("heldout_rewards_rejected", "rejected, held out"),
        ),
    ),
    _Plan("Log-probabilities", "nats an answer", (("logps_chosen", "chosen"), ("logps_rejected", "rejected"))),
    _Plan("Reward", "mean and standard deviation", (("reward", "mean"), ("reward_std", "deviation")), "band"),
    _Plan("Prompts of one score", "share of a step's, from which nothing is learned", (("flat_groups", "prompts"),)),
    _Plan("KL to the reference", "nats a response", (("kl", "train"), ("heldout_kl", "held out"))),
    _Plan("KL to the teacher", "nats a response", (("teacher_kl", "train"), ("heldout_teacher_kl", "held out"))),
    _Plan("Response length", "tokens", (("response_length", "train"), ("heldout_length", "held out"))),
    _Plan("Entropy", "nats a token", (("entropy", "policy"),)),
    _Plan("Clip fraction", "tokens", (("clipped", "policy"), ("value_clipped", "value"))),
    _Plan(
        "Engine against learner", "|log-probability gap|, nats", (("logprob_gap", "mean"), ("logprob_gap_max", "max"))
    ),
    _Plan(
        "Waiting",
        "share of a step",
        (("engines_idle", "engines that do not sample"), ("learner_waits", "learner, for answers")),
        from_zero=True,
    ),
    _Plan("Staleness", "updates since a token was drawn", (("staleness", "mean"), ("staleness_max", "most"))),
    _Plan(
        "Throughput",
        "tokens a second",
        (("tokens_per_second", "learner"), ("rollout_tokens_per_second", "engines")),
        from_zero=True,
    ),
)
_OF_SETS = (
    (r"heldout_([a-z0-9-]+_)?reward", "Held-out reward", ""),
    (r"heldout_[a-z0-9-]+_pass_at_\d+", "Held-out pass@k", "chance that one of k answers is right"),
    (r"heldout_([a-z0-9-]+_)?(judge|watch)", "Held-out watch", "never trained on"),
)
"""Pattern of the metrics of held-out sets that share a chart, its title and its note."""
_LATER = (
    _Plan("Policy loss", "", (("policy_loss", "policy"),)),
    _Plan("Value loss", "", (("value_loss", "value"),)),
    _Plan("Gradient norm", "before clipping", (("grad_norm", "policy"), ("value_grad_norm", "value"))),
    _Plan("Learning rate", "", (("learning_rate", "policy"), ("value_learning_rate", "value"))),
    _Plan("KL coefficient", "", (("kl_coef", "coefficient"),)),
    _Plan("Cut by length", "share of answers", (("truncated", "train"), ("heldout_truncated", "held out"))),
)


def charts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[Chart]]:
    """Charts to show at once, and charts to fold away; together they have every number of the rows."""
    rows = [_derived(row) for row in rows]
    phases = tuple(
        (key, key.removeprefix("seconds_"))
        for key in dict.fromkeys(key for row in rows for key in row)
        if key.startswith("seconds_")
    )
    first = [*_heldout(rows), *_PLANS, _Plan("Where a step's time goes", "seconds", phases, "stack")]
    planned = {key for plan in (*first, *_LATER) for key, _ in plan.keys} | {"step", "step_seconds"}
    rest = sorted({key for row in rows for key in row if key not in planned})
    others = [_Plan(key.replace("_", " ").capitalize(), "", ((key, key),)) for key in rest]
    return _made(first, rows), _made([*_LATER, *others], rows)


def _heldout(rows: Sequence[Mapping[str, Any]]) -> list[_Plan]:
    """Reward, pass@k and what training never sees, of all held-out sets side by side."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith("heldout_")]
    plans = []
    for metric, title, note in _OF_SETS:
        named = [(key, key.removeprefix("heldout_").replace("_", " ")) for key in keys if re.fullmatch(metric, key)]
        plans.append(_Plan(title, note, tuple(named)))
    return plans


def _made(plans: Iterable[_Plan], rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    found = [
        Chart(
            plan.title,
            plan.note,
            [Series(name, points) for key, name in plan.keys if (points := _points(rows, key))],
            plan.kind,
            plan.from_zero,
        )
        for plan in plans
    ]
    return [chart for chart in found if chart.series]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    points = [
        (float(row["step"]), float(row[key]))
        for row in rows
        if _is_number(row.get("step")) and _is_number(row.get(key))
    ]
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    buckets = (points[start : start + size] for start in range(0, len(points), size))
    return [(bucket[-1][0], sum(value for _, value in bucket) / len(bucket)) for bucket in buckets]


def _derived(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the engines' tokens a second to a row of PPO."""
    tokens, seconds = row.get("tokens"), row.get("seconds_sample")
    if _is_number(tokens) and _is_number(seconds) and seconds:
        return {**row, "rollout_tokens_per_second": tokens / seconds}
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
