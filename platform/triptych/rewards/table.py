"""The rewards, by name."""

from collections.abc import Callable, Sequence

from triptych.recipe import ModelReward
from triptych.rewards.base import RewardFunction
from triptych.rewards.model import ModelScore

REWARDS: dict[str, Callable[[ModelReward, Sequence[str]], RewardFunction]] = {
    "model": lambda settings, roles: ModelScore(roles)
}
"""Name -> from the settings in the recipe, and the roles of the reward model, the reward."""
