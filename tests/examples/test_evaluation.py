"""The example of an evaluation: its gates stand where the graph must stop, and it fits a laptop."""

from pathlib import Path

from triptych.plan import Machine, Node, estimate
from triptych.recipe import Evaluation, load_recipe, stage_order

RECIPE = Path(__file__).parents[2] / "examples" / "evaluation" / "recipe.yaml"
LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))


def test_the_example_compares_three_models_on_two_sets_behind_gates() -> None:
    recipe = load_recipe(RECIPE)
    assert stage_order(recipe) == ["sft", "reward", "tuned", "ppo", "compare"]
    assert "tuned" in recipe.stages["ppo"].parents()
    compare = recipe.stages["compare"]
    assert isinstance(compare, Evaluation)
    assert compare.models == ("base", "sft", "ppo")
    assert len(compare.sets) == 2
    assert compare.gate
    found = estimate(recipe, machine=LAPTOP).stages
    assert set(found["compare"].roles) == {"base", "sft", "ppo", "reward", "engine"}
    assert found["tuned"].peak_bytes < found["sft"].peak_bytes
