"""Direct preference optimisation: the objective of policies that learn from pairs of answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.objectives.preference import dpo_loss
from triptych.recipe.preference import Dpo, Ipo, Sigmoid
from triptych.train.batch import Batch, answer_batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.forward import answer_logprob
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class PairPreference:
    """Mean loss of pairs by the log-ratios of their answers to a reference.

    Needs `ref_chosen` and `ref_rejected` [B / 2] in the batch, whose rows are all chosen answers, then all rejected
    ones (`answer_batch`).
    """

    role: str
    pair_loss: Sigmoid | Ipo
    sft_weight: float = 0.0
    """Weight of the chosen answer's negative log-likelihood a token."""

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["ids"]) // 2)}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        return self.of_logps(answer_logprob(model, batch)[:, 0], batch)

    def of_logps(self, logps: Tensor, batch: Batch) -> tuple[Sums, Metrics]:
        """Loss and metrics of log-probabilities [B] of whole answers."""
        chosen, rejected = logps.chunk(2)
        total, count, sums = self._preference(chosen, rejected, batch)
        metrics = {
            "accuracy": (sums["correct"], count),
            "margin": (sums["chosen_reward"] - sums["rejected_reward"], count),
            "rewards_chosen": (sums["chosen_reward"], count),
            "rewards_rejected": (sums["rejected_reward"], count),
            "logps_chosen": (chosen.sum(), count),
            "logps_rejected": (rejected.sum(), count),
        }
        if self.sft_weight:
            nll = -(chosen / batch["length"].chunk(2)[0]).sum()
            total = total + self.sft_weight * nll
            metrics["nll"] = (nll, count)
        return {"loss": total}, {"loss": (total, count)} | metrics

    def _preference(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, references = self.pair_loss, (batch["ref_chosen"], batch["ref_rejected"])
        if isinstance(loss, Sigmoid):
            return dpo_loss(chosen, rejected, *references, loss.beta, label_smoothing=loss.label_smoothing)
        if not loss.average:
            return dpo_loss(chosen, rejected, *references, loss.beta, "ipo")
        first, second = batch["length"].chunk(2)
        averages = chosen / first, rejected / second, references[0] / first, references[1] / second
        return dpo_loss(*averages, loss.beta, "ipo")


def pair_logps(model: RoleModel, batch: Batch) -> Tensor:
    """[pairs, 2], float64: the log-probabilities of each pair's answers, the chosen one first."""
    return torch.stack(answer_logprob(model, batch)[:, 0].chunk(2), dim=1)


def _objectives(stage: Dpo, roles: Sequence[str]) -> list[PairPreference]:
    return [PairPreference(role, stage.loss, stage.sft_weight) for role in roles]


def _full_batch(stage: Dpo, limits: Limits) -> Batch:
    """Pairs of the longest rows, and a last one of the tokens that are left."""
    count, rest = divmod(limits.tokens // 2, limits.length)
    lengths = [limits.length] * count + ([rest] if rest > 1 else [])
    rows = [limits.row(length) for length in lengths * 2]
    batch = answer_batch(rows, [max(1, limits.unlearned(len(row))) for row in rows], 0)
    return batch | {name: torch.zeros(len(lengths), dtype=torch.float64) for name in ("ref_chosen", "ref_rejected")}


TASK = Task(_objectives, _full_batch)
