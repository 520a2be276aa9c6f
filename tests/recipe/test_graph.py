import pickle

import pytest

from triptych.recipe import Recipe, RecipeError, ready, stage_order


def recipe(**stages: dict[str, object]) -> Recipe:
    data = {"train": {"path": "x.jsonl"}}
    filled = {name: {"data": data, "train": {"steps": 1}, **stage} for name, stage in stages.items()}
    return Recipe.model_validate({"name": "r", "model": {"base": "b"}, "stages": filled})


REVIEWS = recipe(
    ppo={"kind": "rl", "policy": "sft", "rewards": [{"stage": "rm"}]},
    rm={"kind": "reward"},
    sft={"kind": "sft"},
)


def test_parents_come_first_else_the_order_of_the_recipe() -> None:
    assert stage_order(REVIEWS) == ["rm", "sft", "ppo"]


def test_independent_stages_do_not_wait_for_each_other() -> None:
    assert ready(REVIEWS, done=[], running=[]) == ["rm", "sft"]
    assert ready(REVIEWS, done=[], running=["rm"]) == ["sft"]
    assert ready(REVIEWS, done=["sft"], running=["rm"]) == []
    assert ready(REVIEWS, done=["sft", "rm"], running=[]) == ["ppo"]
    assert ready(REVIEWS, done=["sft", "rm"], running=["ppo"]) == []
    assert ready(REVIEWS, done=["sft", "rm", "ppo"], running=[]) == []


def test_adapter_versions_are_no_stages() -> None:
    loose = recipe(ppo={"kind": "rl", "policy": "reviews-sft@3", "rewards": [{"stage": "judge@12"}]})
    assert stage_order(loose) == ["ppo"]


@pytest.mark.parametrize("ref", ["x@0", "x@-1", "@3", "x@3@4", "../x@3", "x@canary"])
def test_what_is_no_adapter_version(ref: str) -> None:
    with pytest.raises(RecipeError, match="is no adapter version"):
        stage_order(recipe(ppo={"kind": "rl", "policy": ref, "rewards": [{"stage": "x@1"}]}))


def test_longer_cycle_is_told_from_its_own_stages() -> None:
    with pytest.raises(RecipeError) as caught:
        stage_order(
            recipe(
                start={"kind": "sft", "needs": ["b"]},
                b={"kind": "sft", "needs": ["c"]},
                c={"kind": "sft", "needs": ["b"]},
            )
        )
    assert str(caught.value) == "stages.b.needs.0: stages wait for each other: b -> c -> b"
    assert caught.value.file is None
    assert caught.value.line is None


def test_every_unknown_reference_is_told() -> None:
    with pytest.raises(RecipeError) as caught:
        stage_order(recipe(ppo={"kind": "rl", "policy": "a", "rewards": [{"stage": "b"}], "needs": ["c"]}))
    assert str(caught.value).splitlines() == [
        "stages.ppo.policy: no stage `a`; allowed: a stage whose output is a policy, or an adapter version as `name@3`",
        "stages.ppo.rewards.0.stage: no stage `b`; allowed: a stage whose output is a reward model, "
        "or an adapter version as `name@3`",
        "stages.ppo.needs.0: no stage `c`; allowed: none: there is no other stage",
    ]


def test_error_survives_a_process_border() -> None:
    with pytest.raises(RecipeError) as caught:
        stage_order(recipe(ppo={"kind": "rl", "policy": "a", "rewards": [{"stage": "x@1"}]}))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
