"""A whole model that a role starts from, as workers get it: its place, of which each process reads the files itself."""

from dataclasses import dataclass
from pathlib import Path

from triptych import storage
from triptych.recipe.method import Freeze, Full
from triptych.registry import AdapterVersion


@dataclass(frozen=True)
class WholeModel:
    """The recipe's base, or a registered whole model or reward model of its shape. Picklable."""

    version: AdapterVersion | None
    """None: the base."""
    method: Full | Freeze
    """Weights of it that are trained, where the role is."""

    @property
    def folder(self) -> Path | None:
        """Its Hugging Face folder on this node; None: the base's."""
        return None if self.version is None else storage.local_copy(self.version.url)
