"""The linear layers of a module, whatever its family."""

import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def linear_modules(module: Any, name: str) -> Iterable[tuple[str, nn.Module]]:
    """Linear layers of a module by their names below `name`; one that peft has wrapped stands there as its wrapper.

    Left out are those of which the model itself does more, or less, than to call them: routers, which give other things
    than a product, and layers whose bare weight is read.
    """
    own = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(own, nn.Linear | Conv1D):
        if _multiplies(own):
            yield name, module
    elif own is module:
        kind: Any = type(module)  # mypy takes no class for hashable
        source = _source(kind)
        for child_name, child in module.named_children():
            if f"self.{child_name}.weight" not in source or not isinstance(child, nn.Linear | BaseTunerLayer):
                yield from linear_modules(child, f"{name}.{child_name}")


def _multiplies(layer: Any) -> bool:
    """True if a layer gives one product of a row; a router that is written as a linear layer gives choices as well."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    try:
        with torch.no_grad():
            return isinstance(layer(layer.weight.new_zeros(1, layer.in_features)), Tensor)
    except RuntimeError:  # a row is not all that it takes: a product of groups
        return False


@cache
def _source(kind: type[nn.Module]) -> str:
    """Source of a class's forward and of what it calls of itself; empty where there is none."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
