"""The linear layers of a model, and those of them that a method names."""

import difflib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from triptych.errors import UserError
from triptych.methods.parameters.matrix import block_of
from triptych.models.blocks import expert_weights
from triptych.models.linears import linear_modules
from triptych.models.quantize import Int8Linear
from triptych.models.sizes import Experts
from triptych.recipe.part import Targets

log = logging.getLogger(__name__)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer of the decoder by its name in the model as it was loaded; what methods have added is left out.

    See `linear_modules` for what counts as one.
    """
    prefix = model.base_model_prefix
    return dict(linear_modules(getattr(model, prefix), prefix))


def targeted(
    model: PreTrainedModel, targets: Targets, layers: Sequence[int] | None = None, *, experts_too: bool = False
) -> list[str]:
    """Names of the linear layers that `targets` means, of all blocks or of those in `layers`.

    `experts_too`: the method reaches the experts of a mixture by itself; of another, a warning says that it does not.

    Raises:
        UserError: a target is no linear layer, or there is no such block.
    """
    names = list(linear_layers(model))
    if targets == "all-linear" and not experts_too:
        _say_experts_stay(model)
    if targets != "all-linear":
        endings = sorted({name.rpartition(".")[2] for name in names})
        names = chosen(names, targets, endings)
    if layers is None:
        return names
    count = int(model.config.num_hidden_layers)
    wrong = [number for number in layers if number >= count]
    if wrong:
        raise UserError(f"method.layers: {wrong[0]}; allowed: 0 to {count - 1}")
    return [name for name in names if block_of(name) in layers]


def experts_of(model: PreTrainedModel) -> dict[str, Experts]:
    """Weights of a mixture's experts by their names in the model as it was loaded -> experts, inputs, outputs."""
    prefix = model.base_model_prefix
    return {f"{prefix}.{name}": sides for name, sides in expert_weights(getattr(model, prefix)).items()}


def _say_experts_stay(model: PreTrainedModel) -> None:
    if experts := list(experts_of(model)):
        log.warning(
            "method.targets: all-linear leaves out the experts of this mixture (%s and %d more): they are no linear "
            "layers, and stay as they are",
            experts[0],
            len(experts) - 1,
        )


def named_norms(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Names of the decoder's norms that end with one of the targets; UserError where a target ends none."""
    prefix = model.base_model_prefix
    modules = ((f"{prefix}.{name}".replace(".base_layer", ""), m) for name, m in getattr(model, prefix).named_modules())
    plain = ((name, module) for name, module in modules if not isinstance(module, BaseTunerLayer))
    names = [name for name, m in plain if "norm" in type(m).__name__.lower() and next(m.parameters(), None) is not None]
    names = list(dict.fromkeys(name for name in names if ".ln_tuning_layers." not in name))
    if not names:
        raise UserError("method.name: no norm of this model has a weight; allowed: another method")
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
