"""An environment that a class of the user's is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from triptych.environments.base import Episode
from triptych.recipe.environment import FunctionEnvironment
from triptych.recipe.functions import imported


@dataclass(frozen=True)
class FunctionEpisodes:
    """Makes an object of the class for each trajectory."""

    settings: FunctionEnvironment
    make: Callable[..., Episode]

    @classmethod
    def of(cls, settings: FunctionEnvironment) -> "FunctionEpisodes":
        """The class that the recipe names. UserError: it cannot be imported."""
        return cls(settings, imported(settings.function, "class and no function"))

    def __call__(self, fields: Mapping[str, Any]) -> Episode:
        return self.make(**{**self.settings.arguments, **fields})
