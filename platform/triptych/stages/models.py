"""The base model of a stage's workers, on the device that Ray gave them."""

from typing import Any

import ray.train.torch
import torch

from triptych.models.base import load_causal_lm
from triptych.stages.context import StageContext
from triptych.train.roles import RoleModel


def role_model(ctx: StageContext[Any]) -> RoleModel:
    """The frozen base, no role on it yet; what is initialised next is the same on every rank."""
    torch.manual_seed(ctx.recipe.seed)
    base = load_causal_lm(ctx.base_dir, getattr(torch, ctx.recipe.model.dtype))
    return RoleModel(base.to(ray.train.torch.get_device()))  # type: ignore[arg-type]
