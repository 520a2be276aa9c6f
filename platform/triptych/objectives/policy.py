"""Losses of policy and critic, and the correction for samples of an engine that computes a little differently."""

from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.masking import LossParts, count_of, keep, widen

_MAX_LOG_RATIO = 20.0
"""Keeps a ratio finite in fp32; PPO's clip has long cut its gradient, or dual clip its value."""


def ppo_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float | tuple[float, float],
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> LossParts:
    """Clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7) over response tokens.

    Args:
        logp: `[batch, time]` of the policy; the only input that gets a gradient.
        old_logp: `[batch, time]` before the update.
        advantages: `[batch, time]`.
        mask: `[batch, time]`.
        clip: the ratio is clipped to [1 - clip, 1 + clip], or to [1 - low, 1 + high] of a pair.
        dual_clip: where the advantage is negative, the loss is at most `-dual_clip * advantage` (arXiv 1912.09729).
        weights: `[batch, time]` importance weights, such as `importance_weights` gives.

    Returns:
        Sum over tokens, number of tokens, and sums of `ratio`, `approx_kl` (k3 of old against new), `clipped` and
        `dual_clipped` (tokens whose gradient was cut).
    """
    low, high = (clip, clip) if isinstance(clip, float | int) else clip
    advantages = keep(advantages.detach(), mask)
    log_ratio = keep(widen(logp) - widen(old_logp.detach()), mask).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    free, bounded = -advantages * ratio, -advantages * ratio.clamp(1.0 - low, 1.0 + high)
    per_token = torch.maximum(free, bounded)
    clipped = bounded > free
    dual_clipped = torch.zeros_like(clipped)
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        dual_clipped = (advantages < 0) & (per_token > ceiling)
        per_token = torch.where(dual_clipped, ceiling, per_token)
    if weights is not None:
        per_token = per_token * keep(weights.detach(), mask)
    metrics = {
        "ratio": keep(ratio.detach(), mask).sum(),
        "approx_kl": (ratio.detach() - 1.0 - log_ratio.detach()).sum(),
        "clipped": clipped.sum().to(ratio.dtype),
        "dual_clipped": dual_clipped.sum().to(ratio.dtype),
    }
    return per_token.sum(), count_of(mask), metrics


def gspo_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: tuple[float, float],
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> LossParts:
    """Clipped surrogate of an answer's ratio (Zheng et al. 2025, arXiv 2507.18071, eq. 5 and 7), at each of its tokens.

    The ratio is the geometric mean of the tokens' ratios; averaged over an answer's tokens the result is the paper's.
    Arguments, results and metrics are those of `ppo_policy_loss`, with this ratio in place of a token's own.
    """
    mean, old_mean = _row_mean(logp, mask), _row_mean(old_logp.detach(), mask)
    return ppo_policy_loss(mean, old_mean, advantages, mask, clip, dual_clip, weights)


def cispo_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: tuple[float, float],
    weights: Tensor | None = None,
) -> LossParts:
    """REINFORCE with clipped, detached ratios as weights (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5).

    Arguments and results are those of `ppo_policy_loss`; `clipped` counts tokens whose ratio was clipped, and whose
    gradient stays.
    """
    logp = keep(logp, mask)
    log_ratio = keep(logp.detach() - widen(old_logp.detach()), mask).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1.0 - clip[0], 1.0 + clip[1])
    per_token = -bounded * keep(advantages.detach(), mask) * logp
    if weights is not None:
        per_token = per_token * keep(weights.detach(), mask)
    metrics = {
        "ratio": keep(ratio, mask).sum(),
        "approx_kl": (ratio - 1.0 - log_ratio).sum(),
        "clipped": keep(bounded != ratio, mask).sum().to(ratio.dtype),
    }
    return per_token.sum(), count_of(mask), metrics


def _row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid tokens of each row, at each of them: `[batch, time]`."""
    mean = keep(x, mask).sum(dim=-1, keepdim=True) / mask.bool().sum(dim=-1, keepdim=True).clamp(min=1)
    return mean.expand(mask.shape)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = None
) -> LossParts:
    """Half the larger of the squared errors of the value and of the value held within `clip` of the old one.

    All `[batch, time]`; `clip` None: half the squared error. Returns the sum over tokens, the number of tokens, and
    sums of `squared_error`, `mean` (of the values), and `clipped` (tokens whose gradient was cut).
    """
    values, old_values, returns = keep(values, mask), keep(old_values.detach(), mask), keep(returns.detach(), mask)
    squares = (values - returns).square()
    larger, clipped = squares, torch.zeros_like(mask, dtype=torch.bool)
    if clip is not None:
        bounded = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        larger, clipped = torch.maximum(squares, bounded), bounded > squares
    metrics = {
        "squared_error": squares.detach().sum(),
        "mean": values.detach().sum(),
        "clipped": clipped.sum().to(values.dtype),
    }
    return larger.sum() / 2, count_of(mask), metrics


@torch.no_grad()
def importance_weights(
    old_logp: Tensor,
    rollout_logp: Tensor,
    mask: Tensor,
    level: Literal["token", "sequence"] = "token",
    cap: float = 2.0,
    floor: float | None = None,
) -> Tensor:
    """Weights of samples that the rollout engine drew, for the learner's policy; detached.

    Args:
        old_logp: `[batch, time]`, the learner's log-probabilities of the sampled tokens.
        rollout_logp: `[batch, time]`, the engine's.
        mask: `[batch, time]`.
        level: `token`: one ratio a token. `sequence`: the product over a row's valid tokens, given to each of them.
        cap: without `floor`, weights above it are set to it (truncated importance sampling, Ionides 2008).
        floor: weights outside of [floor, cap] are set to 0 (IcePop); the mask, and so the denominator, stays.

    Returns:
        `[batch, time]`: in [0, cap], or in [floor, cap] and 0; 0 where the mask is 0.
    """
    raw = _log_weights(old_logp, rollout_logp, mask, level).exp()
    bounded = raw.clamp(max=cap) if floor is None else torch.where((raw >= floor) & (raw <= cap), raw, 0.0)
    return keep(bounded, mask)


@torch.no_grad()
def importance_metrics(
    old_logp: Tensor,
    rollout_logp: Tensor,
    weights: Tensor,
    mask: Tensor,
    level: Literal["token", "sequence"] = "token",
) -> dict[str, Tensor]:
    """Sums over valid tokens of what to watch: the gap of the two log-probabilities and what the bounds changed.

    `logprob_gap` is the sum of |old - rollout|; `weight` and `weight_sq` give the effective sample size as
    weight^2 / (n * weight_sq); `bounded` counts tokens whose weight is not the ratio at `level`.
    """
    gap, weights = keep(widen(old_logp) - widen(rollout_logp), mask).abs(), keep(weights, mask)
    raw = _log_weights(old_logp, rollout_logp, mask, level).exp()
    own = torch.isclose(weights, raw, rtol=1e-5, atol=0.0) | ~mask.bool()
    return {
        "logprob_gap": gap.sum(),
        "weight": weights.sum(),
        "weight_sq": weights.square().sum(),
        "bounded": (~own).sum().to(weights.dtype),
    }


def _log_weights(old_logp: Tensor, rollout_logp: Tensor, mask: Tensor, level: str) -> Tensor:
    """Log of each token's ratio, or of the product over its row, `[batch, time]`."""
    log_ratio = keep(widen(old_logp) - widen(rollout_logp), mask)
    if level == "sequence":
        return log_ratio.sum(dim=-1, keepdim=True).expand_as(log_ratio)
    if level != "token":
        raise ValueError(f"unknown level {level!r}: token or sequence")
    return log_ratio
