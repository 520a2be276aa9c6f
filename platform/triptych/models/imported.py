"""Adapters from elsewhere, in peft's two files alone: the recipe's method that computes the same, or a refusal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from triptych.errors import UserError
from triptych.models.lora_config import check_lora_config
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA_FACTOR, PREFIX, of_module
from triptych.recipe.matrix import Dora, Lora
from triptych.recipe.method import Method
from triptych.recipe.virtual import PrefixTuning, PromptTuning

_PROMPT = "prompt_embeddings"
_MAGNITUDE = ".lora_magnitude_vector"
_TYPES = ("LORA", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def read_imported(folder: Path) -> tuple[Method, dict[str, Tensor]]:
    """The method, and its tensors as roles name them.

    Raises:
        UserError: a kind of adapter, or a field of its configuration, that is not computed here; the field is named.
    """
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / ADAPTER_WEIGHTS)
    kind = config.get("peft_type")
    if kind not in _TYPES:
        raise UserError(f"{ADAPTER_CONFIG}: peft_type {kind} is not read from elsewhere; allowed: {', '.join(_TYPES)}")
    if kind == "LORA":
        return _lora(config, weights), weights
    tokens = weights[_PROMPT].shape[0]
    if kind == "PREFIX_TUNING":
        method = PrefixTuning(num_virtual_tokens=tokens, prefix_projection=False, init="random")
        return method, _keys_and_values(config, weights[_PROMPT])
    return PromptTuning(num_virtual_tokens=tokens, init="random"), {_PROMPT: weights[_PROMPT]}


def _lora(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Lora | Dora:
    check_lora_config(config)
    if config.get("target_parameters"):
        raise UserError(f"{ADAPTER_CONFIG}: target_parameters is not read from elsewhere; allowed: linear layers")
    modules = _modules(weights)
    values: dict[str, Any] = {
        "r": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config.get("lora_dropout", 0.0),
        "targets": _targets(config, modules),
        "rslora": config.get("use_rslora", False),
        "rank_pattern": _matching(config.get("rank_pattern"), modules),
        "alpha_pattern": _matching(config.get("alpha_pattern"), modules),
    }
    return Dora(**values) if config.get("use_dora") else Lora(**values)


def _modules(weights: Mapping[str, Tensor]) -> list[str]:
    """Modules that a LoRA changes; UserError at a tensor that belongs to no linear layer."""
    found: dict[str, None] = {}
    for name in weights:
        match = LORA_FACTOR.fullmatch(name)
        module = match["module"] if match and not match["embedding"] else name.removesuffix(_MAGNITUDE)
        if module == name or not name.startswith(PREFIX):
            raise UserError(
                f"{ADAPTER_WEIGHTS}: {name} is no part of a LoRA of linear layers, beyond which no training goes on; "
                "allowed: merge it into the base (`adapters merge`) first"
            )
        found[module.removeprefix(PREFIX)] = None
    return list(found)


def _targets(config: Mapping[str, Any], modules: list[str]) -> tuple[str, ...]:
    """Endings of names where the configuration has them; else, of a pattern or of chosen layers, whole names."""
    given = config.get("target_modules")
    chosen = any(config.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
    return tuple(modules) if chosen or not isinstance(given, list) else tuple(sorted(given))


def _matching(patterns: Mapping[str, Any] | None, modules: list[str]) -> dict[str, Any]:
    """The patterns that some module matches: peft overlooks the others."""
    return {
        key: value
        for key, value in (patterns or {}).items()
        if any(of_module({key: True}, name, default=False) for name in modules)
    }


def _keys_and_values(config: Mapping[str, Any], flat: Tensor) -> dict[str, Tensor]:
    """peft's [P, layers * 2 * K * D] as the keys and values [P, K, D] of each layer."""
    tokens, layers, heads = flat.shape[0], config["num_layers"], config["num_attention_heads"]
    folded = flat.view(tokens, layers, 2, heads, -1).permute(1, 2, 0, 3, 4)
    return {
        f"layer.{number}.{name}": tensor.contiguous()
        for number, pair in enumerate(folded)
        for name, tensor in zip(("key", "value"), pair, strict=True)
    }
