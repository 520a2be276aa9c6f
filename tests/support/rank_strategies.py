"""Gradients of a strategy on two ranks, with unequal shares of a batch; rank 0 saves them."""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from tests.support.gradient_cases import (
    CASES,
    WHOLE_METHODS,
    few_pairs,
    few_words,
    gradients,
    make_learner,
    make_mixture,
    make_model,
    make_untied,
)

SHARES = ([[0, 1, 2], [3, 4]], [[5, 6, 7], None])  # unequal, and one empty micro-batch


def save_gradients(folder: Path, out: Path, strategy: str) -> None:
    """Of every case and method, in float64, which DeepSpeed does not take; as `<method>-<case>.safetensors`."""
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    for method in ("lora", "full"):
        for case, (objective, make) in CASES.items():
            model = make_model(folder, dtype, roles=(objective.role,), method=method)
            learner = make_learner(model, strategy=strategy)
            batches = [make(share, dtype) if share else None for share in SHARES[dist.get_rank()]]
            _save(out / f"{method}-{case}.safetensors", gradients(learner, objective, batches))


def save_gradients_of_heads(out: Path, strategy: str) -> None:
    """Of a reward model's head and the weights below it; the model's own output head is apart, and reads nothing."""
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    for name, method in WHOLE_METHODS.items():
        learner = make_learner(make_untied(dtype, method), strategy=strategy)
        batches = [few_pairs(share) if share else None for share in SHARES[dist.get_rank()]]
        _save(out / f"{name}.safetensors", gradients(learner, CASES["pairs"][0], batches))


def save_gradients_in_half(folder: Path, out: Path) -> None:
    """Whole models in float32, computed in bfloat16: no weight of a block is copied after it was gathered."""
    objective, make = CASES["language"]
    model = make_model(folder, torch.bfloat16, roles=("policy",), method="full")
    learner = make_learner(model, strategy="fsdp")
    seen = []
    linear = model.blocks()[0].get_submodule("self_attn.q_proj")
    linear.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.dtype))
    batches = [make(share, torch.bfloat16) if share else None for share in SHARES[dist.get_rank()]]
    found = gradients(learner, objective, batches)
    assert set(seen) == {torch.bfloat16}
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    _save(out / "full-bfloat16.safetensors", found)


def freed_by_sharding(folder: Path) -> tuple[int, int]:
    """Bytes that a rank no longer holds of the loaded base, and those of the whole."""
    model = make_model(folder, torch.float32, roles=("policy",), method="lora")
    whole = sum(parameter.nbytes for name, parameter in model.lm.named_parameters() if "lora" not in name)
    loaded = model.loaded_bytes
    make_learner(model, strategy="fsdp")
    return loaded - model.loaded_bytes, whole


def experts_gradients(strategy: str) -> dict[str, Tensor]:
    """Of LoRA on the experts of a mixture, on each rank."""
    learner = make_learner(make_mixture(), strategy=strategy)
    batches = [few_words(share) if share else None for share in SHARES[dist.get_rank()]]
    return gradients(learner, CASES["language"][0], batches)


def _save(path: Path, found: dict[str, Tensor]) -> None:
    if dist.get_rank() == 0:
        save_file({key: tensor.contiguous() for key, tensor in found.items()}, path)
