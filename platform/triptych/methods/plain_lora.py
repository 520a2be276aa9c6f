"""Conversion of peft's AdaLoRA, PiSSA and OLoRA to the plain LoRA that computes the same on the same base.

Engines read them as plain LoRA, or not at all: AdaLoRA has a diagonal between its factors, and the others are factors
on a base without the part that they started from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import UserError
from triptych.methods.lora import exact, start_factors
from triptych.models.lora_config import IN_BASE
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, of_module
from triptych.models.weights import weight_files
from triptych.recipe.matrix import Lora, Pissa

_ONLY_ADALORA = (
    "target_r",
    "init_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
)
AdapterTensors = dict[str, Tensor]


def as_plain_lora(folder: Path, base: Path | None) -> str | None:
    """Rewrite an adapter's two files as a plain LoRA; the words for what it was, None where nothing was rewritten.

    Raises:
        UserError: the part of the base that it holds is needed, and the base is not here; or a tensor is missing.
    """
    file = folder / ADAPTER_CONFIG
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    start = config.get("init_lora_weights")
    if config.get("peft_type") == "ADALORA":
        was, (found, tensors) = "AdaLoRA", _from_adalora(config, load_file(folder / ADAPTER_WEIGHTS))
    elif config.get("peft_type") == "LORA" and start in IN_BASE:
        if base is None:
            raise UserError(
                f"{ADAPTER_CONFIG}: init_lora_weights {start}: a part of the base's weights is in the adapter, and the "
                "base is not here; allowed: --base with the base's folder"
            )
        was, (found, tensors) = str(start), _from_start(config, load_file(folder / ADAPTER_WEIGHTS), base)
    else:
        return None
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    file.write_text(json.dumps(found, indent=2, sort_keys=True), encoding="utf-8")
    return was


def _from_adalora(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], AdapterTensors]:
    """B diag(E) A alpha / (init_r + 1e-5), as peft computes it, with E in A; modules without any rank are left out."""
    found: AdapterTensors = {}
    ranks: dict[str, int] = {}
    scaling = (config["lora_alpha"] or config["init_r"]) / (config["init_r"] + 1e-5)
    for name in (name.removesuffix(".lora_E") for name in tensors if name.endswith(".lora_E")):
        a, e, b = (_tensor(tensors, f"{name}.lora_{part}") for part in "AEB")
        if len(a):
            ranks[name.removeprefix(PREFIX)] = len(a)
            found[f"{name}.lora_A.weight"] = (a * e).contiguous()
            found[f"{name}.lora_B.weight"] = (b * scaling).contiguous()
    if not found:
        raise UserError(f"{ADAPTER_WEIGHTS}: holds no triplet of AdaLoRA, whose E is called lora_E")
    # A scaling of alpha / r = 1 for every module.
    kept = {key: value for key, value in config.items() if key not in _ONLY_ADALORA}
    most = max(ranks.values())
    return kept | {
        "peft_type": "LORA",
        "r": most,
        "lora_alpha": most,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "target_modules": sorted(ranks),
        "init_lora_weights": True,
    }, found


def _from_start(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Path
) -> tuple[dict[str, Any], AdapterTensors]:
    """W - s B0 A0 + s B A as W + s [B, -B0] [A; A0]: twice the rank, and the same scaling."""
    if config.get("fan_in_fan_out"):
        raise UserError(f"{ADAPTER_CONFIG}: fan_in_fan_out with init_lora_weights; allowed: a base of linear layers")
    found = dict(tensors)
    for name in (name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")):
        module = name.removeprefix(PREFIX)
        a, b = _tensor(tensors, f"{name}.lora_A.weight"), _tensor(tensors, f"{name}.lora_B.weight")
        method = Pissa(r=len(a)) if config["init_lora_weights"] == "pissa" else Lora(r=len(a), init="olora")
        own = start_factors(method, _weight(base, f"{module}.weight"), len(a), _scaling(config, module, len(a)))
        found[f"{name}.lora_A.weight"] = torch.cat([a, own[0].to(a)]).contiguous()
        found[f"{name}.lora_B.weight"] = torch.cat([b, -own[1].to(b)], dim=1).contiguous()
    factor = 2**0.5 if config.get("use_rslora") else 2
    return dict(config) | {
        "r": 2 * config["r"],
        "lora_alpha": exact(factor * config["lora_alpha"]),
        "rank_pattern": {name: 2 * rank for name, rank in (config.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: exact(factor * a) for name, a in (config.get("alpha_pattern") or {}).items()},
        "init_lora_weights": True,
    }, found


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(of_module(config.get("alpha_pattern"), module, config["lora_alpha"]))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"{ADAPTER_WEIGHTS}: {name} is missing")
    return tensors[name]


def _weight(base: Path, name: str) -> Tensor:
    """A weight of the base, float32."""
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - not a mapping
                return tensors.get_tensor(name).float()
    raise UserError(f"{ADAPTER_WEIGHTS}: the base has no {name}")
