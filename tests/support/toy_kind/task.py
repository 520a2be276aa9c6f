"""Objective of the kind: cross-entropy of every token but the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.toy_kind.recipe import Pretraining
from triptych.data.batches import pad_right
from triptych.forward.roles import RoleModel
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class AllTokens:
    """Mean cross-entropy of all tokens; needs `ids` and `mask` [B, T] in the batch."""

    role: str

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": batch["mask"][:, 1:].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        read = batch["mask"][:, 1:].bool()
        hidden = model.hidden(batch["ids"], batch["mask"])[:, :-1]
        total = -model.logprobs(hidden[read], batch["ids"][:, 1:][read]).sum()
        return {"loss": total}, {"loss": (total, read.sum())}


def _objectives(stage: Pretraining, roles: Sequence[str]) -> list[AllTokens]:
    return [AllTokens(role) for role in roles]


def _full_batch(stage: Pretraining, limits: Limits) -> Batch:
    ids, mask = pad_right(limits.rows(), 0)
    return {"ids": ids, "mask": mask}


TASK = Task(_objectives, _full_batch)
