"""The numbers that trials of a stage report, any of which may be an objective."""

from triptych.recipe import Classification, QuestionAnswering, Reward, Sft, Stage, TokenClassification

COSTS = ("peak_memory_bytes", "step_seconds", "tokens_per_second")
"""What steps cost, on the devices that they ran on."""


def reported_metrics(stage: Stage) -> tuple[str, ...]:
    """Held-out metrics of a stage with held-out rows, training's own, and costs."""
    heldout = _heldout(stage) if stage.data.heldout else ()
    return (*(f"heldout_{name}" for name in heldout), *_training(stage), *COSTS)


def _heldout(stage: Stage) -> tuple[str, ...]:
    if isinstance(stage, Sft):
        return ("loss",)
    if isinstance(stage, Classification):
        return ("loss", "accuracy", "macro_f1", *(f"f1_{label}" for label in stage.labels))
    if isinstance(stage, TokenClassification):
        return ("loss", "accuracy")
    if isinstance(stage, QuestionAnswering):
        return ("loss", "exact_match", "f1")
    if isinstance(stage, Reward):
        return ("loss", "accuracy", "margin", "ece")
    return ("reward", "kl", "length")


def _training(stage: Stage) -> tuple[str, ...]:
    return ("loss",)
