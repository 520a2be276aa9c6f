"""From losses of tokens to one number: what the sum over a batch is made of, and what it is divided by."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.masking import keep


@dataclass(frozen=True)
class Aggregation:
    """Mean over tokens, over answers, or over a constant.

    A sum and a divisor, each added up over micro-batches and ranks: the mean does not depend on how a batch is cut.
    """

    kind: Literal["token", "sequence", "constant"] = "token"
    """`token`: the mean over all tokens (DAPO, arXiv 2503.14476). `sequence`: the mean of each answer's, then over
    answers (GRPO, arXiv 2402.03300). `constant`: the sum over answers times `longest` (Dr. GRPO, arXiv 2503.20783)."""
    longest: int = 1
    """Most tokens that an answer may have."""

    def shares(self, mask: Tensor) -> Tensor:
        """Factor of each token's loss in the sum, `[answers, time]`; 0 where the mask is 0."""
        ones = keep(torch.ones_like(mask, dtype=torch.float64), mask)
        return ones / ones.sum(dim=-1, keepdim=True).clamp(min=1) if self.kind == "sequence" else ones

    def divisor(self, length: Tensor) -> Tensor:
        """Divisor of the sum, a 64-bit scalar; `length`: tokens of each answer `[answers]`."""
        if self.kind == "token":
            return length.sum().to(torch.float64)
        answers = (length > 0).sum().to(torch.float64)
        return answers if self.kind == "sequence" else answers * self.longest


TOKENS = Aggregation()
"""The mean over all tokens."""
