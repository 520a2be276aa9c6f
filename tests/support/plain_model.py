"""Attachments on a plain transformers model: what their tests have in common."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.methods.base import Attachment
from triptych.models.base import load_causal_lm
from triptych.models.quantize import quantize_linears
from triptych.models.sizes import Tensors

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


def assert_counted(counted: Iterable[Tensors], attachment: Attachment) -> None:
    """What the plan counts of a method is what it adds."""
    expected: Counter[tuple[int, ...]] = Counter()
    for tensors in counted:
        expected[tensors.shape] += tensors.count
    assert expected == Counter(tuple(p.shape) for p in attachment.parameters().values())


def gradients_in_half(
    folder: Path, attach: Callable[[Any], Attachment], dtype: torch.dtype, *, quantized: bool
) -> dict[str, Tensor]:
    """Gradients under autocast, on a base in 16 or in 8 bits, where the method changes what the model says."""
    model = load(folder, dtype)
    if quantized:
        quantize_linears(model.model)
    attachment = attach(model)
    attachment.activate(True)
    with torch.autocast("cpu", dtype):
        before = logits(model)
    disturb(attachment)
    with torch.autocast("cpu", dtype):  # another context: each casts a parameter once
        found = gradients(model, attachment)
        assert (logits(model) - before).abs().max() > 0.1
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found.values())
    return found


def gradients(model: Any, attachment: Attachment) -> dict[str, Tensor]:
    """Of the mean logarithm of the probability of the next tokens."""
    logp = model(IDS).logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])
    named = attachment.parameters()
    return dict(zip(named, torch.autograd.grad(logp.mean(), list(named.values())), strict=True))
