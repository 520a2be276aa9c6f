"""AdamW and its learning-rate schedule, as a function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from triptych.recipe import Optimizer


def adamw(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(parameters),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: Optimizer, step: int, total: int) -> float:
    """The rate of optimiser step `step` (from 0) of `total`."""
    warmup = round(config.warmup * total)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr
