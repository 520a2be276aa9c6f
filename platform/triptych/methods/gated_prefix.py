"""A prefix whose keys and values each token scales by a gate of its own (arXiv 2110.07577, section 2.2).

A token t sees g(t) K and g(t) V of the prefix in place of K and V, and the row's own as they are. The gate reads what
the layer's attention reads.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.methods import prefix
from triptych.methods.base import Attachment, Export, Prefix
from triptych.methods.hooked import HookedAttachment, sublayer
from triptych.methods.layers import Gate
from triptych.models.blocks import decoder_blocks
from triptych.recipe.virtual import GatedPrefix

ARGUMENT = "prefix_gate"
"""Keyword argument of attention for the gates of its tokens, [B, T, 1]."""


class GatedPrefixAttachment(Attachment):
    """A prefix, and a gate before the attention of each block."""

    def __init__(self, inner: prefix.PrefixAttachment, gates: HookedAttachment) -> None:
        self.prefix_length = inner.prefix_length
        self._inner, self._gates = inner, gates

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by the names of their files."""
        return self._inner.parameters() | self._gates.parameters()

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of the state that are not trained."""
        return self._inner.buffers()

    def activate(self, on: bool) -> None:
        """Be a part of the model, or not."""
        self._gates.activate(on)

    def prefix(self) -> Prefix:
        """Function that gives each layer its keys and values in this pass."""
        return self._inner.prefix()


def attach(model: PreTrainedModel, method: GatedPrefix, role: str) -> GatedPrefixAttachment:
    """The prefix of a role, new, and its gates.

    Raises:
        UserError: what a prefix raises, or the model's blocks have no attention that a gate could stand before.
    """
    inner, gates = prefix.attach(model, method, role), HookedAttachment(role)
    for number, block in enumerate(decoder_blocks(model)):
        host = sublayer(block, "self_attn", method.name)
        gates.put_before(host, ARGUMENT, f"gate.{number}", Gate(model.config.hidden_size))
    return GatedPrefixAttachment(inner, gates)


def export(method: GatedPrefix, state: Mapping[str, Tensor]) -> Export:
    """Keys and values alone, which load without an encoder, and the gates, for which peft has no format."""
    gates = {name: tensor for name, tensor in state.items() if name.startswith("gate.")}
    folded = prefix.export(method, {name: tensor for name, tensor in state.items() if name not in gates})
    return Export(folded.method, folded.weights | gates)
