"""Bottleneck adapters: two small layers with a non-linearity between them, beside a block's attention or MLP.

Sequential ones (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv 2005.00247) change a sublayer's
output y before the residual addition: y + s U f(D y). Parallel ones (He et al. 2022, arXiv 2110.04366) read what the
sublayer reads: y + s U f(D x). U and both biases are zero at the start. All are in the form for pre-norm blocks. A
gated one (Mao et al. 2022, arXiv 2110.07577) multiplies what it adds by a gate that reads the same.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.affine import Affine, linear
from triptych.methods.base import Export
from triptych.methods.beside import ModulesBeside, sublayer
from triptych.methods.gates import Gate
from triptych.recipe.method import GatedPfeiffer, Houlsby, ParallelAdapter, Pfeiffer

Config = Houlsby | Pfeiffer | ParallelAdapter | GatedPfeiffer

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}


class Bottleneck(nn.Module):
    """A sublayer's input x and output y [..., d] -> its new output."""

    def __init__(self, hidden: int, config: Config, *, dropped: bool) -> None:
        """`dropped`: only training has it (AdapterDrop, Rücklé et al. 2021, arXiv 2010.11918)."""
        super().__init__()
        width = config.width(hidden)
        self.down, self.up = linear(hidden, width), Affine(width, hidden)
        self.gate = Gate(hidden) if isinstance(config, GatedPfeiffer) else None
        self.dropout = nn.Dropout(config.dropout)
        self._function = _FUNCTIONS[config.non_linearity]
        self._scaling = config.scaling
        self._parallel = isinstance(config, ParallelAdapter)
        self._dropped = dropped

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self._dropped and not self.training:
            return y
        read = x if self._parallel else y
        change = self.up(self._function(self.down(read)))
        if self.gate is not None:
            change = change * self.gate(read)
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
        for place in config.sublayers:
            host = sublayer(block, place, config.name)
            adapter = Bottleneck(model.config.hidden_size, config, dropped=number < config.drop_layers)
            attachment.put(host, "bottleneck", f"layers.{number}.{place}", adapter)
    return attachment


def export(config: Config, state: Mapping[str, Tensor]) -> Export:
    """The adapters' own tensors: neither peft nor transformers has a format for them."""
    return Export(config, dict(state))
