"""Evaluation of a reward model on held-out pairs, as text and pictures for a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.errors import RunError
from triptych.observe.report.svg import bars, number
from triptych.observe.runs import StageView


@dataclass(frozen=True)
class RewardView:
    """Texts and SVG of a reward model's evaluation."""

    histogram: str
    """Histogram of score gaps as SVG."""
    ece: str
    bins: list[tuple[str, str, str, str]]
    """(confidence from and to, pairs, mean confidence, accuracy) of those that hold pairs."""
    facts: list[tuple[str, str]]
    """(label, value) of further measurements."""


def view(stage: StageView) -> RewardView | None:
    """View of a stage; None if it measured no reward model. RunError if its report is damaged."""
    report = stage.evaluations.get("reward")
    if report is None:
        return None
    try:
        calibration, gaps = report["calibration"], report["gaps"]
        return RewardView(
            bars("Score gaps of held-out pairs", gaps["edges"], gaps["counts"]),
            number(calibration["ece"]),
            [_bin(found) for found in calibration["bins"] if found["pairs"]],
            [*_length(report["length"], report["accuracy"]), *_others(report)],
        )
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise RunError(f"{stage.url}/evaluations/reward.json is damaged: {error!r}") from error


def _bin(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    confidence = f"{found['low']:.2f} to {found['high']:.2f}"
    return confidence, number(found["pairs"]), _share(found["confidence"]), _share(found["accuracy"])


def _length(probe: Mapping[str, Any], accuracy: float) -> list[tuple[str, str]]:
    shorter, longer, baseline = probe["chosen_shorter"], probe["chosen_longer"], probe["baseline"]
    correlation = probe["correlation"]
    return [
        ("Accuracy", _share(accuracy)),
        (f"Length alone: always the {baseline['prefers']} answer", _share(baseline["accuracy"])),
        (f"Accuracy on the {shorter['pairs']} pairs whose chosen answer is the shorter", _share(shorter["accuracy"])),
        (f"Accuracy on the {longer['pairs']} pairs whose chosen answer is the longer", _share(longer["accuracy"])),
        ("Correlation of score and answer length", "–" if correlation is None else f"{correlation:+.2f}"),
    ]


def _others(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    normalization, prompts = report["normalization"], report["prompts"]
    facts = [
        ("Scores of training answers", f"{number(normalization['mean'])} ± {number(normalization['std'])}"),
        ("Held-out prompts that training had too", f"{prompts['trained_on']} of {prompts['asked']}"),
    ]
    if members := report.get("members"):
        facts += [
            ("Accuracy of each member", ", ".join(_share(value) for value in members["accuracy"])),
            ("Deviation of the members' gaps", number(members["disagreement"])),
            ("Pairs that members order differently", _share(members["split"])),
        ]
    return facts


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
