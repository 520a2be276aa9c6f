"""The measures, by name."""

from triptych.stages.evaluation.base import MeasureTask
from triptych.stages.evaluation.classes import CLASSIFICATION
from triptych.stages.evaluation.generated import JUDGE, VERIFIER
from triptych.stages.evaluation.harness import LM_EVAL
from triptych.stages.evaluation.language import LOSS, MULTIPLE_CHOICE

MEASURES: dict[str, MeasureTask] = {
    "loss": LOSS,
    "multiple_choice": MULTIPLE_CHOICE,
    "classification": CLASSIFICATION,
    "verifier": VERIFIER,
    "judge": JUDGE,
    "lm_eval": LM_EVAL,
}
"""Name in the recipe -> how it is measured."""
