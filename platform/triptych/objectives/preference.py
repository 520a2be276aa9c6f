"""Losses from preferences: a reward model's, and those that train a policy from ranked answers."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.objectives.masking import LossParts, widen


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> LossParts:
    """-log sigmoid(chosen - rejected - margin), summed over pairs (Ouyang et al. 2022; margin: arXiv 2307.09288).

    All `[pairs]`, scores of a reward model. Returns the sum, the number of pairs, and sums of `correct` (the chosen
    answer scores higher; a tie counts half) and `score_gap`.
    """
    gap = widen(chosen) - widen(rejected)
    loss = F.softplus(-(gap if margin is None else gap - margin.to(gap)))
    return loss.sum(), _number(gap), {"correct": _correct(gap), "score_gap": gap.detach().sum()}


def centering_loss(chosen: Tensor, rejected: Tensor) -> LossParts:
    """(chosen + rejected)^2, summed over pairs: holds scores around zero, which Bradley-Terry leaves free.

    Eisenstein et al. 2023, arXiv 2312.09244, section 2. Both `[pairs]`. Returns the sum and the number of pairs.
    """
    both = widen(chosen) + widen(rejected)
    return both.square().sum(), _number(both), {}


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> LossParts:
    """Direct preference optimisation over `[pairs]` of log-probabilities of the answers: of whole answers, or a token.

    With h the log-ratio of the chosen answer less that of the rejected one, `sigmoid` is -log sigmoid(beta * h)
    (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) and `ipo` is (h - 1 / (2 beta))^2 (Azar et al. 2023,
    arXiv 2310.12036, eq. 17). `label_smoothing` e makes (1 - e) * -log sigmoid(beta * h) + e * -log sigmoid(-beta * h)
    of the first (cDPO, Mitchell 2023, eq. 3). Returns the sum, the number of pairs, and sums of `correct`,
    `chosen_reward` and `rejected_reward` (beta times the log-ratio).
    """
    chosen_ratio = widen(chosen) - widen(ref_chosen).detach()
    rejected_ratio = widen(rejected) - widen(ref_rejected).detach()
    h = chosen_ratio - rejected_ratio
    if kind == "sigmoid":
        loss = (1 - label_smoothing) * F.softplus(-beta * h) + label_smoothing * F.softplus(beta * h)
    elif kind == "ipo":
        loss = (h - 1.0 / (2.0 * beta)).square()
    else:
        raise ValueError(f"unknown kind {kind!r}: sigmoid or ipo")
    metrics = {
        "correct": _correct(h),
        "chosen_reward": beta * chosen_ratio.detach().sum(),
        "rejected_reward": beta * rejected_ratio.detach().sum(),
    }
    return loss.sum(), _number(h), metrics


def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossParts:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8), less its constant: lambda - v.

    Args:
        logps: `[n]`, summed log-probability of each answer.
        ref_logps: `[n]`, the reference's.
        desirable: bool `[n]`; the others are undesirable.
        baseline: the KL divergence z0 from the reference in nats, a scalar or `[n]`; below 0 it counts as 0, and it has
            no gradient.
        beta: slope of the value around the baseline, and so the strength of risk aversion.
        desirable_weight, undesirable_weight: lambda_D and lambda_U.

    Returns:
        Sum of lambda_D (1 - sigmoid(beta (r - z0))) over desirable and lambda_U (1 - sigmoid(beta (z0 - r))) over
        undesirable answers, where r is the log-ratio; their number, and sums of `correct` (on their side of the
        baseline), `chosen_reward` and `rejected_reward` (beta r of the desirable, and of the undesirable).
    """
    ratio = widen(logps) - widen(ref_logps).detach()
    above = beta * (ratio - widen(baseline).detach().clamp(min=0))
    loss = torch.where(desirable, desirable_weight * torch.sigmoid(-above), undesirable_weight * torch.sigmoid(above))
    rewards, good = beta * ratio.detach(), desirable.to(ratio.dtype)
    metrics = {
        "correct": _correct(torch.where(desirable, above, -above)),
        "chosen_reward": (rewards * good).sum(),
        "rejected_reward": (rewards * (1 - good)).sum(),
    }
    return loss.sum(), _number(ratio), metrics


def rrhf_loss(
    logps: Tensor, lengths: Tensor, scores: Tensor, query_ids: Tensor, length_penalty: float = 1.0
) -> LossParts:
    """Ranking loss of RRHF (Yuan et al. 2023, arXiv 2304.05302, eq. 2): the better answer shall be the likelier one.

    A query's loss is the sum over its pairs, in the paper and in its authors' code (GanjinZero/RRHF, train.py), and not
    their mean: a query with more answers says more. Over queries it is a mean, which is why their number is returned.

    Args:
        logps: `[n]`, summed log-probability of each answer.
        lengths: `[n]`, tokens of each answer.
        scores: `[n]`, higher is better; answers that tie are not compared.
        query_ids: `[n]`, only answers to the same query are compared.
        length_penalty: p = logp / length^length_penalty (eq. 1, where it is 1; the exponent is the authors' code's).

    Returns:
        Sum of max(0, p_worse - p_better) over ordered pairs, the number of queries, and sums of `pairs` and `correct`
        (pairs already in order).
    """
    logps = widen(logps)
    p = logps / lengths.to(logps).clamp(min=1).pow(length_penalty)
    worse = (scores[:, None] < scores[None, :]) & (query_ids[:, None] == query_ids[None, :])
    gap = p[:, None] - p[None, :]
    loss = torch.where(worse, F.relu(gap), 0.0).sum()
    queries = torch.tensor(float(query_ids.unique().numel()), dtype=torch.float64, device=logps.device)
    return loss, queries, {"pairs": worse.sum().to(p.dtype), "correct": (worse & (gap < 0)).sum().to(p.dtype)}


def _number(x: Tensor) -> Tensor:
    return torch.tensor(float(x.numel()), dtype=torch.float64, device=x.device)


def _correct(gap: Tensor) -> Tensor:
    return (gap > 0).to(gap.dtype).sum() + (gap == 0).to(gap.dtype).sum() / 2
