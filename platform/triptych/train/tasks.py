"""What is computed of a batch: the objectives of the stages, and the forward passes that PPO scores samples with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.objectives.language import cross_entropy_sum, token_entropy, token_logprobs
from triptych.objectives.policy import ppo_policy_loss, ppo_value_loss
from triptych.objectives.preference import bradley_terry_loss
from triptych.train.batch import Batch, before_response, last_token, response_ids, response_mask
from triptych.train.learner import Metrics, Sums
from triptych.train.roles import RoleModel


@dataclass(frozen=True)
class LanguageModeling:
    """Mean cross-entropy of the labelled tokens."""

    role: str

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": (batch["labels"][:, 1:] != -100).sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        labels = batch["labels"][:, 1:]
        learned = labels != -100
        hidden = model.hidden(batch["ids"], batch["mask"])[:, :-1]
        total, count = cross_entropy_sum(model.logits(hidden[learned]), labels[learned])
        return {"loss": total}, {"loss": (total, count)}


@dataclass(frozen=True)
class PairwiseReward:
    """Mean Bradley-Terry loss of pairs."""

    role: str

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["ids"]) // 2)}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        chosen, rejected = sequence_scores(model, batch).chunk(2)
        total, count, _ = bradley_terry_loss(chosen, rejected)
        right = (chosen > rejected).float().sum()
        return {"loss": total}, {
            "loss": (total, count),
            "accuracy": (right, count),
            "margin": ((chosen - rejected).sum(), count),
        }


@dataclass(frozen=True)
class PolicyUpdate:
    """Clipped policy objective; needs `old_logprobs`, `advantages`, `weights` [B, R] in the batch."""

    role: str
    clip: float
    temperature: float

    def denominators(self, batch: Batch) -> Sums:
        return {"policy": batch["length"].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = response_mask(batch["length"])
        logprobs = response_logprobs(model, batch, self.temperature)
        width = mask.shape[1]
        old, advantages, weights = (batch[name][:, :width] for name in ("old_logprobs", "advantages", "weights"))
        total, count, metrics = ppo_policy_loss(logprobs, old, advantages, mask, self.clip, weights=weights)
        return {"policy": total}, {"policy_loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


@dataclass(frozen=True)
class ValueUpdate:
    """Clipped value objective; needs `old_values`, `returns` [B, R] in the batch."""

    role: str
    clip: float | None

    def denominators(self, batch: Batch) -> Sums:
        return {"value": batch["length"].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = response_mask(batch["length"])
        values = response_values(model, batch)
        width = mask.shape[1]
        old, returns = batch["old_values"][:, :width], batch["returns"][:, :width]
        total, count, metrics = ppo_value_loss(values, old, returns, mask, self.clip)
        return {"value": total}, {"loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


def sequence_scores(model: RoleModel, batch: Batch) -> Tensor:
    """The active role's score of each row [B], read at its last real token."""
    return model.scores(last_token(model.hidden(batch["ids"], batch["mask"]), batch["mask"]))


def response_values(model: RoleModel, batch: Batch) -> Tensor:
    """The active role's value of the state before each token of the answer: [B, R]."""
    return model.scores(before_response(model.hidden(batch["ids"], batch["mask"]), batch))


def response_logprobs(model: RoleModel, batch: Batch, temperature: float) -> Tensor:
    """Log-probability [B, R] of each token of the answer; 0 past its end."""
    logits, labels = _response_logits(model, batch)
    return _spread(token_logprobs(logits, labels, temperature), batch)


def response_logprobs_and_entropy(model: RoleModel, batch: Batch, temperature: float) -> Tensor:
    """[B, R, 2]: log-probability of each token of the answer, and the entropy where it was drawn; 0 past its end."""
    logits, labels = _response_logits(model, batch)
    both = (token_logprobs(logits, labels, temperature), token_entropy(logits, labels, temperature))
    return torch.stack([_spread(values, batch) for values in both], dim=2)


def _response_logits(model: RoleModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [n, V] and tokens [n] of the n answer tokens of a batch: nothing is spent on prompts and padding."""
    mask = response_mask(batch["length"])
    hidden = before_response(model.hidden(batch["ids"], batch["mask"]), batch)
    return model.logits(hidden[mask]), response_ids(batch)[mask]


def _spread(values: Tensor, batch: Batch) -> Tensor:
    """[n] back to [B, R]."""
    mask = response_mask(batch["length"])
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
