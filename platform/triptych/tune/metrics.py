"""The numbers that trials of a stage report, any of which may be an objective."""

from collections.abc import Sequence

from triptych.recipe import Classification, QuestionAnswering, Reward, Sft, Stage, TokenClassification

_OF_ENTITIES = ("precision", "recall", "f1")
COSTS = ("peak_memory_bytes", "step_seconds", "tokens_per_second")
"""What steps cost, on the devices that they ran on."""


def reported_metrics(stage: Stage) -> tuple[str, ...]:
    """Held-out metrics of a stage with held-out rows, training's own, and costs."""
    heldout = _heldout(stage) if stage.data.heldout else ()
    return (*(f"heldout_{name}" for name in heldout), "loss", *COSTS)


def _heldout(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage, Sft):
        return ("loss",)
    if isinstance(stage, Classification):
        return ("loss", "accuracy", "macro_f1", *(f"f1_{label}" for label in stage.labels))
    if isinstance(stage, TokenClassification):
        return ("loss", "accuracy", *(_entities(stage.labels) if stage.mark_entities else ()))
    if isinstance(stage, QuestionAnswering):
        return ("loss", "exact_match", "f1")
    if isinstance(stage, Reward):
        return ("loss", "accuracy", "margin", *(("disagreement",) if stage.members > 1 else ()))
    return ()


def _entities(labels: Sequence[str]) -> tuple[str, ...]:
    """Of whole entities: over all, and by type."""
    kinds = sorted({label.partition("-")[2] for label in labels if label != "O"})
    each = (f"{name}_{kind}" for name in _OF_ENTITIES for kind in kinds)
    return (*_OF_ENTITIES, *each, "macro_f1")
