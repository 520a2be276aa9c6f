"""Rewards at one place of the recipe, with what scores by them: roles of the learner, or scorers outside of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from triptych.errors import UserError
from triptych.recipe.reward import CalledReward, RewardTerm
from triptych.rewards.base import Scorer
from triptych.rewards.table import SCORERS


@dataclass(frozen=True)
class Terms:
    """Rewards that are asked together about the same answers."""

    stage: str
    """Name of the stage."""
    rewards: Sequence[RewardTerm]
    fields: Sequence[str]
    """Field of each reward below the stage, dotted."""
    roles: Mapping[int, Sequence[str]]
    """Number of a reward model -> the roles of its members."""

    @cached_property
    def scorers(self) -> dict[int, Scorer]:
        """Number of a reward -> what scores outside the learner. UserError where that cannot be had.

        Only the rank that asks has tokens, so only it may look.
        """
        called = {number: one for number, one in enumerate(self.rewards) if isinstance(one, CalledReward)}
        return {number: self._scorer(number, one) for number, one in called.items()}

    def place(self, number: int) -> str:
        """Field and name of a reward, for messages."""
        return f"stages.{self.stage}.{self.fields[number]} ({self.rewards[number].name})"

    def _scorer(self, number: int, settings: CalledReward) -> Scorer:
        try:
            return SCORERS[settings.name](settings)
        except UserError as error:
            raise UserError(f"stages.{self.stage}.{self.fields[number]}.{error}") from error
