"""From logits to log-probabilities. Labels are aligned with the logits that predict them; the caller shifts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.objectives.masking import count_of, widen

IGNORE = -100
"""The label of a position that does not count."""


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each label, in 32 bits or more.

    Args:
        logits: `[..., vocabulary]`.
        labels: `[...]`; -100 where nothing is asked.
        temperature: divides the logits, as in sampling.

    Returns:
        `[...]`, 0 where the label is -100. Only rows with a label are widened, so prompts cost no memory.
    """
    valid = labels != IGNORE
    rows = widen(logits[valid]) / temperature
    out = torch.zeros(labels.shape, dtype=rows.dtype, device=rows.device)
    return out.masked_scatter(valid, -F.cross_entropy(rows, labels[valid], reduction="none"))


def token_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of the distribution at each position that has a label, `[...]`; 0 elsewhere."""
    valid = labels != IGNORE
    logp = F.log_softmax(widen(logits[valid]) / temperature, dim=-1)
    out = torch.zeros(labels.shape, dtype=logp.dtype, device=logp.device)
    # A token of probability 0 adds 0, not 0 * -inf.
    return out.masked_scatter(valid, -torch.where(logp.isinf(), 0.0, logp.exp() * logp).sum(dim=-1))


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`(sum, count)` of the negative log-likelihood over the positions that have a label."""
    return -token_logprobs(logits, labels).sum(), count_of(labels != IGNORE)
