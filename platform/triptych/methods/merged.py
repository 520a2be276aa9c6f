"""Weights of a base with a trained method in them, by the names and in the form of the base's files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from triptych.errors import UserError
from triptych.methods import bitfit
from triptych.methods.apply import apply_method, without_prefix
from triptych.methods.base import Attachment
from triptych.methods.peft_family import PeftAttachment
from triptych.methods.targets import weight_of
from triptych.models.base import load_causal_lm
from triptych.models.quantize import rounded_weights
from triptych.models.stored import as_stored
from triptych.models.weights import read_weights
from triptych.recipe.method import MERGING, BitFit, Method, names_of, parts_of
from triptych.recipe.model import Quantization

_ROLE = "merged"
_ROWS = 1024
"""Unit vectors that a layer is given at once."""


def changed_weights(
    base: Path, method: Method, weights: Mapping[str, Tensor], quantization: Quantization | None = None
) -> dict[str, Tensor]:
    """Every weight and bias of the base that differs under the method; see `WeightChanges`."""
    return WeightChanges(base, method, quantization).of(weights)


class WeightChanges:
    """A base with a method attached, which says for one training state after another what differs; it is read once."""

    def __init__(self, base: Path, method: Method, quantization: Quantization | None = None) -> None:
        """Load the base in float32 on the CPU.

        `quantization`: that of the base it was trained on, whose rounded weights are then among those that differ.

        Raises:
            UserError: the method does not merge.
        """
        check_merges(method)
        self.method, self._base = method, base
        self._model = load_causal_lm(base, torch.float32, quantization=quantization)
        named = self._model.named_parameters()
        self._biases = {name: parameter.detach() for name, parameter in named if name.endswith(".bias")}
        self._parts = apply_method(self._model.eval(), method, _ROLE)

    def of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every weight and bias that differs with these trained weights: name -> new value, float32.

        Raises:
            UserError: the weights are another model's.
        """
        _load(self._parts, weights)
        found = _linear_changes(self._model, self._parts)
        for change in (part for part in self._parts.values() if not isinstance(part, PeftAttachment)):
            for name, value in change.parameters().items():
                if name not in self._biases:
                    raise UserError(f"the base has no {name}, which was trained")
                found[name] = found.get(name, self._biases[name]) + value.detach()
        return as_stored(self._model, found, self._base)


@dataclass(frozen=True)
class Merged:
    """A merged model."""

    config: dict[str, Any]
    """Fields of config.json that differ from the base's."""
    weights: dict[str, Tensor]
    before: dict[str, Tensor]
    """The base's own of the weights that changed, as it was trained on."""
    model: PreTrainedModel
    """The base with the adapter beside its weights."""


def merged_model(
    base: Path, method: Method, weights: Mapping[str, Tensor], quantization: Quantization | None = None
) -> Merged:
    """The base with the method's change in its weights.

    Raises:
        UserError: the method does not merge, or the architecture has no place for what it trained.
    """
    plain = read_weights(base)
    check_merges(method)
    model = load_causal_lm(base, torch.float32, quantization=quantization)
    attached = _attached(model, method, weights)
    changes = as_stored(model, _linear_changes(model, attached), base)
    for part in attached.values():
        part.activate(True)
    own = plain | as_stored(model, rounded_weights(model), base)
    before = {name: own[name] for name in changes if name in own}
    found = Merged({}, plain | changes, before, model)
    biases = [part for part in parts_of(method) if isinstance(part, BitFit)]
    return _with_biases(base, found, _of_part(method, weights, biases[0])) if biases else found


def _of_part(method: Method, weights: Mapping[str, Tensor], part: BitFit) -> Mapping[str, Tensor]:
    return without_prefix(weights, f"{part.name}.") if len(parts_of(method)) > 1 else weights


def _with_biases(base: Path, found: Merged, trained: Mapping[str, Tensor]) -> Merged:
    """A merged model with changed biases, for which its architecture may need other fields of config.json."""
    plain = AutoConfig.from_pretrained(base)
    merged = bitfit.merged(plain, found.weights, trained)
    if merged is None:
        raise UserError("the architecture of this base has no place for the biases that were trained")
    config, weights = merged
    ours = plain.to_dict()
    differing = {key: value for key, value in config.to_dict().items() if ours.get(key) != value}
    own = {name: found.weights.get(name, torch.zeros_like(weights[name])) for name in trained}
    return Merged(differing, weights, own | found.before, found.model)


def _linear_changes(model: PreTrainedModel, parts: Mapping[str, Attachment]) -> dict[str, Tensor]:
    """New values of what peft's layers change, and of all weights that the base keeps rounded."""
    found = rounded_weights(model)
    for part in parts.values():
        if isinstance(part, PeftAttachment):
            part.activate(True)
            for name, layer in part.layers:
                if isinstance(layer, ParamWrapper):
                    change = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
                    found[name.replace(".base_layer", "")] = layer.get_param() + change
                else:
                    found |= {f"{name}.{own}": value for own, value in layer_weights(layer).items()}
    return found


def check_merges(method: Method) -> None:
    """UserError where a part of the method cannot become a part of the base's weights."""
    stuck = [part.name for part in parts_of(method) if part.name not in MERGING]
    if stuck:
        raise UserError(f"{names_of(method)}: {stuck[0]} does not merge; methods that do: {', '.join(MERGING)}")


@torch.no_grad()
def layer_weights(layer: Any) -> dict[str, Tensor]:
    """Weight [out, in], and bias if it has one, of a layer as it computes; found from its answers to unit vectors."""
    if hasattr(layer, "ln_tuning_layers"):
        return {"weight": layer.ln_tuning_layers[layer.active_adapters[0]].weight.detach()}
    inputs = weight_of(layer).shape[1]
    unit = torch.eye(inputs)
    still = layer(torch.zeros(1, inputs))
    found = {"weight": (torch.cat([layer(rows) for rows in unit.split(_ROWS)]) - still).T.contiguous()}
    return found if layer.get_base_layer().bias is None else found | {"bias": still[0]}


def _attached(model: PreTrainedModel, method: Method, weights: Mapping[str, Tensor]) -> dict[str, Attachment]:
    """Attach the method to a model and load its weights: part's name -> attachment."""
    parts = apply_method(model.eval(), method, _ROLE)
    _load(parts, weights)
    return parts


def _load(parts: Mapping[str, Attachment], weights: Mapping[str, Tensor]) -> None:
    """Overwrite all that the parts train and keep; UserError where the names are others."""
    for name, part in parts.items():
        own = without_prefix(weights, f"{name}.") if len(parts) > 1 else weights
        held = {key: tensor.detach() for key, tensor in (part.parameters() | part.buffers()).items()}
        odd = sorted(held.keys() ^ own.keys())
        if odd:
            raise UserError(f"{name}: its tensors are not those of this model, e.g. {odd[:3]}")
        for key, tensor in held.items():
            tensor.copy_(own[key])
