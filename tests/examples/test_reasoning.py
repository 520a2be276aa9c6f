"""The examples that learn from verifiers: what their rules pay, and what they measure."""

from pathlib import Path

import pytest

from triptych.recipe import Evaluation, Recipe, Rl, load_recipe, stage_order
from triptych.recipe.reward import FormatReward, Gsm8kReward, ReasoningGymReward

EXAMPLE = Path(__file__).parents[2] / "examples" / "reasoning"


def stages(name: str) -> tuple[Recipe, Rl, Evaluation]:
    recipe = load_recipe(EXAMPLE / name)
    rl, compare = recipe.stages["rl"], recipe.stages["compare"]
    assert isinstance(rl, Rl)
    assert isinstance(compare, Evaluation)
    return recipe, rl, compare


@pytest.mark.parametrize("name", ["recipe.yaml", "format.yaml"])
def test_the_policy_before_and_after_is_compared_as_it_was_sampled(name: str) -> None:
    recipe, rl, compare = stages(name)
    assert stage_order(recipe) == ["sft", "rl", "compare"]
    assert compare.models == ("base", "sft", "rl")
    assert compare.rollout.sampling.model_dump() == rl.rollout.sampling.model_dump()
    assert not rl.needs_reference


def test_the_task_is_learned_from_its_own_rule() -> None:
    _, rl, compare = stages("recipe.yaml")
    assert [type(reward) for reward in rl.rewards] == [ReasoningGymReward]
    assert rl.data.train.file.endswith("train.jsonl")
    assert [one.data.file for one in compare.sets.values() if one.data] == ["examples/reasoning/data/heldout.jsonl"]


def test_the_form_alone_is_paid_for() -> None:
    _, rl, _ = stages("format.yaml")
    form, number = rl.rewards
    assert isinstance(form, FormatReward)
    assert isinstance(number, Gsm8kReward)
    assert (form.weight, number.weight) == (1.0, 0.0)
