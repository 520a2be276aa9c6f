"""On-policy distillation (Agarwal et al. 2024, arXiv 2306.13649; as a policy gradient: Gu et al. 2024, 2306.08543)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import credited, surrogate, token_rewards
from triptych.objectives.advantages import discounted
from triptych.objectives.masking import LossParts
from triptych.recipe.algorithm import OnPolicyDistillation
from triptych.recipe.rl import Rl


@dataclass(frozen=True)
class PolicyDistillation:
    """Each token is credited with how much likelier the teacher finds it than the policy does.

    Where the divergence is over the whole vocabulary it stands in the learner's objective (`train/tasks/teaching.py`),
    and tokens are credited with rewards alone.
    """

    stage: Rl
    settings: OnPolicyDistillation
    value_loss: ClassVar[None] = None

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """log teacher - log policy of a token, minus the reverse KL in expectation, and its discounted successors.

        Rewards with a weight, and a KL penalty in the rewards, are added from each token on.
        """
        assert scored.teacher is not None
        rewards = discounted(token_rewards(scored, self.stage, kl_coef), scored.mask, 1.0)
        if self.settings.distilled is not None:
            return credited(scored, self.stage, rewards)
        judged = discounted(scored.teacher - scored.old, scored.mask, self.settings.gamma)
        return credited(scored, self.stage, judged + rewards)

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """The clipped surrogate."""
        return surrogate(self.settings, logprobs, mask, credit)
