"""Language modelling: the objective of supervised fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.forward.roles import RoleModel
from triptych.objectives import IGNORE
from triptych.recipe.kinds import Sft
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class LanguageModeling:
    """Mean cross-entropy of the labelled tokens."""

    role: str

    def denominators(self, batch: Batch) -> Sums:
        return {"loss": (batch["labels"][:, 1:] != IGNORE).sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        labels = batch["labels"][:, 1:]
        learned = labels != IGNORE
        hidden = model.hidden(batch["ids"], batch["mask"])[:, :-1]
        total = -model.logprobs(hidden[learned], labels[learned]).sum()
        return {"loss": total}, {"loss": (total, learned.sum())}


def _objectives(stage: Sft, roles: Sequence[str]) -> list[LanguageModeling]:
    return [LanguageModeling(role) for role in roles]


def _full_batch(stage: Sft, limits: Limits) -> Batch:
    return limits.chats()


TASK = Task(_objectives, _full_batch)
