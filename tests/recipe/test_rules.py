"""Refusals that need more than one field."""

from pathlib import Path

import pytest

from triptych.recipe import Full, RecipeError, Rl, dump_recipe, load_recipe
from triptych.recipe.method import Freeze
from triptych.recipe.stage import Known

REFUSED = [
    (
        ["stages.sft.train.workers.strategy=zero1", "stages.sft.train.optimizer.name=muon"],
        "stages.sft.train.optimizer.name: muon cannot run under strategy zero1, which flattens parameters; "
        "allowed: adamw, sgd, lion, or workers.strategy auto, single, ddp or fsdp",
    ),
    (
        ["stages.ppo.train.workers.strategy=zero2", "stages.ppo.algorithm.critic.optimizer.name=adamw_8bit"],
        "stages.ppo.algorithm.critic.optimizer.name: adamw_8bit cannot run under strategy zero2",
    ),
    (
        ["stages.sft.train.workers.strategy=zero3", "stages.sft.train.optimizer.name=adamw_schedule_free"],
        "stages.sft.train.optimizer.name: adamw_schedule_free cannot run under strategy zero3",
    ),
    (
        ["model.dtype=float16", "stages.reward.train.workers.strategy=zero2"],
        "stages.reward.train.workers.strategy: zero2 has no loss scaling, which model.dtype float16 needs; allowed: "
        "auto, single, ddp, fsdp, or model.dtype bfloat16 or float32",
    ),
    (
        ["stages.sft.train.evaluate_every=1", "stages.sft.train.early_stopping={patience: 2}"],
        "stages.sft.train.early_stopping: no held-out rows to measure; allowed: with `data.heldout`",
    ),
    (
        [
            "stages.reward.train.evaluate_every=1",
            "stages.reward.train.early_stopping={metric: disagreement}",
            "stages.reward.data.heldout={path: pairs.jsonl}",
        ],
        "stages.reward.train.early_stopping.metric: 'disagreement' is not measured on the held-out rows of this stage; "
        "allowed: loss, accuracy, margin",
    ),
    (
        ["stages.ppo.train.batch.minibatches=65"],
        "stages.ppo.train.batch.minibatches: 65, and a step has 64 samples; allowed: up to 64",
    ),
    (
        ["stages.ppo.kl={target: 3.0, horizon: 12}"],
        "stages.ppo.kl.horizon: 12, and a step of 64 samples could take the coefficient to zero or below; "
        "allowed: more than 12.8",
    ),
    (
        ["stages.ppo.rollout.sampling.temperature=0.001"],
        "stages.ppo.rollout.sampling.temperature: cannot be 0.001; allowed: a number >= 0.01 and <= 2",
    ),
    (
        ["stages.ppo.train.workers.strategy=zero3"],
        "stages.ppo.train.workers.strategy: zero3 trains one role, and this stage has policy, critic; allowed: "
        "auto, single, ddp, fsdp, zero1, zero2",
    ),
    (
        ["stages.reward.members=3", "stages.reward.train.workers.strategy=zero3"],
        "stages.reward.train.workers.strategy: zero3 trains one role, and this stage has reward, reward-1, reward-2",
    ),
    (
        ["model.quantization=int8", "stages.sft.train.workers.strategy=zero3"],
        "stages.sft.train.workers.strategy: zero3 holds the base in float32, not in model.quantization int8",
    ),
    (
        ["model.quantization=nf4"],
        "stages.sft.train.workers.gpus: 0, and model.quantization nf4 needs a GPU; allowed: more than 0, "
        "or quantization int8",
    ),
    (
        ["model.quantization=nf4", "stages.ppo.train.workers.gpus=1"],
        "stages.ppo.rollout: engines sample the base unrounded where model.quantization is nf4, and so another model "
        "than is trained; allowed: quantization int8, or none",
    ),
    (
        ["model.quantization=int8", "stages.sft.method.name=full"],
        "stages.sft.method: full trains weights of the base, and model.quantization int8 is for frozen ones; allowed: ",
    ),
    (
        ["stages.sft.method.name=full", "stages.ppo.rollout.sync=adapter"],
        "stages.ppo.rollout.sync: adapter, and the policy is a whole model, trained by full; allowed: auto, merged",
    ),
    (
        ["stages.ppo.policy=base", "stages.ppo.rollout.sync=adapter"],
        "stages.ppo.rollout.sync: adapter, and the policy is a whole model, trained by full; allowed: auto, merged",
    ),
    (
        ["stages.ppo.policy=base", "model.quantization=int8"],
        "stages.ppo.method: full trains weights of the base, and model.quantization int8 is for frozen ones",
    ),
    (
        ["stages.ppo.method={name: freeze, layers: 2}"],
        "stages.ppo.method: freeze trains a whole model, and `sft` is an adapter, which is trained by the method that "
        "made it; allowed: no method, or as `policy` a whole model or `base`",
    ),
    (
        ["stages.ppo.policy=base", "stages.ppo.method.name=lora"],
        "stages.ppo.method.name",
    ),
    (
        ["stages.sft.method.name=full", "stages.ppo.train.workers.strategy=zero3"],
        "stages.ppo.train.workers.strategy: zero3 trains one role, and this stage has policy, critic",
    ),
    (
        ["stages.sft.method.name=houlsby"],
        "stages.ppo.policy: `sft`: houlsby cannot be merged into the weights, and PPO's engines run merged weights or "
        "a LoRA; allowed: lora, dora, pissa, adalora, ia3, ",
    ),
    (
        ["stages.sft.method=[{name: lora}, {name: p_tuning_v2, lr: 5e-3}]"],
        "stages.ppo.policy: `sft`: p_tuning_v2 cannot be merged into the weights",
    ),
    (
        ["stages.sft.method.name=full", "stages.reward.from=sft", "stages.reward.method={name: lora}"],
        "stages.reward.method: lora makes an adapter on model.base, and the weights of the whole model `sft` are "
        "others; allowed: full or freeze, or the folder of that model as model.base",
    ),
    (
        ["stages.reward.method.name=hra", "model.quantization=int8"],
        "stages.reward.method: hra computes with the base's weights themselves, which model.quantization int8 does not",
    ),
    (
        ["stages.reward.method.name=vblora", "stages.reward.train.workers.strategy=fsdp"],
        "stages.reward.method: vblora trains one tensor in all blocks, and fsdp shards each block by itself",
    ),
    (
        ["stages.reward.method.name=adalora", "stages.reward.train.optimizer.name=adamw_schedule_free"],
        "stages.reward.method: adalora overwrites weights of which adamw_schedule_free keeps two versions",
    ),
    (
        ["stages.ppo.train.optimizer.name=adamw_schedule_free"],
        "stages.ppo.train.optimizer.name: adamw_schedule_free samples at one point and takes gradients at another",
    ),
    (
        ["stages.sft.train.workers.count=2", "stages.sft.train.workers.min_count=1"],
        "stages.sft.train.workers.min_count: an elastic group needs the cluster for itself, and stage `reward` may run "
        "beside `sft`; allowed: no min_count, or one of the two among the `needs` of the other",
    ),
    (
        ["stages.ppo.train.workers.count=2", "stages.ppo.train.workers.min_count=1"],
        "stages.ppo.train.workers.min_count: an elastic group needs the cluster for itself, "
        "and the stage's engines run beside it",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_refused(three_stages: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(three_stages, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.ppo.train.workers.strategy=zero2", "stages.ppo.algorithm.critic.optimizer.name=lion"],
        ["stages.sft.train.workers.strategy=zero3", "stages.reward.members=3"],
        ["stages.sft.train.workers.strategy=fsdp", "stages.sft.train.optimizer.name=muon", "model.dtype=float16"],
        ["model.quantization=int8", "stages.reward.train.workers.strategy=zero1"],
        ["model.quantization=int8"],
        ["stages.ppo.policy=other@1", "stages.sft.method.name=full"],
        ["stages.reward.needs=[sft]", "stages.sft.train.workers.count=2", "stages.sft.train.workers.min_count=1"],
    ],
)
def test_allowed(three_stages: Path, overrides: list[str]) -> None:
    load_recipe(three_stages, overrides)


def test_all_that_is_wrong_is_told(three_stages: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(three_stages, ["stages.ppo.train.workers.strategy=zero3", "stages.ppo.train.optimizer.name=muon"])
    assert len(caught.value.problems) == 2


def test_a_policy_has_the_method_of_the_whole_model_that_it_starts_from(three_stages: Path) -> None:
    found = load_recipe(three_stages, ["stages.sft.method={name: freeze, layers: 2}"]).stages["ppo"]
    assert isinstance(found, Rl)
    assert (found.whole, found.output) == (Freeze(layers=2), "model")
    named = load_recipe(three_stages, ["stages.sft.method={name: freeze, layers: 2}", "stages.ppo.method.name=full"])
    assert named.stages["ppo"].own_method == Full()
    for recipe in (named, load_recipe(three_stages, ["stages.ppo.policy=base"])):
        roles = {role.name: role for role in recipe.stages["ppo"].roles(recipe.stages)}
        alone = {name for name, role in roles.items() if role.own_model}
        assert alone == {"policy", "reference"} - ({"reference"} if recipe is not named else set())
        assert roles["critic"].method == roles["reward"].method
        later = recipe.stages["ppo"].leaves("ppo", recipe.stages)
        assert later == Known("ppo", "model", Full(), "rl")


def test_a_recipe_with_an_inherited_whole_method_is_written_without_it(three_stages: Path, tmp_path: Path) -> None:
    recipe = load_recipe(three_stages, ["stages.sft.method.name=full"])
    assert isinstance(recipe.stages["ppo"], Rl)
    assert recipe.stages["ppo"].whole == Full()
    written = tmp_path / "written.yaml"
    written.write_text(dump_recipe(recipe))
    assert load_recipe(written) == recipe
    assert load_recipe(written, ["stages.sft.method.name=lora"]).stages["ppo"].output == "policy"


@pytest.mark.parametrize("policy", ["sft", "base"])
def test_a_whole_reward_model_has_a_model_of_its_own_and_so_has_the_critic(three_stages: Path, policy: str) -> None:
    words = ["stages.reward.method={name: freeze, layers: 1}", f"stages.ppo.policy={policy}"]
    recipe = load_recipe(three_stages, words)
    roles = {role.name: role for role in recipe.stages["ppo"].roles(recipe.stages)}
    assert roles["reward"].method == roles["critic"].method == Freeze(layers=1)
    assert (roles["reward"].model, roles["critic"].model) == ("reward", "critic")
    assert not roles["reward"].trained


def test_a_reward_stage_takes_over_the_method_of_a_whole_model(three_stages: Path) -> None:
    words = ["stages.sft.method={name: freeze, layers: 2}", "stages.reward={kind: reward, from: sft, "
             "data: {train: {path: pairs.jsonl}}, train: {steps: 1}}"]  # fmt: skip
    assert load_recipe(three_stages, words).stages["reward"].own_method == Freeze(layers=2)
    other = [*words, "stages.reward.method.name=full"]
    assert load_recipe(three_stages, other).stages["reward"].own_method == Full()
    with pytest.raises(RecipeError, match=r"stages\.reward\.members: 2, and freeze makes a whole model of each"):
        load_recipe(three_stages, [*words, "stages.reward.members=2"])


def test_policies_share_of_the_steps_is_what_the_critics_first_ones_leave(three_stages: Path) -> None:
    recipe = load_recipe(three_stages, ["stages.ppo.algorithm.critic.warmup_steps=2", "stages.ppo.train.steps=8"])
    shares = {role.name: role.learning for role in recipe.stages["ppo"].roles(recipe.stages)}
    assert (shares["policy"], shares["critic"]) == (0.75, 1.0)
