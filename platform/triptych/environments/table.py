"""The environments, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from triptych.environments.base import MakeEpisode
from triptych.environments.calculator import CalculatorEpisode
from triptych.environments.function import FunctionEpisodes

ENVIRONMENTS: Mapping[str, Callable[[Any], MakeEpisode]] = {
    "calculator": lambda settings: CalculatorEpisode.of,
    "function": FunctionEpisodes.of,
}
"""Name -> from the settings in the recipe, what makes an episode. UserError where that cannot be had."""
