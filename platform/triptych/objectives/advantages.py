"""Advantages: from rewards to what each token is credited with. Nothing here carries a gradient.

Sequences are `[batch, time]` with a mask; 0 marks padding or a hole (a token that the policy did not choose, such as a
tool's answer). A hole is skipped: the successor of a token is the next valid token.
"""

import torch
from torch import Tensor

from triptych.objectives.masking import keep, widen

_ROUNDING = 1e-12
"""Variance below this part of the mean square is rounding, not signal (a spread of 1e-6 of the values)."""


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Args:
        rewards: `[batch, time]`.
        values: `[batch, time]`, the critic's estimate before each token.
        mask: `[batch, time]`, 1 on the policy's tokens.
        gamma: discount a valid token.
        lam: 1 is Monte Carlo, 0 one-step temporal difference.
        bootstrap: `[batch]`, value after the last token of rows cut by length; 0 for rows that ended. None: all 0.

    Returns:
        `(advantages, returns)`, both `[batch, time]`, 0 where the mask is 0; returns = advantages + values.
    """
    rewards, values, valid = keep(rewards, mask), keep(values, mask), mask.bool()
    advantages = torch.zeros_like(values)
    running = values.new_zeros(values.shape[0])
    next_value = torch.zeros_like(running) if bootstrap is None else bootstrap.to(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(valid[:, t], delta + gamma * lam * running, running)
        next_value = torch.where(valid[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(valid[:, t], running, 0.0)
    return advantages, advantages + values


@torch.no_grad()
def discounted(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Discounted reward-to-go `[batch, time]` without a critic, holes skipped (REINFORCE++, arXiv 2501.03262)."""
    rewards, valid = keep(rewards, mask), mask.bool()
    out = torch.zeros_like(rewards)
    running = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        running = torch.where(valid[:, t], rewards[:, t] + gamma * running, running)
        out[:, t] = torch.where(valid[:, t], running, 0.0)
    return out


@torch.no_grad()
def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(n, sum, sumsq)` over the valid positions as 64-bit scalars: add them over ranks and micro-batches."""
    kept = keep(x, mask).to(torch.float64)
    return mask.bool().sum().to(torch.float64), kept.sum(), kept.square().sum()


@torch.no_grad()
def whiten(
    x: Tensor, mask: Tensor, shift_mean: bool = True, moments: tuple[Tensor, Tensor, Tensor] | None = None
) -> Tensor:
    """Valid positions to variance 1 (sample variance, n-1), and to mean 0 unless `shift_mean` is off.

    Args:
        x: any shape.
        mask: same shape.
        shift_mean: False keeps the mean, as for rewards.
        moments: `masked_moments` summed over all ranks; None: of `x` alone.

    Returns:
        Same shape, 0 where the mask is 0. Values without spread become their mean (or 0), never NaN.
    """
    n, total, squares = masked_moments(x, mask) if moments is None else moments
    mean = total / n.clamp(min=1)
    variance = (squares - n * mean.square()) / (n - 1).clamp(min=1)
    flat = (n < 2) | (variance <= _ROUNDING * squares / n.clamp(min=1))
    scale = torch.where(flat, 0.0, variance.clamp(min=torch.finfo(torch.float64).tiny).rsqrt())
    kept = keep(x, mask)
    out = (kept.to(torch.float64) - mean) * scale
    return keep(out if shift_mean else out + mean, mask).to(kept.dtype)


@torch.no_grad()
def group_relative(scores: Tensor, group_ids: Tensor, eps: float = 1e-6, scale: bool = True) -> Tensor:
    """Score against its group: `(s - mean) / (std + eps)`, sample deviation (GRPO, arXiv 2402.03300).

    Args:
        scores: `[n]`.
        group_ids: `[n]` integers in any order; answers to one prompt share one.
        eps: decides what a near-tie is worth.
        scale: False leaves out the division (Dr. GRPO, arXiv 2503.20783).

    Returns:
        `[n]`; exactly 0 in a group without spread, a group of one included.
    """
    group, size, mean, flat = _groups(scores, group_ids)
    centered = widen(scores).to(torch.float64) - mean[group]
    if scale:
        squares = torch.zeros_like(mean).index_add_(0, group, centered.square())
        centered = centered / ((squares / (size - 1).clamp(min=1)).sqrt()[group] + eps)
    return torch.where(flat[group], 0.0, centered).to(widen(scores).dtype)


@torch.no_grad()
def leave_one_out(scores: Tensor, group_ids: Tensor) -> Tensor:
    """Score less the mean of the others of its group, `[n]` (RLOO, arXiv 2402.14740); 0 where there is no spread."""
    group, size, mean, flat = _groups(scores, group_ids)
    factor = size / (size - 1).clamp(min=1)
    out = (widen(scores).to(torch.float64) - mean[group]) * factor[group]
    return torch.where(flat[group], 0.0, out).to(widen(scores).dtype)


def _groups(scores: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index of each score's group `[n]`; size, mean and "all equal" of each group `[groups]`, in 64 bits."""
    _, group, counts = group_ids.unique(return_inverse=True, return_counts=True)
    exact, size = scores.to(torch.float64), counts.to(torch.float64)
    zeros = torch.zeros_like(size)
    mean = zeros.index_add(0, group, exact) / size
    high = zeros.scatter_reduce(0, group, exact, "amax", include_self=False)
    low = zeros.scatter_reduce(0, group, exact, "amin", include_self=False)
    return group, size, mean, high == low
