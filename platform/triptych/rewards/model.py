"""Reward of a reward model that sits on the base as frozen roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from triptych.rewards.base import Answer, Forward
from triptych.train.tasks.forward import mean_scores


@dataclass(frozen=True)
class ModelScore:
    """Mean over the members of a reward model."""

    roles: Sequence[str]
    """A role for each member."""

    def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
        """[N], read by the model at the last token of each answer."""
        return forward(self.roles[0], partial(mean_scores, roles=self.roles))
