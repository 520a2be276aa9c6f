"""The fit of a LoRA's files to a base model: names, shapes and scalings, which engines ignore where they are wrong.

vLLM skips tensors whose names match no layer, copies a narrower matrix into a corner of its slot, and takes no changed
embeddings: the answers would be those of the base, or of neither. peft warns, or raises.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from triptych.errors import UserError
from triptych.models.lora_config import check_lora_config
from triptych.models.meta_sizes import model_on_meta
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA_FACTOR, PREFIX, of_module
from triptych.models.sizes import special_float
from triptych.models.weights import weight_files

_BESIDE = (".base_layer.weight", ".lora_magnitude_vector")
"""Ends of names of what may stand beside the factors: an embedding of the base, and DoRA's lengths."""


@dataclass(frozen=True)
class LoraSite:
    """A layer that LoRA can change: y = W x, or the row of a table."""

    inputs: int
    """Columns of A."""
    outputs: int
    """Rows of B."""


def check_lora_fit(adapter: Path, base: Path | None) -> None:
    """Check that every tensor of a LoRA has its place in the base, and an effect there. Others than LoRA pass.

    Without a base only its configuration is checked.

    Raises:
        UserError: a tensor of `adapter_model.safetensors` that the base has no layer for, of another width, or beside
            the factors and not the base's own; a scaling of nought; a field of `adapter_config.json` by which it is
            more than its factors; the message names it and what the base has.
    """
    file = adapter / ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("peft_type") != "LORA":
        return
    check_lora_config(config)
    if base is None:
        return
    sites = _sites(base)
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        for fault in (*_misplaced(shapes, sites, config), *_without_effect(shapes, config)):
            raise UserError(fault)
        for name in shapes:
            if LORA_FACTOR.fullmatch(name) is None and ".base_layer.weight" in name:
                _check_entire(name, tensors.get_tensor(name), base)


@cache
def _sites(base: Path) -> Mapping[str, LoraSite | None]:
    """Every module of the base by name: its sides, or None where LoRA has no factors for it."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"), object_hook=special_float)
    model = model_on_meta(config, str(base))
    return {name: _site(module) for name, module in model.named_modules()}


def _site(module: nn.Module) -> LoraSite | None:
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, Conv1D):
        return LoraSite(*weight.shape)
    if isinstance(module, nn.Linear):
        return LoraSite(weight.shape[1], weight.shape[0])
    if isinstance(module, nn.Embedding):
        return LoraSite(weight.shape[0], weight.shape[1])
    return None


def _misplaced(
    shapes: Mapping[str, tuple[int, ...]], sites: Mapping[str, LoraSite | None], config: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong with the places of the factors, the first of each kind of fault."""
    for name, shape in shapes.items():
        if (match := LORA_FACTOR.fullmatch(name)) is None:
            if not name.endswith(_BESIDE):
                yield f"{ADAPTER_WEIGHTS}: {name} is no part of a LoRA, and engines would do without it"
            continue
        module = match["module"].removeprefix(PREFIX).replace(".base_layer", "")
        if module not in sites or not name.startswith(PREFIX):
            yield f"{ADAPTER_WEIGHTS}: {name} matches no layer of the base{_near(module, sites)}"
        elif (site := sites[module]) is None:
            if not config.get("target_parameters"):
                yield f"{ADAPTER_WEIGHTS}: {name} is for {module}, which is no linear layer and no table of the base"
        elif match["side"] == "A" and shape[1] != site.inputs:
            yield f"{ADAPTER_WEIGHTS}: {name} has {shape[1]} inputs, and the base's {module} has {site.inputs}"
        elif match["side"] == "B" and shape[0] != site.outputs:
            yield f"{ADAPTER_WEIGHTS}: {name} has {shape[0]} outputs, and the base's {module} has {site.outputs}"


def _near(module: str, sites: Mapping[str, LoraSite | None]) -> str:
    near = difflib.get_close_matches(module, [name for name, site in sites.items() if site is not None], 1, 0.5)
    return f", which has {PREFIX}{near[0]}" if near else ""


def _without_effect(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[str]:
    """Modules whose scaling is nought, or no number."""
    modules = {m["module"].removeprefix(PREFIX) for name in shapes if (m := LORA_FACTOR.fullmatch(name))}
    for module in sorted(modules):
        alpha = of_module(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
        if not isinstance(alpha, int | float) or alpha == 0 or alpha != alpha:
            yield (
                f"{ADAPTER_CONFIG}: the alpha of {module} is {alpha!r}, with which the adapter has no effect there; "
                "allowed: a number other than 0"
            )


def _check_entire(name: str, tensor: torch.Tensor, base: Path) -> None:
    """UserError where a matrix that stands whole beside the factors is not the base's own: engines leave it out."""
    own = name.removeprefix(PREFIX).replace(".base_layer", "")
    for file in weight_files(base):
        with safe_open(file, framework="pt") as tensors:
            if own in tensors.keys():  # noqa: SIM118
                found = tensors.get_tensor(own)
                if found.shape != tensor.shape:
                    raise UserError(
                        f"{ADAPTER_WEIGHTS}: {name} has shape {list(tensor.shape)}, and the base's "
                        f"{list(found.shape)}: a vocabulary that was resized is not served beside a LoRA"
                    )
                if not torch.equal(found.float(), tensor.to(found.dtype).float()):
                    raise UserError(
                        f"{ADAPTER_WEIGHTS}: {name} differs from the base's: trained embeddings beside a LoRA are not "
                        "served; merge them into the base"
                    )
                return
