"""The blocks of a decoder, whatever its family calls them, and the experts in them."""

from torch import nn
from transformers import PreTrainedModel

from triptych.errors import UserError


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


def expert_weights(decoder: nn.Module) -> list[str]:
    """Names of the weights [experts, ...] that hold a matrix for each expert; no linear layer is one of them."""
    modules = ((name, module) for name, module in decoder.named_modules() if not isinstance(module, nn.Conv1d))
    return [
        f"{name}.{own}"
        for name, module in modules
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
