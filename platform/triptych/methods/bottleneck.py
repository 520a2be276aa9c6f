"""Bottleneck adapters: two small layers with a non-linearity between them, beside a block's attention or MLP.

Sequential ones (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021, arXiv 2005.00247) change a sublayer's
output y before the residual addition: y + s U f(D y). Parallel ones (He et al. 2022, arXiv 2110.04366) read what the
sublayer reads: y + s U f(D x). U and both biases are zero at the start. All are in the form for pre-norm blocks. A
gated one (Mao et al. 2022, arXiv 2110.07577) multiplies what it adds by a gate that reads the same.
"""

import random
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.methods.base import Export
from triptych.methods.hooked import HookedAttachment, sublayer
from triptych.methods.layers import Affine, Gate, linear
from triptych.methods.parameters.bottleneck import check_drops
from triptych.models.blocks import decoder_blocks
from triptych.recipe.bottleneck import GatedPfeiffer, Houlsby, ParallelAdapter, Pfeiffer

BottleneckMethod = Houlsby | Pfeiffer | ParallelAdapter | GatedPfeiffer

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}


class Bottleneck(nn.Module):
    """A sublayer's input x and output y [..., d] -> its new output."""

    def __init__(self, hidden: int, config: BottleneckMethod, *, dropped: bool) -> None:
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
        self.left_out = False
        """True in steps that leave the adapter out: it gives nothing, and its gradient is zero, not None."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self._dropped and not self.training:
            return y
        read = x if self._parallel else y
        change = self.up(self._function(self.down(read)))
        if self.gate is not None:
            change = change * self.gate(read)
        scaling = 0.0 if self.left_out and self.training else self._scaling
        return y + self.dropout(change * scaling).to(y.dtype)


class Bottlenecks(HookedAttachment):
    """The adapters of all blocks, of which each step of training may leave some out."""

    def __init__(self, role: str, most: int) -> None:
        """`most`: first blocks that may be left out (robust AdapterDrop, arXiv 2010.11918, section 3)."""
        super().__init__(role)
        self._most = most
        self._blocks: list[tuple[int, Bottleneck]] = []

    def add(self, host: nn.Module, block: int, name: str, adapter: Bottleneck) -> None:
        """Put the adapter of a block beside one of its sublayers."""
        self.put(host, "bottleneck", name, adapter)
        self._blocks.append((block, adapter))

    def begin(self, step: int) -> None:
        """Draw the first blocks that step `step` leaves out; the draw depends on the step alone."""
        dropped = random.Random(step).randint(0, self._most) if self._most else 0
        for block, adapter in self._blocks:
            adapter.left_out = block < dropped


def attach(model: PreTrainedModel, config: BottleneckMethod, role: str) -> Bottlenecks:
    """An adapter of each sublayer that the method names, in every block.

    Raises:
        UserError: the model's blocks have other sublayers, or fewer blocks than are to be dropped.
    """
    blocks = decoder_blocks(model)
    check_drops(config, len(blocks))
    attachment = Bottlenecks(role, config.robust_drop_layers)
    for number, block in enumerate(blocks):
        for place in config.sublayers:
            host = sublayer(block, place, config.name)
            adapter = Bottleneck(model.config.hidden_size, config, dropped=number < config.drop_layers)
            attachment.add(host, number, f"layers.{number}.{place}", adapter)
    return attachment


def export(config: BottleneckMethod, state: Mapping[str, Tensor]) -> Export:
    """The adapters' own tensors: neither peft nor transformers has a format for them."""
    return Export(config, dict(state))
