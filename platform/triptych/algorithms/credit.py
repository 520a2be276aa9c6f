"""The part of credit assignment that algorithms share: rewards of answers and tokens, and what the losses read."""

import torch
from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.objectives.advantages import group_relative
from triptych.objectives.kl import kl_penalty
from triptych.objectives.masking import LossParts
from triptych.objectives.policy import importance_weights, ppo_policy_loss
from triptych.recipe.algorithm import ClippedRatio, ScaledBaseline
from triptych.recipe.rl import Rl


def answer_scores(scores: Tensor, truncated: Tensor, stage: Rl) -> Tensor:
    """[N] scores, clipped; an answer that was cut by its length loses a fixed amount."""
    return scores.clamp(-stage.reward_clip, stage.reward_clip) - stage.missing_eos_penalty * truncated


def token_rewards(scored: Scored, stage: Rl, kl_coef: float) -> Tensor:
    """[N, R]: the score, once, at the last token that was drawn; minus the KL penalty at each, if it is in the rewards.

    Ziegler et al. 2019 (arXiv 1909.08593), equation 2.
    """
    rewards = torch.zeros_like(scored.old)
    if scored.reference is not None and stage.kl.placement == "reward":
        penalty = kl_penalty(scored.old, scored.reference, kind=stage.kl.kind)
        rewards = torch.where(scored.mask, -kl_coef * penalty, 0.0)
    final = answer_scores(scored.scores, scored.truncated, stage)
    last = scored.mask.cumsum(dim=1).argmax(dim=1)
    return rewards.index_put((torch.arange(len(last)), last), final.to(rewards.dtype), accumulate=True)


def answer_rewards(scored: Scored, stage: Rl, kl_coef: float) -> Tensor:
    """[N]: the sum of the rewards of an answer's tokens."""
    return token_rewards(scored, stage, kl_coef).sum(dim=1)


def at_tokens(of_answers: Tensor, mask: Tensor) -> Tensor:
    """A number of each answer [N] at each of its tokens [N, R]; 0 elsewhere."""
    return torch.where(mask, of_answers[:, None], 0.0)


def credited(scored: Scored, stage: Rl, advantages: Tensor, returns: Tensor | None = None) -> Credit:
    """The advantages [N, R] with all that the losses read beside them."""
    importance = stage.importance
    weights = importance_weights(
        scored.old, scored.rollout, scored.mask, importance.level, importance.cap, importance.floor
    )
    reference = scored.reference if stage.kl.placement == "loss" else None
    return Credit(scored.old, advantages, weights, scored.values, returns, reference)


def group_credit(scored: Scored, stage: Rl, settings: ScaledBaseline, kl_coef: float) -> Credit:
    """Rewards of answers against those of the others to the same prompt (GRPO, arXiv 2402.03300, section 4.1.2)."""
    rewards = answer_rewards(scored, stage, kl_coef)
    advantages = group_relative(rewards, scored.groups, settings.eps, settings.scale)
    return credited(scored, stage, at_tokens(advantages, scored.mask))


def surrogate(settings: ClippedRatio, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
    """PPO's clipped surrogate of each token's ratio."""
    return ppo_policy_loss(
        logprobs, credit.old_logprobs, credit.advantages, mask, settings.bounds, settings.dual_clip, credit.weights
    )
