"""Proximal policy optimisation with a critic.

Schulman et al. 2017 (arXiv 1707.06347), with the details of Huang et al. 2024 (arXiv 2403.17031).
"""

from dataclasses import dataclass

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import credited, surrogate, token_rewards
from triptych.objectives.advantages import gae, whiten
from triptych.objectives.masking import LossParts
from triptych.objectives.policy import ppo_value_loss
from triptych.recipe.algorithm import Ppo
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class ProximalPolicyOptimization:
    """Clipped policy and value losses, advantages by generalised advantage estimation."""

    stage: Rl
    settings: Ppo

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """Advantages of the tokens' rewards over the critic's values, whitened over the step if the recipe says so."""
        assert scored.values is not None
        settings, mask = self.settings, scored.mask
        rewards = token_rewards(scored, self.stage, kl_coef)
        advantages, returns = gae(rewards, scored.values, mask, settings.gamma, settings.lam)
        if settings.critic.lam is not None:
            _, returns = gae(rewards, scored.values, mask, settings.gamma, settings.critic.lam)
        if settings.whiten:
            advantages = whiten(advantages, mask)
        return credited(scored, self.stage, advantages, returns)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate."""
        return surrogate(self.settings, logprobs, mask, credit)

    def value_loss(self, values: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped squared error."""
        assert credit.old_values is not None
        assert credit.returns is not None
        return ppo_value_loss(values, credit.old_values, credit.returns, mask, self.settings.value_clip)
