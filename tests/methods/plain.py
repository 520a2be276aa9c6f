"""Attachments on a plain transformers model: what their tests have in common."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.methods.base import Attachment
from triptych.models.base import load_causal_lm

IDS = torch.tensor([[5, 17, 300, 42, 9, 77], [8, 8, 120, 33, 250, 6]])


def load(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    return load_causal_lm(folder, dtype)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def disturb(attachment: Attachment, seed: int = 0) -> None:
    """Away from where a method starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def gradients(model: Any, attachment: Attachment) -> dict[str, Tensor]:
    """Of the mean logarithm of the probability of the next tokens."""
    logp = model(IDS).logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])
    named = attachment.parameters()
    return dict(zip(named, torch.autograd.grad(logp.mean(), list(named.values())), strict=True))
