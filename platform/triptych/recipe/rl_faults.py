"""Combinations of the fields of reinforcement learning that cannot work, each refused before anything starts."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from triptych.recipe.algorithm import SETTINGS
from triptych.recipe.environment import Replying
from triptych.recipe.errors import Fault
from triptych.recipe.reward import LengthReward, labels
from triptych.recipe.stage import StageBase
from triptych.recipe.stopping import stopping_faults
from triptych.recipe.teacher import teacher_faults
from triptych.recipe.whole_policy import whole_faults

if TYPE_CHECKING:
    from triptych.recipe.rl import Rl

LARGEST_ERROR = 0.2
"""Largest relative error that an adaptive KL coefficient answers to (Ziegler et al. 2019, section 2.2)."""


def rl_faults(stage: "Rl", stages: Mapping[str, StageBase]) -> Iterator[Fault]:
    """A policy that engines cannot run, amounts that do not fit a step, optimizers whose ratios mean nothing."""
    yield from _amount_faults(stage)
    yield from _kl_faults(stage)
    yield from _group_faults(stage)
    yield from _reward_faults(stage)
    yield from _missing_eos_faults(stage)
    yield from whole_faults(stage, stages)
    yield from teacher_faults(stage)
    for role in stage.trained_roles(stages):
        if role.optimizer is not None and role.optimizer.name == "adamw_schedule_free":
            yield Fault(
                (*role.optimizer_field, "name"),
                "adamw_schedule_free samples at one point and takes gradients at another, and the ratios compare "
                "the two; allowed: adamw, adamw_8bit, sgd, lion, muon",
            )
    if stage.train.stopping is not None:
        yield from stopping_faults(
            stage.train.stopping,
            reference=stage.needs_reference,
            heldout=stage.data.heldout is not None,
            evaluated=stage.train.evaluate_every is not None,
            judged=stage.judge is not None,
        )


def _amount_faults(stage: "Rl") -> Iterator[Fault]:
    samples, minibatches = (
        stage.rollout.prompts_per_step * stage.rollout.samples_per_prompt,
        stage.train.batch.minibatches,
    )
    if minibatches > samples:
        yield Fault(
            ("train", "batch", "minibatches"),
            f"{minibatches}, and a step has {samples} samples; allowed: up to {samples}",
        )
    critic = stage.algorithm.value_model
    if critic is not None and critic.warmup_steps >= stage.train.steps:
        yield Fault(
            ("algorithm", "critic", "warmup_steps"),
            f"{critic.warmup_steps}, and the stage has {stage.train.steps} steps, in one of which the policy must "
            f"learn; allowed: less than {stage.train.steps}",
        )


def _kl_faults(stage: "Rl") -> Iterator[Fault]:
    """A penalty without a gradient, or with a coefficient that could not move or could change its sign."""
    if stage.kl.placement == "loss" and stage.kl.kind == "k1" and stage.needs_reference:
        yield Fault(
            ("kl", "kind"),
            "k1 in the loss, where its gradient is 0 on average and holds the policy to nothing; allowed: k2 or "
            "k3, or k1 with `kl.placement: reward`",
        )
    if stage.kl.target is not None and not stage.needs_reference:
        yield Fault(("kl", "coef"), "0, which no target moves; allowed: more than 0, or no `kl.target`")
    samples = stage.rollout.prompts_per_step * stage.rollout.samples_per_prompt
    least = samples * LARGEST_ERROR
    if stage.kl.target is not None and stage.kl.horizon <= least:
        yield Fault(
            ("kl", "horizon"),
            f"{stage.kl.horizon:g}, and a step of {samples} samples could take the coefficient to zero or below; "
            f"allowed: more than {least:g}",
        )


def _group_faults(stage: "Rl") -> Iterator[Fault]:
    """Groups that have nothing to compare, or in which equal scores are no sign of equal rewards."""
    if stage.algorithm.grouped and stage.rollout.samples_per_prompt < 2:
        without = ", ".join(name for name, settings in SETTINGS.items() if not settings.grouped)
        yield Fault(
            ("rollout", "samples_per_prompt"),
            f"1, and {stage.algorithm.name} compares the answers to one prompt with each other; allowed: at least "
            f"2, or `algorithm.name` {without}",
        )
    if stage.algorithm.more_rounds is not None and stage.needs_reference and stage.kl.placement == "reward":
        yield Fault(
            ("algorithm", "dynamic_sampling"),
            "leaves out answers of equal scores, and with the KL in their rewards they differ; allowed: with "
            "`kl.placement: loss` or `kl.coef: 0`, or no dynamic_sampling",
        )


def _reward_faults(stage: "Rl") -> Iterator[Fault]:
    named, longest = labels(stage.rewards), stage.answer_tokens
    if all(reward.weight == 0 for reward in stage.rewards) and not stage.algorithm.taught:
        yield Fault(("rewards", 0, "weight"), "0, and no other reward is learned from; allowed: one other than 0")
    for number, reward in enumerate(stage.rewards):
        if named[number] in named[:number]:
            yield Fault(
                ("rewards", number, "label"),
                f"{named[number]} is the label of an earlier reward too; allowed: each label once",
            )
        if reward.name == "environment" and not isinstance(stage.environment, Replying):
            yield Fault(
                ("rewards", number, "name"),
                f"environment, and {stage.environment.name} gives no reward; allowed: with an environment that replies",
            )
        if isinstance(reward, LengthReward) and reward.unpunished >= longest:
            yield Fault(
                ("rewards", number, "limit"),
                f"answers of up to rollout.sampling.max_new_tokens = {longest} tokens are never punished, which "
                f"begins above {reward.unpunished}; allowed: limit - cache below {longest}",
            )


def _missing_eos_faults(stage: "Rl") -> Iterator[Fault]:
    fixed = stage.missing_eos_score
    if fixed is None:
        return
    if stage.missing_eos_penalty:
        yield Fault(
            ("missing_eos_penalty",),
            f"{stage.missing_eos_penalty:g}, and missing_eos_score is {fixed:g}; allowed: one of them",
        )
    if abs(fixed) > stage.reward_clip:
        yield Fault(
            ("missing_eos_score",),
            f"{fixed:g}, and reward_clip {stage.reward_clip:g} would cut it; allowed: up to {stage.reward_clip:g} in "
            "size",
        )
