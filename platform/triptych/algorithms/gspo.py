"""Group sequence policy optimisation (Zheng et al. 2025, arXiv 2507.18071)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import group_credit
from triptych.objectives.masking import LossParts
from triptych.objectives.policy import gspo_policy_loss
from triptych.recipe.algorithm import Gspo
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class GroupSequencePolicyOptimization:
    """GRPO's advantages, with one ratio an answer."""

    stage: Rl
    settings: Gspo
    value_loss: ClassVar[None] = None

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """The standardised reward of an answer, at each of its tokens."""
        return group_credit(scored, self.stage, self.settings, kl_coef)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate of an answer's ratio."""
        old, settings = credit.old_logprobs, self.settings
        return gspo_policy_loss(
            logprobs, old, credit.advantages, mask, settings.bounds, settings.dual_clip, credit.weights
        )
