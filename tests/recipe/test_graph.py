import pickle

import pytest

from triptych.recipe import (
    Recipe,
    RecipeError,
    dump_recipe,
    load_recipe_text,
    ready,
    stage_order,
    with_effect,
)


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


def test_what_goes_on_from_a_stage_waits_for_it_and_takes_its_method() -> None:
    found = recipe(
        last={"kind": "sft", "from": "middle"},
        middle={"kind": "sft", "from": "first", "method": {"r": 8, "dropout": 0.1}},
        first={"kind": "sft", "method": {"r": 8}},
        ppo={"kind": "rl", "policy": "last", "rewards": [{"stage": "rm@1"}]},
    )
    assert stage_order(found) == ["first", "middle", "last", "ppo"]
    assert found.trained["last"].own_method == found.trained["middle"].own_method
    assert found.stages["last"].inherited == ("method",)
    again = load_recipe_text(dump_recipe(found), "x.yaml")
    assert again == found
    assert again.stages["last"].inherited == ("method",), "what is inherited is not written down"
    wider = load_recipe_text(
        dump_recipe(found), "x.yaml", [f"stages.{name}.method.r=4" for name in ("first", "middle")]
    )
    assert wider.trained["last"].own_method == wider.trained["middle"].own_method
    assert with_effect(found.stages["last"])["from"] == "middle"
    assert with_effect(found.stages["last"])["method"]["r"] == 8


LABELS = {"kind": "classification", "labels": ["x", "y"]}


@pytest.mark.parametrize(
    ("first", "more", "message"),
    [
        ({"kind": "sft"}, {"kind": "sft", "method": {"r": 8}}, "more.method: r 8, and `first` was trained with 16; "),
        (
            {"kind": "sft"},
            {"kind": "sft", "method": {"name": "dora"}},
            "more.method: dora, and `first` was trained with",
        ),
        ({"kind": "sft", "method": {"name": "full"}}, {"kind": "sft"}, "name its folder in model.base"),
        ({"kind": "reward", "members": 2}, {"kind": "reward"}, "more.from: `first` is an ensemble of 2, and here is 1"),
        ({"kind": "reward"}, {"kind": "reward", "members": 2}, "more.from: the 2 members would all be `first`"),
        (LABELS, LABELS | {"labels": ["y", "x"]}, "more.labels: `first` names x, y; allowed: the same, in this order"),
        (
            LABELS,
            LABELS | {"kind": "token_classification"},
            "more.from: `first` has the head of a classification stage",
        ),
        (LABELS, {"kind": "reward"}, "more.from: `first` has the head of a classification stage; allowed: `head: new`"),
    ],
)
def test_what_training_cannot_go_on_from_is_refused(
    first: dict[str, object], more: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        stage_order(recipe(first=first, more=more | {"from": "first"}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("first", "more"),
    [
        ({"kind": "sft"}, {"kind": "reward", "members": 3}),
        ({"kind": "reward"}, {"kind": "reward", "members": 2, "head": "new"}),
        ({"kind": "reward", "members": 2}, {"kind": "reward", "members": 2}),
        (LABELS, {"kind": "token_classification", "labels": ["O", "z"], "head": "new"}),
        (LABELS, {"kind": "sft"}),
        (LABELS, LABELS),
    ],
)
def test_what_training_can_go_on_from(first: dict[str, object], more: dict[str, object]) -> None:
    assert stage_order(recipe(more=more | {"from": "first"}, first=first)) == ["first", "more"]


def test_an_inherited_method_is_under_the_rules_of_its_stage() -> None:
    zero = {"steps": 1, "optimizer": {"name": "adamw_schedule_free"}}
    with pytest.raises(RecipeError, match=r"stages\.more\.method: adalora overwrites weights"):
        stage_order(
            recipe(
                first={"kind": "sft", "method": {"name": "adalora"}},
                more={"kind": "sft", "from": "first", "train": zero},
            )
        )


def test_a_new_head_is_for_what_goes_on() -> None:
    with pytest.raises(ValueError, match="head: new is for a stage with `from`"):
        recipe(rm={"kind": "reward", "head": "new"})
