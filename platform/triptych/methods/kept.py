"""Share of a change of weights that rounding leaves, and the precision in which nothing of it is lost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.recipe.model import Dtype

LEAST = 0.99
"""Share of a change that a merge must keep: a LoRA of the usual size keeps 0.9 in bfloat16, and 1.000 in float16."""
ONLY_WIDE = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4", "plamo2"})
"""Values of model_type that engines do not run in float16: their hidden states outgrow it (vLLM refuses the same)."""


@dataclass(frozen=True)
class Kept:
    """Share of a change that rounding to a precision leaves."""

    dtype: Dtype
    share: float
    """Projection of the rounded change on the change, over all tensors; NaN where a value outgrows the precision."""
    least: float
    """The same of the tensor that loses most."""
    tensor: str
    """Name of that tensor; empty where nothing was changed."""

    @property
    def enough(self) -> bool:
        return self.share >= LEAST


def kept_in(dtype: Dtype, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Kept:
    """<round(W + D) - round(W), D> / <D, D>, for weights W before and W + D after, by name.

    1 where rounding is unbiased, less where it is to the nearest and entries of D are too small to move one of W.
    """
    shares: dict[str, tuple[float, float]] = {}
    for name, weight in before.items():
        change = after[name].double() - weight.double()
        rounded = (after[name].to(getattr(torch, dtype)).double() - weight.to(getattr(torch, dtype)).double()).flatten()
        whole = float(change.flatten() @ change.flatten())
        if whole:
            shares[name] = float(rounded @ change.flatten()), whole
    if not shares:
        return Kept(dtype, 1.0, 1.0, "")
    alone = {name: left / whole if math.isfinite(left) else math.nan for name, (left, whole) in shares.items()}
    worst = min(alone, key=lambda name: -math.inf if math.isnan(alone[name]) else alone[name])
    share = sum(left for left, _ in shares.values()) / sum(whole for _, whole in shares.values())
    return Kept(dtype, share if math.isfinite(share) else math.nan, alone[worst], worst)


def chosen_dtype(model_type: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Kept:
    """The narrowest precision that keeps the change, bfloat16 before float16 before float32."""
    half: tuple[Dtype, ...] = ("bfloat16",) if model_type in ONLY_WIDE else ("bfloat16", "float16")
    found = (kept_in(dtype, before, after) for dtype in half)
    return next((one for one in found if one.enough), None) or kept_in("float32", before, after)
