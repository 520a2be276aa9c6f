"""Proximal policy optimisation with a critic.

Schulman et al. 2017 (arXiv 1707.06347), with the details of Huang et al. 2024 (arXiv 2403.17031).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored, token_rewards
from triptych.objectives.advantages import gae, whiten
from triptych.objectives.masking import LossParts
from triptych.objectives.policy import importance_weights, ppo_policy_loss, ppo_value_loss
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class ProximalPolicyOptimization:
    """Clipped policy and value losses, advantages by generalised advantage estimation."""

    stage: Rl
    needs_reference: ClassVar[bool] = True

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """Advantages of the tokens' rewards over the critic's values, whitened over the step if the recipe says so."""
        assert scored.values is not None
        settings, importance, mask = self.stage.algorithm, self.stage.importance, scored.mask
        rewards = token_rewards(scored, self.stage, kl_coef)
        advantages, returns = gae(rewards, scored.values, mask, settings.gamma, settings.lam)
        if settings.whiten:
            advantages = whiten(advantages, mask)
        weights = importance_weights(scored.old, scored.rollout, mask, level=importance.level, cap=importance.cap)
        return Credit(scored.old, advantages, weights, scored.values, returns)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate."""
        clip = self.stage.algorithm.clip
        return ppo_policy_loss(logprobs, credit.old_logprobs, credit.advantages, mask, clip, weights=credit.weights)

    def value_loss(self, values: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped squared error."""
        assert credit.old_values is not None
        assert credit.returns is not None
        return ppo_value_loss(values, credit.old_values, credit.returns, mask, self.stage.algorithm.value_clip)
