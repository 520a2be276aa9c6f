"""The linear layers of a model, and those of them that a method names."""

import difflib
import inspect
import logging
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from triptych.errors import UserError
from triptych.models.blocks import expert_weights
from triptych.models.quantize import Int8Linear
from triptych.recipe.part import Targets

log = logging.getLogger(__name__)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer of the decoder by its name in the model as it was loaded; what methods have added is left out.

    One that peft has wrapped stands there as its wrapper. Left out are those of which the model itself does more, or
    less, than to call them: routers, which give other things than a product, and layers whose bare weight is read.
    """
    prefix = model.base_model_prefix
    return dict(_walk(getattr(model, prefix), prefix))


def targeted(model: PreTrainedModel, targets: Targets, layers: Sequence[int] | None = None) -> list[str]:
    """Names of the linear layers that `targets` means, of all blocks or of those in `layers`.

    Raises:
        UserError: a target is no linear layer, or there is no such block.
    """
    names = list(linear_layers(model))
    if targets == "all-linear" and (experts := expert_weights(getattr(model, model.base_model_prefix))):
        log.warning(
            "method.targets: all-linear leaves out the experts of this mixture (%s and %d more): they are no linear "
            "layers, and stay as they are",
            experts[0],
            len(experts) - 1,
        )
    if targets != "all-linear":
        endings = sorted({name.rpartition(".")[2] for name in names})
        names = chosen(names, targets, endings)
    if layers is None:
        return names
    count = int(model.config.num_hidden_layers)
    wrong = [number for number in layers if number >= count]
    if wrong:
        raise UserError(f"method.layers: {wrong[0]}; allowed: 0 to {count - 1}")
    return [name for name in names if _block(name) in layers]


def named_norms(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Names of the decoder's norms that end with one of the targets; UserError where a target ends none."""
    prefix = model.base_model_prefix
    modules = ((f"{prefix}.{name}".replace(".base_layer", ""), m) for name, m in getattr(model, prefix).named_modules())
    names = [name for name, m in modules if "norm" in type(m).__name__.lower() and not isinstance(m, BaseTunerLayer)]
    names = list(dict.fromkeys(name for name in names if ".ln_tuning_layers." not in name))
    for target in targets:
        if not any(ends(name, target) for name in names):
            endings = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise UserError(f"method.targets: `{target}` is no norm of this model; allowed: a list of {endings}")
    return [name for name in names if any(ends(name, target) for target in targets)]


def chosen(names: Iterable[str], targets: Sequence[str], endings: Sequence[str]) -> list[str]:
    """The names that end with one of the targets; UserError where a target ends none."""
    names = list(names)
    for target in targets:
        if not any(ends(name, target) for name in names):
            near = difflib.get_close_matches(target, endings, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise UserError(
                f"method.targets: `{target}` is no linear layer of this model{hint}; "
                f"allowed: all-linear, or a list of {', '.join(endings)}"
            )
    return [name for name in names if any(ends(name, target) for target in targets)]


def weight_of(layer: Any) -> Tensor:
    """The weight [out, in] of a linear layer, or of one that peft has wrapped, in float32 or float64."""
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    weight = base.weight.float() * base.scale if isinstance(base, Int8Linear) else dequantize_module_weight(base)
    weight = weight.T if isinstance(base, Conv1D) else weight
    return weight.detach() if weight.dtype == torch.float64 else weight.detach().float()


def shape_of(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, or of one that peft has wrapped."""
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return tuple(base.weight.shape) if isinstance(base, Conv1D) else (base.in_features, base.out_features)


def ends(name: str, ending: str) -> bool:
    """True if a dotted name ends in these parts."""
    return f".{name}".endswith(f".{ending}")


def _block(name: str) -> int:
    """Number of the block that a layer is in; -1 outside."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def _walk(module: Any, name: str) -> Iterable[tuple[str, nn.Module]]:
    own = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(own, nn.Linear | Conv1D):
        if _multiplies(own):
            yield name, module
    elif own is module:
        kind: Any = type(module)
        source = _source(kind)
        for child_name, child in module.named_children():
            if f"self.{child_name}.weight" not in source or not isinstance(child, nn.Linear | BaseTunerLayer):
                yield from _walk(child, f"{name}.{child_name}")


def _multiplies(layer: Any) -> bool:
    """True if a layer gives one product; a router that is written as a linear layer gives choices as well."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    with torch.no_grad():
        return isinstance(layer(layer.weight.new_zeros(1, layer.in_features)), Tensor)


@cache
def _source(kind: type[nn.Module]) -> str:
    """Source of a class's forward and of what it calls of itself; empty where there is none."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
