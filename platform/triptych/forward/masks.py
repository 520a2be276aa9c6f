"""The masks that a model asks transformers for, against the windows that it tells its attention of.

A layout needs no masks: attention is told of a window. A model that masks otherwise would see too much.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from triptych.errors import UserError
from triptych.forward.attention import packed_attention

PROBED = "triptych_probed"
"""The name of a layout's attention that compares masks and windows."""
_FAR = 2**20
"""A position; a window that shows as many tokens is none."""


class _Mask(Tensor):
    """A mask of no use but for its window."""

    window: int | None


def window_of(sees: Callable[..., Tensor]) -> int | None:
    """The number of last tokens that a mask function of transformers shows; None: all before.

    Raises:
        UserError: it shows others, as in chunks, or those after a token.
    """
    first = torch.zeros(1, dtype=torch.long)
    keys = torch.arange(_FAR + 2)
    windows = set()
    for query in (_FAR, _FAR - 1):
        seen = sees(first, first, torch.tensor([query]), keys).expand(len(keys))
        count = int(seen.sum())
        if not seen[query - count + 1 : query + 1].all():
            raise UserError("model.base: its tokens see other than the last ones before them")
        windows.add(None if count == query + 1 else count)
    if len(windows) > 1:
        raise UserError("model.base: its tokens see more or fewer of those before them by their positions")
    return windows.pop()


def _probed_mask(*, mask_function: Callable[..., Tensor], **_: Any) -> Tensor:
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool).as_subclass(_Mask)
    mask.window = window_of(mask_function)
    return mask


def _probed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    if isinstance(attention_mask, _Mask) and hasattr(attention_mask, "window"):  # a part of one has none
        told = settings.get("sliding_window")
        if attention_mask.window != (told if told is None or told <= _FAR else None):
            raise UserError(
                f"model.base: {type(module).__name__} is masked to the last {attention_mask.window} tokens, and its "
                f"attention is told of a window of {told}"
            )
        attention_mask = None
    return packed_attention(module, query, key, value, attention_mask, **settings)


AttentionInterface.register(PROBED, _probed)
AttentionMaskInterface.register(PROBED, _probed_mask)
