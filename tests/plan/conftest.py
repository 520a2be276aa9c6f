from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.recipe import Recipe, load_recipe

REVIEWS = """\
name: reviews
model: {base: smollm2-135m-instruct}
stages:
  sft:
    kind: sft
    data: {train: {path: sft.jsonl}}
    train: {epochs: 1}
  reward:
    kind: reward
    data: {train: {path: pairs.jsonl}}
    train: {epochs: 1}
  ppo:
    kind: ppo
    policy: sft
    reward: reward
    data: {train: {path: prompts.jsonl}}
    steps: 8
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(REVIEWS)
    return path


@pytest.fixture
def reviews(recipe_file: Path) -> Callable[..., Recipe]:
    """The recipe with `--set` overrides."""
    return lambda *overrides: load_recipe(recipe_file, overrides)
