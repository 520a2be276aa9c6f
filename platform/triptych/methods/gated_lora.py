"""LoRA with a gate in each layer: W x + g(x) s B A x, with B = 0 at the start (arXiv 2110.07577, section 2.2).

What it adds is no constant matrix, so it neither merges nor is a LoRA of peft's.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.methods.base import Export
from triptych.methods.hooked import HookedAttachment
from triptych.methods.layers import Gate
from triptych.methods.targets import shape_of, targeted
from triptych.recipe.matrix import GatedLora


class GatedLowRank(nn.Module):
    """A layer's input x [..., in] and output y [..., out] -> y + g(x) s B A x."""

    def __init__(self, inputs: int, outputs: int, method: GatedLora) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(method.r, inputs))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_B = nn.Parameter(torch.zeros(outputs, method.r))
        self.gate = Gate(inputs)
        self.dropout = nn.Dropout(method.dropout)
        self._scaling = method.alpha / method.r

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A.dtype)
        change = F.linear(F.linear(self.dropout(x), self.lora_A) * self.gate(x), self.lora_B)
        return y + (change * self._scaling).to(y.dtype)


def attach(model: PreTrainedModel, method: GatedLora, role: str) -> HookedAttachment:
    """A gated LoRA beside every targeted layer.

    Raises:
        UserError: the targets match no module of the model.
    """
    attachment = HookedAttachment(role)
    hosts = dict(model.named_modules())
    for name in targeted(model, method.targets, method.layers):
        attachment.put(hosts[name], "gated_lora", name, GatedLowRank(*shape_of(hosts[name]), method))
    return attachment


def export(method: GatedLora, state: Mapping[str, Tensor]) -> Export:
    """Its own tensors: peft has no format for gates."""
    return Export(method, dict(state))
