"""RRHF: the objective of policies that learn from ranked answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.objectives.preference import rrhf_loss
from triptych.recipe.preference import Rrhf
from triptych.train.batch import Batch, answer_batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.forward import answer_logprob
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class RankedPreference:
    """Mean over prompts of the ranking loss of their answers, and of the best answer's negative log-likelihood.

    Needs `query` and `score` [B] in the batch (`answer_batch`), whose rows are the answers to a query one behind the
    other, the best first and the worst last.
    """

    role: str
    length_penalty: float = 1.0
    sft_weight: float = 1.0

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": _best(batch).sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        logps, lengths = answer_logprob(model, batch)[:, 0], batch["length"]
        ranking, count, sums = rrhf_loss(logps, lengths, batch["score"], batch["query"], self.length_penalty)
        best, worst = _best(batch), _best(batch).roll(-1)
        nll = -(logps[best] / lengths[best]).sum()
        total = ranking + self.sft_weight * nll
        return {"loss": total}, {
            "loss": (total, count),
            "ranking": (ranking, count),
            "nll": (nll, count),
            "accuracy": (sums["correct"], sums["pairs"]),
            "logps_chosen": (logps[best].sum(), count),
            "logps_rejected": (logps[worst].sum(), count),
        }


def _best(batch: Batch) -> Tensor:
    """Bool [B], true at the first answer to each query."""
    query = batch["query"]
    return torch.cat([torch.ones_like(query[:1], dtype=torch.bool), query[1:] != query[:-1]])


def objective(stage: Rrhf, role: str) -> RankedPreference:
    """The objective of a stage's policy."""
    return RankedPreference(role, stage.length_penalty, stage.sft_weight)


def _objectives(stage: Rrhf, roles: Sequence[str]) -> list[RankedPreference]:
    return [objective(stage, role) for role in roles]


def _full_batch(stage: Rrhf, limits: Limits) -> Batch:
    """As many answers to a query as a row may have."""
    rows = limits.rows()
    batch = answer_batch(rows, [max(1, limits.unlearned(len(row))) for row in rows], 0)
    place = torch.arange(len(rows))
    return batch | {"query": place // stage.max_answers, "score": -place.double()}


TASK = Task(_objectives, _full_batch)
