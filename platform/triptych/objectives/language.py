"""Log-probabilities and entropy of tokens, from logits. Labels are aligned with them; the caller shifts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.objectives import IGNORE
from triptych.objectives.chunked import LogitsOf, measured
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


def chunked_logprobs(
    logits_of: LogitsOf, hidden: Tensor, labels: Tensor, temperature: float, chunk: int | None, *, head_trains: bool
) -> Tensor:
    """`token_logprobs` of hidden states [n, d] and labels [n], none of them `IGNORE`; see `measured`."""
    return measured(_Labelled(labels, temperature), logits_of, hidden, chunk, head_trains=head_trains)


@dataclass(frozen=True)
class _Labelled:
    """The log-probability of each token's label."""

    labels: Tensor
    temperature: float

    def value(self, logits: Tensor, rows: slice) -> Tensor:
        return log_softmax(logits, self.temperature).gather(1, self.labels[rows, None])[:, 0]

    def value_and_slope(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The derivative is (one at the label - softmax) / temperature, written over what is no longer needed."""
        logp, chosen = log_softmax(logits, self.temperature), self.labels[rows, None]
        value = logp.gather(1, chosen)[:, 0]
        slope = logp.exp_().neg_().scatter_add_(1, chosen, torch.ones_like(value)[:, None])
        return value, slope if self.temperature == 1.0 else slope.div_(self.temperature)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [..., V], in 32 bits or more."""
    wide = widen(logits)
    return F.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)
