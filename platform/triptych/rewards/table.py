"""The rewards, by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.recipe import ModelReward
from triptych.rewards.base import RewardFunction, Scorer
from triptych.rewards.function import FunctionScore
from triptych.rewards.http import HttpScore
from triptych.rewards.judge import JudgeScore
from triptych.rewards.model import ModelScore
from triptych.rewards.verifiers import earned, gsm8k, length, reasoning_gym, written_as

REWARDS: dict[str, Callable[[ModelReward, Sequence[str]], RewardFunction]] = {
    "model": lambda settings, roles: ModelScore(roles)
}
"""Name -> from the settings in the recipe, and the roles of the reward model, the reward."""

SCORERS: Mapping[str, Callable[[Any], Scorer]] = {
    "function": FunctionScore.of,
    "gsm8k": gsm8k,
    "reasoning_gym": reasoning_gym,
    "environment": earned,
    "format": written_as,
    "length": length,
    "http": HttpScore.of,
    "judge": JudgeScore.of,
}
"""Name -> from the settings in the recipe, what scores outside the learner. UserError where that cannot be had."""
