"""The blocks of a decoder, whatever its family calls them, and the experts in them."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.models.sizes import Experts


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers in their order: the units that are sharded and checkpointed.

    Raises:
        UserError: no list of modules in the decoder is as long as its configuration says.
    """
    decoder = getattr(model, model.base_model_prefix)
    count = int(model.config.num_hidden_layers)
    for module in decoder.modules():  # from the outside in: lists of experts are inside blocks
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"model.base: the decoder of a {type(model).__name__} has no list of {count} blocks (num_hidden_layers); "
        "allowed: models whose blocks lie in one list"
    )


def expert_weights(decoder: nn.Module) -> dict[str, Experts]:
    """Names of the weights that hold a matrix for each expert of a mixture -> experts, inputs, outputs of each.

    transformers has them in modules called `experts`; no linear layer is one of them. Names are those of the model as
    it was loaded, without peft's wrappers, and stand in the order in which a module has them.
    """
    modules: list[tuple[str, Any]] = [(n.replace(".base_layer", ""), m) for n, m in decoder.named_modules()]
    return {
        f"{name}.{own}": _sides(parameter.shape, transposed=getattr(module, "is_transposed", False))
        for name, module in modules
        if f".{name}".endswith(".experts")
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def _sides(shape: tuple[int, ...], *, transposed: bool) -> Experts:
    experts, rows, columns = shape
    return (experts, rows, columns) if transposed else (experts, columns, rows)
