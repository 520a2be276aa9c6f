"""REINFORCE++ (Hu et al. 2025, arXiv 2501.03262)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import credited, surrogate, token_rewards
from triptych.objectives.advantages import discounted, whiten
from triptych.objectives.masking import LossParts
from triptych.recipe.algorithm import ReinforcePp
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class ReinforcePlusPlus:
    """PPO's clipped surrogate without a critic: rewards-to-go, KL included, whitened over the step."""

    stage: Rl
    settings: ReinforcePp
    value_loss: ClassVar[None] = None

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """The discounted rewards from each token on, with mean 0 and variance 1 over all tokens of the step."""
        rewards = token_rewards(scored, self.stage, kl_coef)
        advantages = whiten(discounted(rewards, scored.mask, self.settings.gamma), scored.mask)
        return credited(scored, self.stage, advantages)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate."""
        return surrogate(self.settings, logprobs, mask, credit)
