"""The tokenizer and the base model of a stage's workers."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm, model_tokenizer
from triptych.recipe import Memory
from triptych.stages.context import StageContext
from triptych.train.strategies import initial_placement


def tokenizer_of(ctx: StageContext[Any]) -> PreTrainedTokenizerBase:
    """The base's tokenizer."""
    return model_tokenizer(ctx.base_dir, ctx.recipe.model)


def role_model(
    ctx: StageContext[Any], memory: Memory, device: torch.device, *, folder: Path | None = None
) -> RoleModel:
    """The base, no role on it yet; what is initialised next is the same on every rank.

    `folder`: of a whole model in the base's place.
    """
    torch.manual_seed(ctx.recipe.seed)
    settings = ctx.recipe.model
    dtype = getattr(torch, settings.dtype)
    base = load_causal_lm(
        folder or ctx.base_dir, dtype, trust_remote_code=settings.trust_remote_code, quantization=settings.quantization
    )
    return RoleModel(
        initial_placement(base, ctx.stage.workers.strategy, device),
        dtype,
        device=device,
        packing=settings.packing,
        checkpointing=memory.checkpointing,
        loss_chunk=memory.loss_chunk,
    )
