"""Weights of a base with an adapter from elsewhere in them, as peft itself computes it."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.merged import Merged, layer_weights
from triptych.models.base import load_causal_lm
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from triptych.models.stored import as_saved
from triptych.models.weights import read_weights

_OWN = ".base_layer."
"""In the names of matrices of the base that stand whole beside an adapter's factors."""


def merged_by_peft(base: Path, adapter: Path) -> Merged:
    """The base with an adapter in its weights, its embeddings and its head among them.

    A head that is tied to the embeddings is untied where one of the two is changed.

    Raises:
        UserError: it has no place in the base's weights, or peft leaves some of its tensors out.
    """
    plain, model = read_weights(base), load_causal_lm(base, torch.float32)
    _check_complete(_loaded(model, adapter), adapter)
    layers = dict(_adapted(model))
    if not layers:
        raise UserError(f"{ADAPTER_CONFIG}: its method does not merge: it changes no weights of the base")
    changes = {f"{name}.{own}": value for name, layer in layers.items() for own, value in _weights(layer).items()}
    tables = _tables(model)
    untied = {}
    if model.config.tie_word_embeddings and layers.keys() & tables.keys():
        untied = {f"{name}.weight": value for name, value in tables.items()}
    changes = as_saved(model, untied | changes, base)
    before = {name: plain.get(name, untied.get(name, value)) for name, value in changes.items()}
    return Merged({"tie_word_embeddings": False} if untied else {}, plain | changes, before, model)


def _loaded(model: PreTrainedModel, adapter: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Found missing adapter keys")  # `_check_complete` names them
        found: PeftModel = PeftModel.from_pretrained(model, str(adapter))
        return found.eval()


def _check_complete(found: PeftModel, adapter: Path) -> None:
    """UserError where the file and what peft read of it have not the same tensors."""
    given = {name for name in load_file(adapter / ADAPTER_WEIGHTS) if _OWN not in name}
    read: Mapping[str, Any] = get_peft_model_state_dict(found, save_embedding_layers=False)
    if odd := sorted(given ^ {name for name in read if _OWN not in name}):
        raise UserError(f"{ADAPTER_WEIGHTS}: {odd[0]} and {len(odd) - 1} more tensors are not those of this base")


def _adapted(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name.removesuffix(".base_layer"), module


@torch.no_grad()
def _weights(layer: Any) -> dict[str, Tensor]:
    own = layer.get_base_layer()
    if not isinstance(own, nn.Embedding):
        return layer_weights(layer)
    change: Tensor = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    return {"weight": own.weight + change}


def _tables(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of the embeddings and of the head, by the names of their modules."""
    found = {}
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, module in model.named_modules():
        if any(module is table for table in tables):
            own: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            found[name] = own.weight.detach()
    return found
