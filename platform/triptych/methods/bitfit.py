"""BitFit: biases alone are trained (Ben Zaken et al. 2022, arXiv 2106.10199).

A role trains the change of each bias, which is added to the layer's output: the same as training the bias itself, and
the base stays frozen for the other roles. The change starts at zero, also where `missing: add` gives a bias to a linear
layer that has none.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from triptych.methods.base import Export
from triptych.methods.hooked import HookedAttachment, HookedModules
from triptych.methods.parameters.base_weights import biased_layers
from triptych.recipe.method import BitFit

_FLAGS = ("attention_bias", "mlp_bias")
"""Fields of config.json that say whether layers have biases, in the families that leave it open."""


class BiasChange(nn.Module):
    """The output y [..., n] of a layer, with a change of its bias."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bias.to(y.dtype)


def attach(model: PreTrainedModel, config: BitFit, role: str) -> HookedAttachment:
    """Changes of the biases that the method names, under the names that the biases have in the base.

    A method that wraps linear layers goes first: the change stands beside what such a layer gives in the end.

    Raises:
        UserError: a target is no layer of the model, or there is no bias to train.
    """
    prefix = model.base_model_prefix
    layers = dict(_layers(getattr(model, prefix), prefix))
    attachment = HookedAttachment(role)
    for name in biased_layers(config, {name: _own(layer).bias is not None for name, layer in layers.items()}):
        attachment.put(layers[name], "bitfit", name, BiasChange(_outputs(_own(layers[name]))))
    return attachment


def export(config: BitFit, state: Mapping[str, Tensor]) -> Export:
    """The changes alone; `merged` makes a whole model of them, where there is one."""
    return Export(config, dict(state))


def merged(
    config: PreTrainedConfig, weights: Mapping[str, Tensor], changes: Mapping[str, Tensor]
) -> tuple[PreTrainedConfig, dict[str, Tensor]] | None:
    """A base's config and weights, with the changes in its biases; None if its architecture has no place for them.

    Llama, for one, has biases if its config says so: then those that are not trained are zero.
    """
    for flags in ((), *((flag,) for flag in _FLAGS), _FLAGS):
        if all(hasattr(config, flag) for flag in flags):
            wanted = deepcopy(config)
            for flag in flags:
                setattr(wanted, flag, True)
            with torch.device("meta"):
                shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(wanted).named_parameters()}
            if changes.keys() <= shapes.keys():
                zero = {name: torch.zeros(shape) for name, shape in shapes.items() if name not in weights}
                found = dict(weights) | zero
                return wanted, found | {name: found[name].to(change) + change for name, change in changes.items()}
    return None


def _layers(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """All linear layers below a module, and all other layers that have a bias, as the adapters of peft wrap them."""
    for name, child in module.named_children():
        own, where = _own(child), f"{path}.{name}"
        if isinstance(own, nn.Linear | Conv1D) or isinstance(getattr(own, "bias", None), nn.Parameter):
            yield where, child
        elif not isinstance(child, HookedModules):
            yield from _layers(child, where)


def _own(layer: nn.Module) -> nn.Module:
    """The base's layer."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.nf if isinstance(layer, Conv1D) else len(layer.bias)  # type: ignore[arg-type]
