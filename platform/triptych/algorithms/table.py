"""The algorithms, by name."""

from collections.abc import Callable
from typing import Any

from triptych.algorithms.base import Algorithm
from triptych.algorithms.cispo import ClippedImportancePolicyOptimization
from triptych.algorithms.grpo import GroupRelativePolicyOptimization
from triptych.algorithms.gspo import GroupSequencePolicyOptimization
from triptych.algorithms.opd import PolicyDistillation
from triptych.algorithms.ppo import ProximalPolicyOptimization
from triptych.algorithms.reinforce_pp import ReinforcePlusPlus
from triptych.algorithms.rloo import LeaveOneOut
from triptych.recipe.rl import Rl

ALGORITHMS: dict[str, Callable[[Rl, Any], Algorithm]] = {
    "ppo": ProximalPolicyOptimization,
    "grpo": GroupRelativePolicyOptimization,
    "rloo": LeaveOneOut,
    "reinforce_pp": ReinforcePlusPlus,
    "cispo": ClippedImportancePolicyOptimization,
    "gspo": GroupSequencePolicyOptimization,
    "opd": PolicyDistillation,
}
"""Name -> from the stage, and its settings of the algorithm, the algorithm."""


def algorithm_of(stage: Rl) -> Algorithm:
    """The stage's algorithm, with the stage's settings."""
    return ALGORITHMS[stage.algorithm.name](stage, stage.algorithm)
