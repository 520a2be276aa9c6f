"""Fields of the kind, and its entry in the table."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from triptych.recipe import KINDS, POLICY, Recipe, RoleSpec, StageBase, SupervisedStage, WorkShape
from triptych.recipe.stage import Output


class Pretraining(SupervisedStage):
    """Continued pretraining: the loss counts every token of plain texts."""

    runner = "tests.support.toy_kind.stage:run"
    task = "tests.support.toy_kind.task:TASK"
    examples = "tests.support.toy_kind.rows:texts"

    kind: Literal["pretraining"]
    fails_once: bool = False
    """Whether the first training fails in the midst of its steps."""

    @property
    def output(self) -> Output:
        return "policy"

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """The policy."""
        return (self._role(POLICY, logits=True),)

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step."""
        return replace(super().shape(), logits=True)

    def reports(self) -> tuple[str, ...]:
        """Held-out loss."""
        return ("loss",)


def add() -> None:
    """Put the kind into the table; a process of Ray does so by importing this file."""
    KINDS["pretraining"] = Pretraining
    Recipe.model_rebuild(force=True)


def remove() -> None:
    """Take the kind out of the table."""
    del KINDS["pretraining"]
    Recipe.model_rebuild(force=True)


add()
