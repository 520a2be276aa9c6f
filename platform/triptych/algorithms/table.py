"""The algorithms, by name."""

from collections.abc import Callable

from triptych.algorithms.base import Algorithm
from triptych.algorithms.ppo import ProximalPolicyOptimization
from triptych.recipe.rl import Rl

ALGORITHMS: dict[str, Callable[[Rl], Algorithm]] = {"ppo": ProximalPolicyOptimization}


def algorithm_of(stage: Rl) -> Algorithm:
    """The stage's algorithm, with the stage's settings."""
    return ALGORITHMS[stage.algorithm.name](stage)
