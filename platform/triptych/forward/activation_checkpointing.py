"""Gradient checkpointing: the backward pass computes a block's activations again in place of keeping them.

Chen et al. 2016, arXiv 1604.06174; selective: Korthikanti et al. 2022, arXiv 2205.05198.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # registers its operator
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from triptych.errors import UserError
from triptych.recipe.training import Checkpointing

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
}
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default}


def checkpoint_blocks(blocks: Sequence[nn.Module], kind: Checkpointing) -> list[nn.Module]:
    """Make transformers' decoder layers checkpoint themselves; those that do."""
    if kind == "none":
        return []
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = _selective
    for block in blocks:
        if not isinstance(block, GradientCheckpointingLayer):
            raise UserError(f"memory.checkpointing: {type(block).__name__} cannot checkpoint; allowed here: none")
        block.gradient_checkpointing = True
        block.__dict__["_gradient_checkpointing_func"] = partial(checkpoint, **settings)
    return list(blocks)


def _selective() -> Any:
    """Keep attention's outputs and every second matrix product of a block."""
    products = {False: 0, True: 0}

    def policy(context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if op in _ATTENTION:
            return CheckpointPolicy.MUST_SAVE
        if op in _PRODUCTS:
            products[context.is_recompute] += 1
            if products[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
