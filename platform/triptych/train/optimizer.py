"""Optimizers and learning-rate schedules, built from a recipe's `optimizer`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from triptych.recipe import Optimizer
from triptych.train.optimizers.adamw_8bit import AdamW8bit
from triptych.train.optimizers.lion import Lion
from triptych.train.optimizers.muon import Muon
from triptych.train.optimizers.schedule_free import ScheduleFreeAdamW

_EMBEDDING_OR_HEAD = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|\w*head|score|classifier)(\.|$)")
_VECTOR = re.compile(
    r"(^|\.)(\w*norm\w*|ln_\w+)\.weight$"  # gains, of a head each in some families
    r"|bias$"  # of experts, of heads
    r"|(^|\.)(A_log|D|time_\w+)$"  # of state spaces and RWKV
    r"|(^|\.)(lora_E|ia3_l|boft_s|randlora_lambda|randlora_gamma)$"  # diagonals and scales of adapters
)
"""Names of parameters that are vectors whatever shape they are stored in: gains, biases, scales."""
_LORA_B = re.compile(r"(^|\.)lora_(embedding_)?B(\.|$)")


def build_optimizer(
    named: Mapping[str, nn.Parameter], config: Optimizer, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of these parameters, plain or sharded by rows (DTensor).

    Each group carries `lr_scale`: the caller sets `lr` to the step's rate times it. Vectors never decay, however they
    are stored. `rates`: learning rates of those that have one of their own.
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


def is_vector(name: str, shape: Sequence[int]) -> bool:
    """True for gains, biases and scales, which weight decay and Muon leave alone; of a shape such as [n, 1] too.

    A matrix of one row or column, as of a LoRA of rank 1 or a scalar head, is none.
    """
    one_axis = sum(size > 1 for size in shape) <= 1
    return len(shape) < 2 or (len(shape) > 2 and one_axis) or _VECTOR.search(name) is not None


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
        vector = is_vector(name, parameter.shape)
        decay = 0.0 if vector else config.weight_decay
        hidden = parameter.ndim == 2 and not vector and not _EMBEDDING_OR_HEAD.search(name)
        orthogonal = config.name == "muon" and hidden
        group = groups.setdefault(
            (scale, decay, orthogonal),
            {"params": [], "lr": config.lr * scale, "lr_scale": scale, "weight_decay": decay},
        )
        if config.name == "muon":
            group["orthogonal"] = orthogonal
        group["params"].append(parameter)
    return list(groups.values())
