"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import answer_rewards, at_tokens, credited, surrogate
from triptych.objectives.advantages import leave_one_out
from triptych.objectives.masking import LossParts
from triptych.recipe.algorithm import Rloo
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class LeaveOneOut:
    """An answer is one action: its reward, KL included, less the mean of the others to the same prompt."""

    stage: Rl
    settings: Rloo
    value_loss: ClassVar[None] = None

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """The advantage of an answer, at each of its tokens."""
        advantages = leave_one_out(answer_rewards(scored, self.stage, kl_coef), scored.groups)
        return credited(scored, self.stage, at_tokens(advantages, scored.mask))

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate, whose gradient is that of REINFORCE before the first update of a step."""
        return surrogate(self.settings, logprobs, mask, credit)
