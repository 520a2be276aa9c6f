from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.recipe import Recipe, load_recipe


@pytest.fixture
def recipe_file(three_stages: Path) -> Path:
    return three_stages


@pytest.fixture
def reviews(recipe_file: Path) -> Callable[..., Recipe]:
    """The recipe with `--set` overrides."""
    return lambda *overrides: load_recipe(recipe_file, overrides)
