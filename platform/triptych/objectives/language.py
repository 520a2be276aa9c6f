"""Log-probabilities and entropy of tokens, from logits. Labels are aligned with them; the caller shifts."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from triptych.objectives import IGNORE
from triptych.objectives.masking import widen


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each label, in 32 bits or more.

    Args:
        logits: `[..., vocabulary]`.
        labels: `[...]`; `IGNORE` where nothing is asked.
        temperature: divides the logits, as in sampling.

    Returns:
        `[...]`, 0 where the label is `IGNORE`. Only rows with a label are widened, so prompts cost no memory.
    """
    valid = labels != IGNORE
    rows = widen(logits[valid])
    rows = rows if temperature == 1.0 else rows / temperature
    out = torch.zeros(labels.shape, dtype=rows.dtype, device=rows.device)
    return out.masked_scatter(valid, -F.cross_entropy(rows, labels[valid], reduction="none"))


def token_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution at each position that has a label, `[...]`; 0 elsewhere."""
    valid = labels != IGNORE
    logp = F.log_softmax(widen(logits[valid]) / temperature, dim=-1)
    out = torch.zeros(labels.shape, dtype=logp.dtype, device=logp.device)
    # A token of probability 0 adds 0, not 0 * -inf.
    return out.masked_scatter(valid, -torch.where(logp.isinf(), 0.0, logp.exp() * logp).sum(dim=-1))


LogitsOf = Callable[[Tensor], Tensor]
"""Hidden states [n, d] -> logits [n, vocabulary]."""


def chunked_logprobs(
    logits_of: LogitsOf, hidden: Tensor, labels: Tensor, temperature: float, chunk: int | None, *, head_trains: bool
) -> Tensor:
    """`token_logprobs` of hidden states [n, d] and labels [n], with the logits of at most `chunk` tokens at once.

    With a frozen head nothing is computed twice: the gradient of a token's log-probability to its hidden state needs
    no other token, and is taken while its logits are there. A head that trains has its logits computed again.
    """
    size = chunk or max(len(hidden), 1)
    if not torch.is_grad_enabled() or not head_trains:
        return _FrozenHead.apply(hidden, labels, logits_of, temperature, size)

    def logprobs(hidden: Tensor, labels: Tensor) -> Tensor:
        return token_logprobs(logits_of(hidden), labels, temperature)

    if chunk is None:
        return logprobs(hidden, labels)
    parts = zip(hidden.split(size), labels.split(size), strict=True)
    return torch.cat([checkpoint(logprobs, h, y, use_reentrant=False) for h, y in parts])


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities [n], and their gradients [n, d] to the hidden states, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, labels: Tensor, logits_of: LogitsOf, temperature: float, chunk: int
    ) -> Tensor:
        differentiate = ctx.needs_input_grad[0]
        logprobs, gradients = [], []
        for h, y in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            with torch.set_grad_enabled(differentiate):
                h = h.detach().requires_grad_(differentiate)
                logits = logits_of(h)
            wide = widen(logits.detach())
            logp = F.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)
            chosen = y[:, None]
            logprobs.append(logp.gather(1, chosen)[:, 0])
            if differentiate:  # (one at the label - softmax) / temperature, in place of what is no longer needed
                slope = logp.exp_().neg_().scatter_add_(1, chosen, torch.ones_like(logprobs[-1])[:, None])
                slope = slope if temperature == 1.0 else slope.div_(temperature)
                gradients += torch.autograd.grad(logits, h, slope.to(logits.dtype))
        if differentiate:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (outer[0][:, None] * gradient).to(gradient.dtype), None, None, None, None
