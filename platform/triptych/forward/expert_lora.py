"""LoRA on the experts of a mixture: each expert's W + s B A is folded once a pass, and the experts compute with it.

peft folds too, by registering parametrizations for the time of a pass, which folds every weight twice. Here the folded
weights stand in for those of the module while it computes: nothing of it changes, for other roles or for a strategy.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.func import functional_call


def fold_experts(layer: nn.Module) -> None:
    """Let peft's wrapper of experts compute this way; any other layer stays as it is."""
    if isinstance(layer, ParamWrapper):
        layer.__dict__["forward"] = partial(_forward, layer)


def _forward(layer: ParamWrapper, *args: Any, **kwargs: Any) -> Any:
    """Output of the experts that the wrapper, and those inside it, stand around."""
    inner: Any = layer
    folded: dict[str, Tensor] = {}
    while isinstance(inner, ParamWrapper):
        active = [] if inner.disable_adapters else [role for role in inner.active_adapters[:1] if role in inner.lora_A]
        for role in active:
            folded[inner.parameter_name] = _folded(inner, role)
        inner = inner.base_layer
    return functional_call(inner, folded, args, kwargs) if folded else inner(*args, **kwargs)


def _folded(layer: Any, role: str) -> Tensor:
    """W + s B A of every expert, in the precision of W, as the model lays W out."""
    left, right, scale = layer.get_delta_factors(role)
    weight = layer.get_param()
    with torch.autocast(weight.device.type, enabled=False):
        return torch.baddbmm(weight, left, right, alpha=scale)
