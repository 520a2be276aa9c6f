"""The models that the roles of a stage stand on: the base, which adapters share, and whole models of single roles."""

from collections.abc import Callable
from pathlib import Path

from triptych.forward.roles import RoleModel
from triptych.models.adapter import Adapter
from triptych.models.heads import ScalarHead
from triptych.stages.whole_model import WholeModel


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

    def _loaded(self, folder: Path | None) -> RoleModel:
        self.each.append(self._load(folder))
        return self.each[-1]
