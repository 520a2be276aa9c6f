"""Learners of several models as one: each role is the business of the learner whose model it stands on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from triptych.forward.roles import BASE, RoleModel
from triptych.recipe import Optimizer
from triptych.recipe.training import StrategyChoice
from triptych.train.batch import Batch
from triptych.train.group import Group
from triptych.train.learner import MAX_BAD_STEPS, Learner, LearnerState, Objective, StepReport


class RoleLearner(Protocol):
    """Steps and passes of roles, whether they stand on one model or on several."""

    group: Group

    @property
    def model(self) -> RoleModel:
        """The model, or of several the first: they have one architecture, one precision and one device."""

    @property
    def loaded_bytes(self) -> int:
        """Memory that is held with this process's share of the models, and nothing else."""

    @property
    def each(self) -> Sequence[Learner]:
        """The learners, one for each model."""

    def step(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> StepReport:
        """One optimiser step of the objective's role; see `Learner.step`."""

    def forward(self, role: str, compute: Callable[[RoleModel, Batch], Tensor], batch: Batch) -> Tensor:
        """`compute` of one batch as `role`, without gradients."""

    def weights(self, role: str) -> dict[str, Tensor]:
        """A role's full trained parameters by name, on the CPU. Collective."""

    def weights_in_turn(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """The parameters of `weights`, one at a time. Collective: every rank takes them all."""

    def state(self) -> LearnerState:
        """This rank's tensors, and counters, from which `load_state` goes on exactly."""

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from whole tensors."""


class Learners:
    """A `RoleLearner` of several models; no two of them have a role of one name."""

    def __init__(self, each: Sequence[Learner], loaded_bytes: int) -> None:
        """`each`: their groups are the same ranks; `loaded_bytes`: see `RoleLearner`."""
        names = [role for learner in each for role in learner.model.trainable]
        if len(set(names)) < len(names):
            raise ValueError(f"a role stands on one model; there are {sorted(names)}")
        self.each = tuple(each)
        self.group, self.model, self.loaded_bytes = each[0].group, each[0].model, loaded_bytes

    def of(self, role: str) -> Learner:
        """The learner of the model that a role stands on. KeyError: there is no such role.

        `BASE` is the first model without its adapters, where these are what trains of it.
        """
        if role == BASE and not self.model.whole:
            return self.each[0]
        for learner in self.each:
            if role in learner.model.trainable:
                return learner
        raise KeyError(f"no role {role!r} on any of {len(self.each)} models")

    def step(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> StepReport:
        """One optimiser step of the objective's role; see `Learner.step`."""
        return self.of(objective.role).step(objective, micro_batches)

    def forward(self, role: str, compute: Callable[[RoleModel, Batch], Tensor], batch: Batch) -> Tensor:
        """`compute` of one batch as `role`, without gradients."""
        return self.of(role).forward(role, compute, batch)

    def weights(self, role: str) -> dict[str, Tensor]:
        """A role's full trained parameters by name, on the CPU. Collective."""
        return self.of(role).weights(role)

    def weights_in_turn(self, role: str) -> Iterator[tuple[str, Tensor]]:
        """The parameters of `weights`, one at a time. Collective: every rank takes them all."""
        return self.of(role).weights_in_turn(role)

    def state(self) -> LearnerState:
        """This rank's tensors, and counters, of all models."""
        states = [learner.state() for learner in self.each]
        keys = states[0].numbers
        numbers = {key: {name: n for one in states for name, n in one.numbers[key].items()} for key in keys}
        return LearnerState([piece for one in states for piece in one.slices], numbers)

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from whole tensors, each model from those of its own roles."""
        for learner in self.each:
            own = [role for role, trained in learner.model.trainable.items() if trained]
            counts = {key: {name: counts[name] for name in own} for key, counts in numbers.items()}
            learner.load_state(tensors, counts)


def learner_of(
    models: Sequence[RoleModel],
    optimizers: Mapping[str, Optimizer],
    total_steps: Mapping[str, int],
    *,
    dropout: bool = False,
    strategy: StrategyChoice = "auto",
    offload: bool = False,
    max_bad_steps: int = MAX_BAD_STEPS,
) -> RoleLearner:
    """Spread every model over the ranks, and make an optimizer for each trained role.

    Args:
        models: in the order in which they were loaded, that of the first trained role first.
        optimizers: settings of the optimizer of each role that is trained, and so all others: see `Learner`.
    """
    group, loaded = Group(), max(model.loaded_bytes for model in models)
    before, learners = sum(model.loaded_bytes for model in models), []
    for model in models:
        own = {role: one for role, one in optimizers.items() if model.trainable.get(role)}
        steps = {role: total_steps[role] for role in own}
        # zero3 shards by an optimizer: a model that it has none for is left to fsdp.
        chosen: StrategyChoice = "fsdp" if strategy == "zero3" and not own else strategy
        settings: dict[str, Any] = {"dropout": dropout, "offload": offload, "max_bad_steps": max_bad_steps}
        learners.append(Learner(model, own, steps, group, strategy=chosen, **settings))
    if len(learners) == 1:
        return learners[0]
    # Each model was measured with those before it: the largest number is of all, before they were spread.
    return Learners(learners, loaded + sum(model.loaded_bytes for model in models) - before)
