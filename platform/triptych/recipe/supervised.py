"""Stages that learn from rows by one method, and those of them whose output is a policy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from triptych.recipe.errors import Fault
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Method, trains_base
from triptych.recipe.spec import Path
from triptych.recipe.stage import (
    POLICY,
    HeadSpec,
    Known,
    Output,
    Reference,
    RoleSpec,
    StageBase,
    TrainedStage,
    adapter_method,
)
from triptych.recipe.start import members_refusal, method_refusal, whole_refusal
from triptych.recipe.training import Training
from triptych.recipe.work_shape import WorkShape

ADAPTERS: tuple[Output, ...] = ("policy", "reward_model", "classifier")
"""Outputs that training can go on from."""
_OPTIMIZER = ("train", "optimizer")
_WHOLE = "a whole model is a base: name its folder in model.base"


class SupervisedStage(TrainedStage):
    """A stage that trains one method on rows."""

    largest_batch = "triptych.stages.supervised.largest_batch:of_rows"
    examples: ClassVar[str]
    """Name of the function (data/examples.py) of a stage that says how its rows become tokens, as `module:function`."""

    method: Method = Lora()
    """Parameters that are trained: one method, or a list of parts that train together."""
    start: str | None = Field(None, alias="from")
    """Adapter that training goes on from: a stage, or `name@3`. Its method is taken over; `method` is left out, or
    agrees with it in all but learning rates and dropout. A `reward` stage also goes on from a whole model without a
    head, by `full` or `freeze`, whichever trained it."""
    train: Training
    """Length, optimizer, batches, memory, workers, checkpoints and evaluations."""

    @property
    def own_method(self) -> Method | None:
        return self.method

    @property
    def copies(self) -> int:
        """Models that are trained on the same rows, each for itself."""
        return 1

    @property
    def keeps_head(self) -> bool:
        """True if training goes on with the head of what it goes on from."""
        return False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the head's outputs, in order."""
        return ()

    @property
    def inherited(self) -> tuple[str, ...]:
        """The method, where it is that of `from`."""
        return () if self.start is None or "method" in self.model_fields_set else ("method",)

    def inheriting(self, known: Known) -> "SupervisedStage":
        """The stage with the method of the adapter that it goes on from, where it names none of its own."""
        if not self.inherited or known.method is None:
            return self
        found = self.model_copy(update={"method": known.method})
        found.model_fields_set.discard("method")  # it still is not the recipe's
        return found

    def leaves(self, name: str, stages: Mapping[str, StageBase]) -> Known | None:
        """Knowledge of the adapter that the stage registers, before it is there."""
        known_later = bool(self.inherited) and self.start not in stages
        method = None if known_later else self.method
        return Known(name, self.output, method, self.kind, self.classes, self.copies)

    def references(self) -> tuple[Reference, ...]:
        """Data, and the adapter that training goes on from."""
        if self.start is None:
            return super().references()
        return (*super().references(), self.start_reference(self.start))

    def start_reference(self, ref: str) -> Reference:
        """What `from` may name."""
        return Reference(("from",), ref, ADAPTERS, hint=_WHOLE)

    def refusal(self, field: Path, known: Known) -> Fault | None:
        """Reason why training cannot go on from this adapter."""
        found = whole_refusal(known) or (None if self.inherited else method_refusal(self.method, known))
        return found or members_refusal(self.copies, known, new_head=False)

    def output_method(self, stages: Mapping[str, StageBase]) -> Method:
        """Method of the adapter that the stage registers."""
        return adapter_method(self.method)

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step."""
        batch = self.train.batch
        return WorkShape(batch.max_length, batch.max_length, "train.batch.max_length", batch.rows)

    def _role(self, name: str, head: HeadSpec | None = None, *, logits: bool = False) -> RoleSpec:
        return RoleSpec(name, self.method, self.train.optimizer, _OPTIMIZER, head, logits)


class PolicyStage(SupervisedStage):
    """A stage whose output is a policy, which it trains by the log-probabilities of answers."""

    @property
    def output(self) -> Output:
        """An adapter, or a whole model where the method trains the base."""
        return "model" if trains_base(self.method) else "policy"

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """The policy."""
        return (self._role(POLICY, logits=True),)

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step."""
        return replace(super().shape(), logits=True)
