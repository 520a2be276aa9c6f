"""HTML page of a run, from the files in its folder."""

from dataclasses import dataclass
from typing import Any

from triptych import storage
from triptych.errors import RunError
from triptych.observe import evaluations
from triptych.observe.report import lineage, ranks, reward, samples, series, svg
from triptych.observe.report.template import filled
from triptych.observe.runs import RunView, StageView, read_run

_FIRST_TILES = (
    "heldout_reward",
    "heldout_judge",
    "heldout_watch",
    "heldout_accuracy",
    "heldout_f1",
    "heldout_macro_f1",
    "heldout_exact_match",
    "heldout_loss",
    "heldout_kl",
    "heldout_distinct2",
)
_NAMES = {
    "heldout_kl": "KL, nats a response",
    "heldout_distinct2": "Distinct 2-grams",
    "heldout_length": "Answer length, tokens",
    "heldout_truncated": "Cut by length",
    "heldout_judge": "Independent judge",
    "heldout_watch": "Watch, never trained on",
    "heldout_ece": "Calibration error",
    "heldout_f1": "Held-out F1",
    "heldout_macro_f1": "Held-out macro F1",
}


@dataclass(frozen=True)
class Tile:
    """One metric of held-out data, with its value before training and the change if that was measured."""

    label: str
    value: str
    before: str | None
    change: str | None


def write_report(run_url: str) -> str:
    """Write `report.html` into the run's folder; its path or URL."""
    target = storage.join(run_url, "report.html")
    storage.write_bytes(target, render(read_run(run_url)).encode())
    return target


def render(run: RunView) -> str:
    """Render the page; everything that comes from the run is escaped."""
    model = run.recipe.get("model") or {}
    return filled(
        "page.html.j2",
        run=run,
        base=str(model.get("base", "?")),
        seed=run.recipe.get("seed"),
        lineage=lineage.draw(lineage.nodes(run)),
        stages=[_stage(stage) for stage in run.stages],
    )


def _stage(stage: StageView) -> dict[str, Any]:
    first, later = series.charts(stage.rows)
    return {
        "view": stage,
        "status": stage.status,
        "registered": (stage.summary or {}).get("registered"),
        "sha256": (stage.summary or {}).get("sha256"),
        "steps": stage.rows[-1]["step"] if stage.rows else 0,
        "duration": _duration(sum(_seconds(row) for row in stage.rows)),
        "tiles": tiles(stage),
        "reward": reward.view(stage),
        "compared": _compared(stage),
        "ranks": ranks.view(stage),
        "charts": first,
        "more": later,
        "answers": [(of.removeprefix("."), *samples.pairs(stage.samples, of)) for of in samples.sets(stage.samples)],
        "data": (stage.state or {}).get("data") or {},
    }


def _compared(stage: StageView) -> dict[str, Any] | None:
    """Models, and cells of the table, of a stage that compared models; None for another."""
    found = stage.evaluations.get("comparison")
    if found is None:
        return None
    try:
        return {"models": found["models"], "cells": list(evaluations.cells(found))}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{stage.url}/evaluations/comparison.json is damaged: {error!r}") from error


def tiles(stage: StageView) -> list[Tile]:
    """Tiles of the held-out metrics after the stage; a comparison of models has a table in their place."""
    if "comparison" in stage.evaluations:
        return []
    after = (stage.summary or {}).get("metrics") or stage.evaluations.get("after", {})
    before = {f"heldout_{key}": value for key, value in samples.means(stage.samples.get("before", [])).items()}
    before |= stage.evaluations.get("before", {})
    order = [*(key for key in _FIRST_TILES if key in after), *(key for key in after if key not in _FIRST_TILES)]
    return [_tile(key, after[key], before) for key in order if isinstance(after[key], int | float)]


def _tile(key: str, value: float, before: dict[str, float]) -> Tile:
    label = _NAMES.get(key) or key.replace("heldout_", "Held-out ").replace("_", " ")
    if key not in before:
        return Tile(label, svg.number(value), None, None)
    difference = value - before[key]
    change = f"{difference:+.3g}"
    deviation = before.get("heldout_reward_std", 0.0)
    if key == "heldout_reward" and deviation > 0:
        change += f" ({difference / deviation:+.2f} SD)"
    return Tile(label, svg.number(value), svg.number(before[key]), change)


def _seconds(row: dict[str, Any]) -> float:
    return sum(float(value) for key, value in row.items() if key.startswith("seconds_"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
