"""Strategies that spread a model over the workers: one interface, and a class for each."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from triptych.forward.roles import RoleModel
from triptych.recipe import Optimizer
from triptych.recipe.training import StrategyChoice
from triptych.train.group import Group
from triptych.train.strategies.base import Slice, Strategy, Update
from triptych.train.strategies.dense import Dense
from triptych.train.strategies.sharded import Sharded

__all__ = ["Slice", "Strategy", "Update", "initial_placement", "make_strategy"]


def make_strategy(
    name: StrategyChoice, model: RoleModel, optimizers: Mapping[str, Optimizer], group: Group, *, offload: bool = False
) -> Strategy:
    """The strategy over the ranks of `group`; `auto` keeps whole parameters on each."""
    if name == "fsdp":
        return Sharded(model, optimizers, group, offload=offload)
    if name in ("zero1", "zero2", "zero3"):
        from triptych.train.strategies.zero import Zero  # imports DeepSpeed, which takes seconds

        return Zero(model, optimizers, group, stage=int(name[-1]), offload=offload)  # type: ignore[arg-type]
    return Dense(model, optimizers, group)


def initial_placement(base: PreTrainedModel, name: StrategyChoice, device: torch.device) -> PreTrainedModel:
    """The base where a model on `device` starts: moved there, or left in CPU memory until FSDP shards it."""
    return base if name == "fsdp" else base.to(device)
