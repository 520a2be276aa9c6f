"""Bottleneck adapters: two small layers with a non-linearity between them, beside a block's attention or MLP.

Sequential ones (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv 2005.00247) change a sublayer's
output y before the residual addition: y + s U f(D y). Parallel ones (He et al. 2022, arXiv 2110.04366) read what the
sublayer reads: y + s U f(D x). U and both biases are zero at the start. All are in the form for pre-norm blocks.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.base import Export
from triptych.methods.beside import ModulesBeside
from triptych.recipe.method import Houlsby, ParallelAdapter, Pfeiffer

Config = Houlsby | Pfeiffer | ParallelAdapter

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}


class Affine(nn.Module):
    """W x + b. No `nn.Linear`: a method that adapts all linear layers must not find those of another method."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.weight.dtype)
        return F.linear(x, self.weight, self.bias)


class Bottleneck(nn.Module):
    """A sublayer's input x and output y [..., d] -> its new output."""

    def __init__(self, hidden: int, config: Config, *, dropped: bool) -> None:
        """`dropped`: only training has it (AdapterDrop, Rücklé et al. 2021, arXiv 2010.11918)."""
        super().__init__()
        width = config.width(hidden)
        self.down, self.up = Affine(hidden, width), Affine(width, hidden)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        self.dropout = nn.Dropout(config.dropout)
        self._function = _FUNCTIONS[config.non_linearity]
        self._scaling = config.scaling
        self._parallel = isinstance(config, ParallelAdapter)
        self._dropped = dropped

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self._dropped and not self.training:
            return y
        change = self.up(self._function(self.down(x if self._parallel else y)))
        return y + self.dropout(change * self._scaling).to(y.dtype)


def attach(model: PreTrainedModel, config: Config, role: str) -> ModulesBeside:
    """An adapter of each sublayer that the method names, in every block.

    Raises:
        UserError: the model's blocks have other sublayers, or fewer blocks than are to be dropped.
    """
    blocks = getattr(model, model.base_model_prefix).layers
    if config.drop_layers >= len(blocks):
        raise UserError(
            f"method.drop_layers: {config.drop_layers} of {len(blocks)} layers; allowed: 0 to {len(blocks) - 1}"
        )
    attachment = ModulesBeside(role)
    for number, block in enumerate(blocks):
        for sublayer in config.sublayers:
            host = dict(block.named_children()).get(sublayer)
            if host is None:
                raise UserError(
                    f"method.name: {config.name} stands beside self_attn and mlp, and a {type(block).__name__} has "
                    f"no {sublayer}; allowed: a method that adapts linear layers, such as lora"
                )
            adapter = Bottleneck(model.config.hidden_size, config, dropped=number < config.drop_layers)
            attachment.put(host, "bottleneck", f"layers.{number}.{sublayer}", adapter)
    return attachment


def export(config: Config, state: Mapping[str, Tensor]) -> Export:
    """The adapters' own tensors: neither peft nor transformers has a format for them."""
    return Export(config, dict(state))
