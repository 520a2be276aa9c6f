"""Combinations of the fields of reinforcement learning that cannot work, each refused before anything starts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from triptych.recipe.algorithm import SETTINGS
from triptych.recipe.environment import Replying
from triptych.recipe.errors import Fault
from triptych.recipe.heldout import set_faults
from triptych.recipe.reward import JudgeReward, LengthReward, RewardBase, labels
from triptych.recipe.rollout import Sampling
from triptych.recipe.spec import Path, dotted
from triptych.recipe.stage import StageBase
from triptych.recipe.stopping import stopping_faults
from triptych.recipe.teacher import teacher_faults
from triptych.recipe.whole_policy import whole_faults

if TYPE_CHECKING:
    from triptych.recipe.rl import Rl

_HOW = {"calls", "label", "normalized_by", "per_call", "requests_per_minute", "token_env", "weight"}
"""Fields of rewards that say how one is asked, weighed, scaled and named, and not what it looks at."""
LARGEST_ERROR = 0.2
"""Largest relative error that an adaptive KL coefficient answers to (Ziegler et al. 2019, section 2.2)."""


def rl_faults(stage: "Rl", stages: Mapping[str, StageBase]) -> Iterator[Fault]:
    """A policy that engines cannot run, amounts that do not fit a step, optimizers whose ratios mean nothing."""
    yield from _amount_faults(stage)
    yield from _kl_faults(stage)
    yield from _group_faults(stage)
    yield from _reward_faults(stage)
    yield from _set_faults(stage)
    yield from _watch_faults(stage)
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
            measured=[f"heldout_{name}" for name in stage.reports()],
            evaluated=stage.train.evaluate_every is not None,
            watched=stage.watched,
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
    if all(reward.weight == 0 for reward in stage.rewards) and not stage.algorithm.taught:
        yield Fault(("rewards", 0, "weight"), "0, and no other reward is learned from; allowed: one other than 0")
    yield from _label_faults(("rewards",), stage.rewards)
    for number, reward in enumerate(stage.rewards):
        yield from _answer_faults(stage, ("rewards", number), reward, stage.rollout.samples_per_prompt)
    yield from _length_faults(stage, ("rewards",), stage.rewards, ("rollout", "sampling"), stage.rollout.sampling)


def _length_faults(
    stage: "Rl", field: Path, rewards: Sequence[RewardBase], place: Path, sampling: Sampling
) -> Iterator[Fault]:
    """Limits of length that no answer reaches: those sampled by `sampling`, which stands at `place`, are shorter."""
    turns = stage.environment.turns
    longest = turns * sampling.max_new_tokens
    said = f"{f'{turns} x ' if turns > 1 else ''}{dotted(place)}.max_new_tokens = {longest}"
    for number, reward in enumerate(rewards):
        if isinstance(reward, LengthReward) and reward.unpunished >= longest:
            yield Fault(
                (*field, number, "limit"),
                f"the penalty begins above {reward.unpunished} tokens, and no answer has more than {said}; allowed: "
                f"limit - cache below {longest}",
            )


def _label_faults(field: Path, rewards: Sequence[RewardBase]) -> Iterator[Fault]:
    named = labels(rewards)
    for number, label in enumerate(named):
        if label in named[:number]:
            yield Fault(
                (*field, number, "label"), f"{label} is the label of an earlier reward too; allowed: each label once"
            )


def _answer_faults(stage: "Rl", field: Path, reward: RewardBase, samples: int) -> Iterator[Fault]:
    """A judge that compares answers to one prompt, of which there is one; an environment's reward without one."""
    if reward.name == "environment" and not isinstance(stage.environment, Replying):
        yield Fault(
            (*field, "name"),
            f"environment, and {stage.environment.name} gives no reward; allowed: with an environment that replies",
        )
    if isinstance(reward, JudgeReward) and reward.mode == "pairs" and samples < 2:
        yield Fault(
            (*field, "mode"),
            "pairs compares the answers to a prompt, and it has one; allowed: rating, or more samples_per_prompt",
        )


def _set_faults(stage: "Rl") -> Iterator[Fault]:
    """Sets whose pass@k, or whose rewards, cannot be measured."""
    for name, one in stage.evaluations.items():
        field, samples = ("evaluations", name), one.samples_per_prompt or stage.rollout.samples_per_prompt
        yield from set_faults(field, one, stage.rewards, samples)
        yield from _label_faults((*field, "rewards"), one.rewards or ())
        yield from _length_faults(stage, (*field, "rewards"), one.rewards or (), (*field, "sampling"), one.sampling)
        for number, reward in enumerate(one.rewards or ()):
            yield from _answer_faults(stage, (*field, "rewards", number), reward, samples)
        if one.rewards and all(reward.weight == 0 for reward in one.rewards):
            yield Fault((*field, "rewards", 0, "weight"), "0, and so is every other; allowed: one other than 0")


def _watch_faults(stage: "Rl") -> Iterator[Fault]:
    """A watch that training sees, that measures nothing, or that is weighed as if it were learned from."""
    watch = stage.watch
    if watch is None:
        return
    if stage.judge is not None:
        yield Fault(("judge",), "a second score that training never sees, beside `watch`; allowed: one of them")
    if not stage.heldout_sets:
        yield Fault(("watch",), "no held-out answers to measure; allowed: with `data.heldout` or `evaluations`")
    for field in ("weight", "label"):
        if getattr(watch, field) != type(watch).model_fields[field].default:
            yield Fault(("watch", field), "is for rewards that are summed, and this is `heldout_watch`; allowed: none")
    if any(_asks(one) == _asks(watch) for one in stage.rewards if one.weight != 0):
        yield Fault(("watch",), "training learns from the same reward; allowed: one that is not among `rewards`")
    for one in stage.heldout_sets.values():
        yield from _answer_faults(stage, ("watch",), watch, one.samples_per_prompt or 1)


def _asks(reward: RewardBase) -> dict[str, object]:
    """What a reward scores, however it is called, weighed, scaled and named."""
    return reward.model_dump(exclude=_HOW)


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
