"""Merging of an adapter into the base checkpoint: W + scale * B @ A in float32, tensor by tensor.

For whole models, and methods other than LoRA, an engine gets the new weights themselves.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors

from triptych.errors import RunError
from triptych.models.peft_files import PREFIX, of_module
from triptych.models.weights import weight_files


def lora_scale(config: dict[str, Any], module: str = "") -> float:
    """LoRA's scale of one module: alpha / r, or alpha / sqrt(r) with rslora (Kalajdzievski 2023, arXiv 2312.03732)."""
    r = of_module(config.get("rank_pattern"), module, config["r"])
    alpha = of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / r**0.5 if config.get("use_rslora") else alpha / r)


def lora_pairs(adapter: bytes, config: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base weight name -> (A [r, in], B [out, r]) of a peft adapter.

    Raises:
        RunError: the adapter has parts that merging would leave out.
    """
    unsupported = [k for k in ("use_dora", "modules_to_save") if config.get(k)]
    if config.get("fan_in_fan_out") or config.get("bias", "none") != "none":
        unsupported.append("fan_in_fan_out or bias")
    if unsupported:
        raise RunError(f"an adapter with {', '.join(unsupported)} cannot be merged into rollout engines")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_safetensors(adapter).items():
        module, _, half = name.removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B"):
            raise RunError(
                f"the adapter's tensor {name} is no part of a LoRA: it cannot be merged into rollout engines"
            )
        halves.setdefault(module.removeprefix(PREFIX) + ".weight", {})[half] = tensor
    for name, pair in halves.items():
        for half in ("lora_A", "lora_B"):
            if half not in pair:
                raise RunError(f"the adapter has a part for {name} without {half}")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in halves.items()}


def merged_weights(
    model_dir: Path, adapter: bytes, config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the base checkpoint, with the LoRA added in float32 before the cast to `dtype`.

    Raises:
        RunError: a part of the adapter belongs to no tensor of the checkpoint (it would silently be lost).
    """
    pairs = lora_pairs(adapter, config)
    for name, stored in _stored(model_dir, device):
        weight = stored
        if name in pairs:
            a, b = (half.to(device, torch.float32) for half in pairs.pop(name))
            scale = lora_scale(config, name.removesuffix(".weight"))
            weight = torch.addmm(weight.float(), b, a, alpha=scale)
        yield name, weight.to(device, dtype)
    for name in pairs:
        raise RunError(_no_place(model_dir, name))


def replaced_weights(
    model_dir: Path, buckets: Iterable[bytes], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the checkpoint in `dtype`: first those of the buckets, one bucket after the other, then the rest.

    Raises:
        RunError: a tensor of a bucket is none of the checkpoint, or comes a second time.
    """
    left = {name for file in weight_files(model_dir) for name in _names(file)}
    for bucket in buckets:
        for name, tensor in load_safetensors(bucket).items():
            if name not in left:
                raise RunError(_no_place(model_dir, name))
            left.remove(name)
            yield name, tensor.to(device, dtype)
    for name, weight in _stored(model_dir, device, left):
        yield name, weight.to(device, dtype)


def _stored(
    model_dir: Path, device: torch.device, wanted: set[str] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the checkpoint; `wanted`: names of those that are read, None: all."""
    for file in weight_files(model_dir):
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if wanted is None or name in wanted:
                    yield name, tensors.get_tensor(name)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _no_place(model_dir: Path, name: str) -> str:
    return f"the base model in {model_dir} has no {name}, which the adapter changes"
