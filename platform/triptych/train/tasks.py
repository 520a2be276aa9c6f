"""What is computed of a batch: the objectives of the stages, and the forward passes that PPO scores samples with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.objectives.policy import ppo_policy_loss, ppo_value_loss
from triptych.objectives.preference import bradley_terry_loss, centering_loss
from triptych.train.batch import Batch, before_response, last_token, response_ids, response_mask
from triptych.train.learner import Metrics, Sums


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
        total = -model.logprobs(hidden[learned], labels[learned]).sum()
        return {"loss": total}, {"loss": (total, learned.sum())}


@dataclass(frozen=True)
class PairwiseReward:
    """Mean Bradley-Terry loss of pairs, with the margins that the batch has (`margin` [B / 2]).

    One role is trained. The scores of `others` are averaged with its own, to measure an ensemble.
    """

    role: str
    centering: float = 0.0
    """Coefficient of the squared sum of a pair's scores."""
    others: tuple[str, ...] = ()

    def members(self) -> "list[PairwiseReward]":
        """The objective of each member by itself."""
        return [replace(self, role=role, others=()) for role in (self.role, *self.others)]

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["ids"]) // 2)}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        return self.of_scores(member_scores(model, batch, (self.role, *self.others)), batch.get("margin"))

    def of_scores(self, members: Tensor, margin: Tensor | None) -> tuple[Sums, Metrics]:
        """The same, of scores [members, 2 pairs] of all chosen answers, then of all rejected ones."""
        chosen, rejected = members.mean(dim=0).chunk(2)
        ranking, count, sums = bradley_terry_loss(chosen, rejected, margin)
        metrics = {"loss": (ranking, count), "accuracy": (sums["correct"], count), "margin": (sums["score_gap"], count)}
        total = ranking
        if self.centering:
            off_center, _, _ = centering_loss(chosen, rejected)
            total = ranking + self.centering * off_center
            metrics |= {"loss": (total, count), "squared_sum": (off_center, count)}
        if self.others:
            gaps = torch.sub(*members.chunk(2, dim=1))
            metrics["disagreement"] = (gaps.std(dim=0).sum(), count)
        return {"loss": total}, metrics


@dataclass(frozen=True)
class TextClassification:
    """Mean cross-entropy of the classes of texts; needs `label` [B] in the batch.

    F1 of each class is measured as well, where nothing is trained.
    """

    role: str
    labels: tuple[str, ...]

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["label"]), device=batch["label"].device)}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        logits, labels = sequence_scores(model, batch), batch["label"]
        total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        predicted = logits.argmax(dim=1)
        right, count = predicted == labels, self.denominators(batch)["loss"]
        metrics = {"loss": (total, count), "accuracy": (right.sum(), count)}
        if not torch.is_grad_enabled():
            for label, name in enumerate(self.labels):
                hits = (right & (labels == label)).sum()
                metrics[f"f1_{name}"] = (2 * hits, (predicted == label).sum() + (labels == label).sum())
        return {"loss": total}, metrics


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
    """What the active role's head says of each row, [B] or [B, classes], read at its last real token."""
    return model.scores(last_token(model.hidden(batch["ids"], batch["mask"]), batch["mask"]))


def member_scores(model: RoleModel, batch: Batch, roles: Sequence[str]) -> Tensor:
    """Each role's score of each row: [roles, B]."""
    scores = []
    for role in roles:
        with model.use(role):
            scores.append(sequence_scores(model, batch))
    return torch.stack(scores)


def mean_scores(model: RoleModel, batch: Batch, roles: Sequence[str]) -> Tensor:
    """An ensemble's score of each row [B]: the mean of its members'."""
    return member_scores(model, batch, roles).mean(dim=0)


def response_values(model: RoleModel, batch: Batch) -> Tensor:
    """The active role's value of the state before each token of the answer: [B, R]."""
    return model.scores(before_response(model.hidden(batch["ids"], batch["mask"]), batch))


def response_logprobs(model: RoleModel, batch: Batch, temperature: float) -> Tensor:
    """Log-probability [B, R] of each token of the answer; 0 past its end."""
    hidden, labels = _response(model, batch)
    return _spread(model.logprobs(hidden, labels, temperature), batch)


def response_logprobs_and_entropy(model: RoleModel, batch: Batch, temperature: float) -> Tensor:
    """[B, R, 2]: log-probability of each token of the answer, and the entropy where it was drawn; 0 past its end.

    Without gradients.
    """
    both = model.logprobs_and_entropy(*_response(model, batch), temperature)
    return torch.stack([_spread(values, batch) for values in both], dim=2)


def _response(model: RoleModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [n, d] that the n answer tokens [n] of a batch were drawn from."""
    mask = response_mask(batch["length"])
    hidden = before_response(model.hidden(batch["ids"], batch["mask"]), batch)
    return hidden[mask], response_ids(batch)[mask]


def _spread(values: Tensor, batch: Batch) -> Tensor:
    """[n] back to [B, R]."""
    mask = response_mask(batch["length"])
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
