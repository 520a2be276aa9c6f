"""Merging of a trained method into the base's weights, for engines and tools that know no adapters."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from triptych.errors import UserError
from triptych.methods import bitfit
from triptych.methods.apply import apply_method, without_prefix
from triptych.methods.base import Attachment
from triptych.methods.peft_family import PeftAttachment
from triptych.methods.targets import linear_layers, weight_of
from triptych.models.adapter import load_adapter
from triptych.models.base import fingerprint, load_causal_lm, plain_tokenizer, resolve_base
from triptych.models.full import save_model
from triptych.models.identity import difference
from triptych.models.peft_files import FACTS
from triptych.models.quantize import Int8Linear
from triptych.models.stored import as_stored
from triptych.models.weights import read_weights
from triptych.recipe.method import MERGING, BitFit, Method, names_of, parts_of
from triptych.recipe.model import Model, Quantization

TEXTS = (
    "The film is a warm and funny story about a family that learns to listen.",
    "Question: A train leaves at 9:40 and takes 85 minutes. When does it arrive? Answer: At 11:05.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "In 1969 two people walked on the Moon; hundreds of millions watched them on television.",
)
"""Texts on which `divergence` compares a merged model with its adapter."""
_KEPT = ("base", "base_fingerprint", "chat_template", "recipe")
"""Facts of an adapter that its merged model keeps."""
_ROLE = "merged"
_ROWS = 1024
"""Unit vectors that a layer is given at once."""


def merge_adapter(adapter: Path, target: Path, base: str, dtype: str, limit: float) -> float | None:
    """Write the base with the adapter in its weights to a new folder; the divergence, where the base was quantized.

    Raises:
        UserError: the folder exists, the base is another than the adapter's, its method does not merge, or, from a
            quantized base, the merged model differs by more than `limit` nats a token.
    """
    if target.exists():
        raise UserError(f"{target} exists already: name a new folder")
    facts: dict[str, Any] = json.loads((adapter / FACTS).read_text())
    folder = resolve_base(Model(base=base))
    if reason := difference(facts["base_fingerprint"], fingerprint(folder, facts.get("chat_template"))):
        raise UserError(
            f"--base: {base} is another model than {facts['base']}, on which the adapter was trained: {reason}"
        )
    found, quantization = load_adapter(adapter, "policy"), facts.get("quantization")
    changes, weights = merged_model(folder, found.method, found.weights, quantization)
    target.mkdir(parents=True)
    about = {key: facts[key] for key in _KEPT if key in facts}
    save_model(target, folder, weights, getattr(torch, dtype), about, changes)
    if quantization is None:
        return None
    merged = load_causal_lm(target, getattr(torch, dtype)).float()
    changed = divergence(folder, found.method, found.weights, quantization, merged)
    if changed > limit:
        shutil.rmtree(target)
        raise UserError(
            f"merged in {dtype} it differs from the adapter on its {quantization} base by {changed:.4f} nats a token; "
            f"allowed: up to {limit} (--limit), or another --dtype"
        )
    return changed


def changed_weights(
    base: Path, method: Method, weights: Mapping[str, Tensor], quantization: Quantization | None = None
) -> dict[str, Tensor]:
    """Every weight and bias of the base that differs under the method: name -> new value, float32, on the CPU.

    `quantization`: that of the base it was trained on, whose rounded weights are then among those that differ.

    Raises:
        UserError: the method does not merge, or the weights are another model's.
    """
    check_merges(method)
    model = load_causal_lm(base, torch.float32, quantization=quantization)
    biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith(".bias")}
    parts = _attached(model, method, weights)
    found = _linear_changes(model, parts)
    for change in (part for part in parts.values() if not isinstance(part, PeftAttachment)):
        for name, value in change.parameters().items():
            if name not in biases:
                raise UserError(f"the base has no {name}, which was trained")
            found[name] = found.get(name, biases[name].detach()) + value.detach()
    return as_stored(model, found, base)


def merged_model(
    base: Path, method: Method, weights: Mapping[str, Tensor], quantization: Quantization | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of config.json that differ, and all weights of the merged model.

    Raises:
        UserError: the method does not merge, or the architecture has no place for what it trained.
    """
    found = read_weights(base)
    check_merges(method)
    model = load_causal_lm(base, torch.float32, quantization=quantization)
    found |= as_stored(model, _linear_changes(model, _attached(model, method, weights)), base)
    parts = parts_of(method)
    biases = [part for part in parts if isinstance(part, BitFit)]
    if not biases:
        return {}, found
    own = without_prefix(weights, f"{biases[0].name}.") if len(parts) > 1 else weights
    merged = bitfit.merged(AutoConfig.from_pretrained(base), found, own)
    if merged is None:
        raise UserError("the architecture of this base has no place for the biases that were trained")
    config, found = merged
    plain = AutoConfig.from_pretrained(base).to_dict()
    return {key: value for key, value in config.to_dict().items() if plain.get(key) != value}, found


def _linear_changes(model: PreTrainedModel, parts: Mapping[str, Attachment]) -> dict[str, Tensor]:
    """New values of what peft's layers change, and of all weights that the base keeps rounded."""
    rounded = {n: m for n, m in linear_layers(model).items() if isinstance(_inner(m), Int8Linear)}
    found = {f"{name}.weight": weight_of(layer) for name, layer in rounded.items()}
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


def _inner(layer: Any) -> Any:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def divergence(
    base: Path, method: Method, weights: Mapping[str, Tensor], quantization: Quantization, merged: PreTrainedModel
) -> float:
    """KL divergence, nats a token of `TEXTS`, of a merged model from the adapter on its rounded base."""
    tokenizer = plain_tokenizer(base)
    model = load_causal_lm(base, torch.float32, quantization=quantization)
    for part in _attached(model, method, weights).values():
        part.activate(True)
    total, count = 0.0, 0
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            trained, found = (m(input_ids=ids).logits[0].float().log_softmax(dim=-1) for m in (model, merged))
            total += float(F.kl_div(found, trained, log_target=True, reduction="sum"))
            count += len(trained)
    return total / count


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
    for name, part in parts.items():
        own = without_prefix(weights, f"{name}.") if len(parts) > 1 else weights
        held = {key: tensor.detach() for key, tensor in (part.parameters() | part.buffers()).items()}
        odd = sorted(held.keys() ^ own.keys())
        if odd:
            raise UserError(f"{name}: its tensors are not those of this model, e.g. {odd[:3]}")
        for key, tensor in held.items():
            tensor.copy_(own[key])
    return parts
