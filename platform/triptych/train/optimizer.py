"""Optimizers and learning-rate schedules, built from a recipe's `optimizer`."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from triptych.recipe import Optimizer
from triptych.train.optimizers.adamw_8bit import AdamW8bit
from triptych.train.optimizers.lion import Lion
from triptych.train.optimizers.muon import Muon
from triptych.train.optimizers.schedule_free import ScheduleFreeAdamW

_EMBEDDING_OR_HEAD = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|\w*head|score|classifier)(\.|$)")
_LORA_B = re.compile(r"(^|\.)lora_(embedding_)?B(\.|$)")


def build_optimizer(
    named: Mapping[str, nn.Parameter], config: Optimizer, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of these parameters, plain or sharded by rows (DTensor).

    Each group carries `lr_scale`: the caller sets `lr` to the step's rate times it. Vectors never decay. `rates`:
    learning rates of those that have one of their own.
    """
    groups = _groups(named, config, rates or {})
    if config.name == "adamw":
        return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    if config.name == "adamw_8bit":
        return AdamW8bit(groups, betas=config.betas, eps=config.eps)
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "lion":
        return Lion(groups, betas=config.betas)
    if config.name == "muon":
        return Muon(groups, momentum=config.momentum, betas=config.betas, eps=config.eps)
    return ScheduleFreeAdamW(groups, betas=config.betas, eps=config.eps)


def learning_rate(config: Optimizer, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total`. A decay reaches zero at `total`, and stays there."""
    warmup = round(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    start = total - round(config.decay * total) if config.schedule == "wsd" else warmup
    progress = min(max(step - start, 0) / max(total - start, 1), 1.0)
    if config.schedule in ("linear", "wsd"):
        return config.lr * (1 - progress)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr


def averaging(optimizer: torch.optim.Optimizer, *, on: bool) -> None:
    """Let parameters hold the values to evaluate and export: the average for schedule-free, for others no change.

    Switched off, they are bit by bit what they were: an evaluation leaves no trace in the training.
    """
    if isinstance(optimizer, ScheduleFreeAdamW):
        optimizer.averaging(on)


def _groups(named: Mapping[str, nn.Parameter], config: Optimizer, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        scale = rates.get(name, config.lr) / config.lr
        scale *= config.lora_plus if _LORA_B.search(name) else 1.0
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        orthogonal = config.name == "muon" and parameter.ndim == 2 and not _EMBEDDING_OR_HEAD.search(name)
        group = groups.setdefault(
            (scale, decay, orthogonal),
            {"params": [], "lr": config.lr * scale, "lr_scale": scale, "weight_decay": decay},
        )
        if config.name == "muon":
            group["orthogonal"] = orthogonal
        group["params"].append(parameter)
    return list(groups.values())
