"""An environment that a class of the user's is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from triptych.environments.base import Episode
from triptych.errors import UserError
from triptych.recipe.environment import FunctionEnvironment


@dataclass(frozen=True)
class FunctionEpisodes:
    """Makes an object of the class for each trajectory."""

    settings: FunctionEnvironment
    make: Callable[..., Episode]

    @classmethod
    def of(cls, settings: FunctionEnvironment) -> "FunctionEpisodes":
        """The class that the recipe names. UserError: it cannot be imported."""
        try:
            make = resolve_name(settings.function)
        except Exception as error:
            raise UserError(f"function: {settings.function} cannot be imported: {error}") from error
        if not callable(make):
            raise UserError(f"function: {settings.function} is no class and no function, but {type(make).__name__}")
        return cls(settings, make)

    def __call__(self, fields: Mapping[str, Any]) -> Episode:
        return self.make(**{**self.settings.arguments, **fields})
