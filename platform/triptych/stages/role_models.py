"""The models that the roles of a stage stand on: the base, which adapters share, and whole models of single roles."""

from collections.abc import Callable, Mapping
from pathlib import Path

from triptych.forward.roles import RoleModel
from triptych.models.adapter import Adapter
from triptych.models.heads import ScalarHead
from triptych.recipe import Optimizer, Workers
from triptych.recipe.training import StrategyChoice
from triptych.stages.whole_model import WholeModel
from triptych.train.group import Group
from triptych.train.learner import MAX_BAD_STEPS, Learner
from triptych.train.learners import Learners, RoleLearner


class RoleModels:
    """Models in the order in which roles first stood on them; what no role stands on is not loaded."""

    def __init__(self, load: Callable[[Path | None], RoleModel]) -> None:
        """`load`: gives the model of a Hugging Face folder without any role, or for None the base."""
        self._load = load
        self._base: RoleModel | None = None
        self.each: list[RoleModel] = []

    @property
    def base(self) -> RoleModel:
        """The base that adapters share; loaded when it is first asked for."""
        if self._base is None:
            self._base = self._loaded(None)
        return self._base

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states: all models have one architecture."""
        return self.each[0].hidden_size if self.each else self.base.hidden_size

    def put(self, role: str, start: Adapter | WholeModel, *, trainable: bool, head: ScalarHead | None = None) -> None:
        """Put a role beside the others, perhaps with a head.

        An adapter stands on the shared base, and so does the base itself where it is frozen. Any other whole model is
        loaded for this role alone: a trained one since no other role may change with it, a frozen one since it has
        other weights than the base.
        """
        if isinstance(start, Adapter):
            self.base.add(role, start.method, trainable=trainable, weights=start.weights, head=head)
        elif trainable:
            self._loaded(start.folder).add(role, start.method, trainable=True, head=head)
        else:
            (self.base if start.folder is None else self._loaded(start.folder)).add_plain(role, head)

    def learner(
        self,
        optimizers: Mapping[str, Optimizer],
        total_steps: Mapping[str, int],
        workers: Workers,
        max_bad_steps: int = MAX_BAD_STEPS,
    ) -> RoleLearner:
        """Spread every model over the ranks; the arguments are those of `Learner`."""
        group, loaded = Group(), max(model.loaded_bytes for model in self.each)
        before = sum(model.loaded_bytes for model in self.each)
        learners = []
        for model in self.each:
            own = {role: one for role, one in optimizers.items() if model.trainable.get(role)}
            steps, strategy = {role: total_steps[role] for role in own}, _strategy(workers.strategy, trained=bool(own))
            learners.append(
                Learner(
                    model, own, steps, group, strategy=strategy, offload=workers.offload, max_bad_steps=max_bad_steps
                )
            )
        if len(learners) == 1:
            return learners[0]
        # Each model was measured with those before it: the last one's number is of all, before they were spread.
        return Learners(learners, loaded + sum(model.loaded_bytes for model in self.each) - before)

    def _loaded(self, folder: Path | None) -> RoleModel:
        self.each.append(self._load(folder))
        return self.each[-1]


def _strategy(chosen: StrategyChoice, *, trained: bool) -> StrategyChoice:
    """The strategy of one of the models: zero3 shards by an optimizer, so what it trains nothing of is left to fsdp."""
    return "fsdp" if chosen == "zero3" and not trained else chosen
