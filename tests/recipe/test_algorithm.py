"""Algorithms in a recipe: one is chosen by name, and what does not fit together is refused with the field to change."""

from pathlib import Path

import pytest

from triptych.recipe import (
    CRITIC,
    POLICY,
    REFERENCE,
    REWARD,
    TEACHER,
    RecipeError,
    Rl,
    dump_recipe,
    load_recipe,
    load_recipe_text,
)


def rl(path: Path, *overrides: str) -> Rl:
    stage = load_recipe(path, [f"stages.ppo.{override}" for override in overrides]).stages["ppo"]
    assert isinstance(stage, Rl)
    return stage


def test_an_algorithm_without_a_name_is_ppo(three_stages: Path) -> None:
    stage = rl(three_stages, "algorithm.clip=0.3")
    assert (stage.algorithm.name, stage.algorithm.bounds) == ("ppo", (0.3, 0.3))


@pytest.mark.parametrize(
    ("name", "placement", "kind"),
    [
        ("ppo", "reward", "k1"),
        ("rloo", "reward", "k1"),
        ("reinforce_pp", "reward", "k1"),
        ("grpo", "loss", "k3"),
        ("gspo", "loss", "k3"),
        ("cispo", "loss", "k3"),
    ],
)
def test_the_kl_stands_where_the_algorithm_has_it(three_stages: Path, name: str, placement: str, kind: str) -> None:
    stage = rl(three_stages, f"algorithm.name={name}")
    assert (stage.kl.placement, stage.kl.kind) == (placement, kind)
    assert (stage.kl.coef, rl(three_stages, f"algorithm.name={name}", "kl.coef=0.2").kl.coef) == (0.05, 0.2)
    assert rl(three_stages, f"algorithm.name={name}", "kl.placement=reward").kl.kind == "k1"
    assert rl(three_stages, f"algorithm.name={name}", "kl.placement=loss", "kl.kind=k2").kl.kind == "k2"


def test_a_written_recipe_keeps_what_the_algorithm_chose(three_stages: Path) -> None:
    recipe = load_recipe(three_stages, ["stages.ppo.algorithm.name=grpo"])
    assert load_recipe_text(dump_recipe(recipe), "dumped") == recipe


@pytest.mark.parametrize(
    ("overrides", "roles"),
    [
        ([], [POLICY, REFERENCE, CRITIC, REWARD]),
        (["kl.coef=0"], [POLICY, CRITIC, REWARD]),
        (["algorithm.name=grpo"], [POLICY, REFERENCE, REWARD]),
        (["algorithm.name=grpo", "kl.coef=0"], [POLICY, REWARD]),
        (["algorithm={name: opd, teacher: other@1}"], [POLICY, TEACHER, REWARD]),
        (["algorithm={name: opd, teacher: {base: other}}"], [POLICY, REWARD]),
        (["algorithm={name: opd, teacher: sft, divergence: jsd}"], [POLICY, TEACHER, REWARD]),
        (["algorithm={name: opd, teacher: sft}", "kl.coef=0.1"], [POLICY, REFERENCE, TEACHER, REWARD]),
    ],
)
def test_roles_are_those_that_something_reads(three_stages: Path, overrides: list[str], roles: list[str]) -> None:
    recipe = load_recipe(three_stages, [f"stages.ppo.{override}" for override in overrides])
    assert [role.name for role in recipe.stages["ppo"].roles(recipe.stages)] == roles


