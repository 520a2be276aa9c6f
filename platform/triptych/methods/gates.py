"""The gates of UniPELT (Mao et al. 2022, arXiv 2110.07577): how much of a part acts, told from what the part reads.

The paper takes the mean of a gate over its row, which in a causal model would let a token see those after it. Here each
token has a gate of its own, from its own hidden state: so what a row gives depends neither on what is laid beside it
nor on how much of it there is yet.
"""

import torch
from torch import Tensor, nn

from triptych.methods.affine import Affine


class Gate(nn.Module):
    """Hidden states [..., d] -> [..., 1], between 0 and 1; one half at first, as in the paper."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = Affine(hidden, 1)
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))
