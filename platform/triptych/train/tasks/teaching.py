"""A frozen teacher in a policy's loss: the divergence between their distributions of each token of an answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.objectives.distillation import Divergence, Predictions, distillation_loss
from triptych.recipe import TEACHER, Rl
from triptych.train.batch import Batch
from triptych.train.learner import Metrics
from triptych.train.tasks.forward import response_states


@dataclass(frozen=True)
class Teaching:
    """Divergence of the policy from a frozen role, over answer tokens whoever drew them.

    No importance weight stands before it: it compares what both say after the same prefix, and reads no drawn token.
    """

    divergence: Divergence
    role: str = TEACHER

    @torch.no_grad()
    def predictions(self, model: RoleModel, batch: Batch) -> Predictions:
        """The teacher's, by a pass of its own; to be taken before that of the role that learns."""
        with model.use(self.role):
            return model.predictions(response_states(model, batch)[0])

    def of(self, student: Predictions, teacher: Predictions, weights: Tensor) -> tuple[Tensor, Metrics]:
        """Sum over the n answer tokens, each with its share [n] in it, and the mean divergence in nats a token."""
        total, count, sums = distillation_loss(student, teacher, self.divergence, weights)
        return total, {name: (value, count) for name, value in sums.items()}


def teaching_of(stage: Rl) -> Teaching | None:
    """The divergence that stands in the loss of the stage's policy; None: there is none."""
    if stage.algorithm.distilled is None:
        return None
    kind, beta = stage.algorithm.distilled
    return Teaching(Divergence(kind, beta, stage.rollout.sampling.temperature))