FAULTS = [
    (
        ["algorithm.name=grpoo"],
        r'algorithm.name: cannot be "grpoo"; did you mean `grpo` or `rloo`\?; allowed: cispo, grpo, gspo, opd, '
        r"ppo, reinforce_pp, rloo",
    ),
    (["algorithm.name=grpo", "algorithm.gamma=0.9"], r"algorithm.gamma: unknown key"),
    (
        ["algorithm.name=grpo", "rollout.samples_per_prompt=1"],
        r"rollout.samples_per_prompt: 1, and grpo compares the answers to one prompt with each other; allowed: "
        r"at least 2, or `algorithm.name` ppo, reinforce_pp, opd",
    ),
    (["algorithm.name=rloo", "rollout.samples_per_prompt=1"], r"rollout.samples_per_prompt: 1, and rloo compares"),
    (
        ["algorithm.name=grpo", "kl.kind=k1"],
        r"kl.kind: k1 in the loss, where its gradient is 0 on average .*; allowed: k2 or k3, or k1 with",
    ),
    (["kl.placement=loss", "kl.kind=k1"], r"kl.kind: k1 in the loss"),
    (["algorithm.name=opd"], r"algorithm.teacher: missing"),
    (
        ["algorithm={name: opd, teacher: reward}"],
        r"algorithm.teacher: .*`reward`",
    ),
    (
        ["algorithm={name: opd, teacher: sft, divergence: kl}"],
        r'algorithm.divergence: cannot be "kl"; allowed: sampled or reverse_kl, forward_kl, jsd',
    ),
    (
        ["algorithm={name: opd, teacher: sft, divergence: reverse_kl, beta: 0.3}"],
        r"algorithm: beta 0.3 with divergence reverse_kl; allowed: with divergence jsd",
    ),
    (
        ["algorithm={name: opd, teacher: sft, divergence: jsd, gamma: 0.5}"],
        r"algorithm: gamma 0.5 with divergence jsd, .*; allowed: 0, or divergence sampled",
    ),
    (
        ["algorithm={name: opd, teacher: {base: other}, divergence: forward_kl}"],
        r"algorithm: divergence forward_kl with a teacher of its own, .*; allowed: divergence sampled, or",
    ),
    (["algorithm={name: opd, teacher: {bas: x}}"], r"algorithm.teacher.base: missing"),
    (
        ["algorithm={name: opd, teacher: {base: other}}", "rollout.sampling.temperature=0.7"],
        r"rollout.sampling.temperature: 0.7, and engines judge the tokens of a prompt at temperature 1 alone",
    ),
    (
        ["algorithm={name: opd, teacher: {base: other}}", "algorithm.teacher.engines.sync=adapter"],
        r"algorithm.teacher.engines.sync: adapter, and a teacher's weights never change; allowed: auto",
    ),
    (["kl.coef=-0.1"], r"kl.coef: cannot be -0.1; allowed: a number >= 0"),
    (["kl={coef: 0, target: 3.0}"], r"kl.coef: 0, which no target moves"),
    (["importance.floor=3"], r"importance.*floor 3 with cap 2; allowed: a floor less than the cap"),
    (["algorithm.dual_clip=1"], r"algorithm.dual_clip: cannot be 1; allowed: a number > 1 or null"),
    (
        ["algorithm.critic.warmup_steps=8"],
        r"algorithm.critic.warmup_steps: 8, and the stage has 8 steps, .*; allowed: less than 8",
    ),
    (
        ["algorithm={name: rloo, dynamic_sampling: 2}"],
        r"algorithm.dynamic_sampling: leaves out answers of equal scores, .*; allowed: with `kl.placement: loss`",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), FAULTS)
def test_what_does_not_fit_together_is_refused(three_stages: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"stages\.ppo\.{message}"):
        rl(three_stages, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm={name: grpo, scale: false, aggregation: constant}", "kl.coef=0"],
        ["algorithm={name: grpo, clip_high: 0.28, aggregation: token, dynamic_sampling: 10}", "kl.coef=0"],
        ["algorithm={name: rloo, dynamic_sampling: 2}", "kl.placement=loss"],
        ["algorithm={name: opd, teacher: sft}", "rewards=[{name: length, limit: 40, cache: 20, weight: 0}]"],
        ["algorithm={name: opd, teacher: sft, divergence: jsd, beta: 0.1}"],
        ["algorithm={name: opd, teacher: {base: other}}", "algorithm.teacher.engines.gpus=1"],
        ["algorithm.critic={updates: 2, warmup_steps: 4, lam: 1.0}", "rollout.samples_per_prompt=1"],
    ],
)
def test_the_settings_of_papers_are_accepted(three_stages: Path, overrides: list[str]) -> None:
    assert rl(three_stages, *overrides).kind == "rl"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), (512, 0.7, 1.0)),
        (("temperature=0.2",), (512, 0.2, 1.0)),
        (("max_new_tokens=48", "top_p=0.9"), (48, 0.7, 0.9)),
    ],
)
def test_held_out_answers_are_sampled_as_rollouts_are(
    three_stages: Path, given: tuple[str, ...], expected: tuple[int, float, float]
) -> None:
    rollout = ("rollout.sampling.max_new_tokens=512", "rollout.sampling.temperature=0.7")
    overrides = [f"stages.ppo.{one}" for one in (*rollout, *(f"evaluation.{field}" for field in given))]
    recipe = load_recipe(three_stages, overrides)
    stage = recipe.stages["ppo"]
    assert isinstance(stage, Rl)
    evaluation = stage.evaluation
    assert (evaluation.max_new_tokens, evaluation.temperature, evaluation.top_p) == expected
    again = load_recipe_text(dump_recipe(recipe), "again.yaml").stages["ppo"]
    assert isinstance(again, Rl)
    assert again.evaluation == evaluation
