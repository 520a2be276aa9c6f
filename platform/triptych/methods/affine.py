"""Linear layers of methods."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Affine(nn.Module):
    """W x + b. No `nn.Linear`: a method that adapts all linear layers must not find those of another method."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Zero at the start."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.weight.dtype)
        return F.linear(x, self.weight, self.bias)


def linear(inputs: int, outputs: int) -> Affine:
    """Initialised as torch's, with a bias of zero."""
    layer = Affine(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    return layer
