"""Bradley-Terry loss of preference pairs: the objective of reward models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.objectives.preference import bradley_terry_loss, centering_loss
from triptych.recipe.kinds import Reward
from triptych.train.batch import Batch, pair_batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.forward import member_scores
from triptych.train.tasks.task import Limits, Task


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
        """Loss and metrics of scores [members, 2 pairs]: those of all chosen answers, then of all rejected ones."""
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


def _objectives(stage: Reward, roles: Sequence[str]) -> list[PairwiseReward]:
    return [PairwiseReward(role, stage.centering) for role in roles]


def _full_batch(stage: Reward, limits: Limits) -> Batch:
    """Pairs of the longest rows, and a last one of the tokens that are left."""
    count, rest = divmod(limits.tokens // 2, limits.length)
    lengths = [limits.length] * count + ([rest] if rest > 1 else [])
    return pair_batch([(limits.row(length), limits.row(length)) for length in lengths], 0)


TASK = Task(_objectives, _full_batch)
