"""Linear layers of methods, and the gates of UniPELT."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Affine(nn.Module):
    """W x + b. No `nn.Linear`: a method that adapts all linear layers must not find those of another method."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make weight [outputs, inputs] and bias [outputs], zero at the start."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.weight.dtype)
        return F.linear(x, self.weight, self.bias)


def linear(inputs: int, outputs: int) -> Affine:
    """An affine layer whose weight is initialised as torch's, with a bias of zero."""
    layer = Affine(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    return layer


class Gate(nn.Module):
    """A gate of UniPELT (Mao et al. 2022, arXiv 2110.07577): hidden states [..., d] -> [..., 1], how much a part acts.

    Between 0 and 1, and about one half at first, as in the paper. The paper takes the mean of a gate over its row,
    which in a causal model would let a token see those after it. Here each token has a gate of its own, from its own
    hidden state: so what a row gives depends neither on what is laid beside it nor on how much of it there is yet.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = Affine(hidden, 1)
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))
