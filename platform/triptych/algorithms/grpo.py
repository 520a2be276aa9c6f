"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300); Dr. GRPO and DAPO are settings of it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import group_credit, surrogate
from triptych.objectives.masking import LossParts
from triptych.recipe.algorithm import Grpo
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class GroupRelativePolicyOptimization:
    """Clipped surrogate of each token, by its answer's place among the answers to one prompt."""

    stage: Rl
    settings: Grpo
    value_loss: ClassVar[None] = None

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """The standardised reward of an answer, at each of its tokens."""
        return group_credit(scored, self.stage, self.settings, kl_coef)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate."""
        return surrogate(self.settings, logprobs, mask, credit)
