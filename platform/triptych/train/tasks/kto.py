"""Kahneman-Tversky optimisation: the objective of policies that learn from answers that are desirable or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triptych.forward.roles import RoleModel
from triptych.objectives.preference import kto_loss
from triptych.recipe.preference import Kto
from triptych.train.batch import Batch, answer_batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.forward import answer_logprob
from triptych.train.tasks.task import Limits, Task

MISMATCHED = "mismatched_"
"""Beginning of the names of the columns that hold prompts with answers to other prompts."""


@dataclass(frozen=True)
class UnpairedPreference:
    """Mean loss of answers that are desirable or not, by their log-ratios to a reference.

    Needs `desirable`, `ref_logps` and `ref_mismatched` [B] in the batch, whose rows are answers (`answer_batch`), and
    the same prompts with answers to others (`mismatched`). The baseline is the mean log-ratio of these over the whole
    step, so it is the same in every micro-batch and on every rank.
    """

    role: str
    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def survey(self, model: RoleModel, batch: Batch) -> Metrics:
        """The baseline, `kl`, before it is clamped."""
        ratio = answer_logprob(model, _mismatched(batch))[:, 0] - batch["ref_mismatched"]
        return {"kl": (ratio.sum(), torch.tensor(len(ratio)))}

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": torch.tensor(len(batch["ids"]))}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        logps, good = answer_logprob(model, batch)[:, 0], batch["desirable"]
        weights = self.beta, self.desirable_weight, self.undesirable_weight
        total, count, sums = kto_loss(logps, batch["ref_logps"], good, batch["kl"], *weights)
        many, few = good.sum(), (~good).sum()
        return {"loss": total}, {
            "loss": (total, count),
            "kl": (batch["kl"].clamp(min=0).sum(), count),
            "accuracy": (sums["correct"], count),
            "rewards_chosen": (sums["chosen_reward"], many),
            "rewards_rejected": (sums["rejected_reward"], few),
            "logps_chosen": (logps[good].sum(), many),
            "logps_rejected": (logps[~good].sum(), few),
        }


def mismatched(batch: Batch) -> Batch:
    """The columns of an `answer_batch` under the names by which the baseline's are found."""
    return {f"{MISMATCHED}{name}": column for name, column in batch.items()}


def _mismatched(batch: Batch) -> Batch:
    return {name.removeprefix(MISMATCHED): column for name, column in batch.items() if name.startswith(MISMATCHED)}


def unpaired_logps(model: RoleModel, batch: Batch) -> torch.Tensor:
    """[B, 2], float64: the log-probability of each answer, and of the one that stands there for the baseline."""
    return torch.cat([answer_logprob(model, batch), answer_logprob(model, _mismatched(batch))], dim=1)


def objective(stage: Kto, role: str) -> UnpairedPreference:
    """The objective of a stage's policy."""
    return UnpairedPreference(role, stage.beta, stage.desirable_weight, stage.undesirable_weight)


def _objectives(stage: Kto, roles: Sequence[str]) -> list[UnpairedPreference]:
    return [objective(stage, role) for role in roles]


def _full_batch(stage: Kto, limits: Limits) -> Batch:
    rows = limits.rows()
    batch = answer_batch(rows, [max(1, limits.unlearned(len(row))) for row in rows], 0)
    references = {name: torch.zeros(len(rows), dtype=torch.float64) for name in ("ref_logps", "ref_mismatched")}
    return batch | mismatched(batch) | references | {"desirable": torch.arange(len(rows)) % 2 == 0}


TASK = Task(_objectives, _full_batch)
