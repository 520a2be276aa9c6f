"""The blocks of a decoder, whatever its family calls them."""

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
