"""Policy optimisation by clipped importance weights (MiniMax-M1, arXiv 2506.13585)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import group_credit
from triptych.objectives.masking import LossParts
from triptych.objectives.policy import cispo_policy_loss
from triptych.recipe.algorithm import Cispo
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class ClippedImportancePolicyOptimization:
    """GRPO's advantages on log-probabilities, whose ratios are weights without a gradient."""

    stage: Rl
    settings: Cispo
    value_loss: ClassVar[None] = None

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """The standardised reward of an answer, at each of its tokens."""
        return group_credit(scored, self.stage, self.settings, kl_coef)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """Weighted log-probabilities: tokens beyond the clip keep a gradient."""
        bounds = self.settings.bounds
        return cispo_policy_loss(logprobs, credit.old_logprobs, credit.advantages, mask, bounds, credit.weights)
