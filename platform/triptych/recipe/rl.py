"""The stage kind of reinforcement learning."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from triptych.recipe.algorithm import SETTINGS, AlgorithmSettings, Importance, Kl, Ppo
from triptych.recipe.base import Closed, Count, NoEffect
from triptych.recipe.errors import Fault
from triptych.recipe.method import Method, names_of
from triptych.recipe.refusals import as_policy, as_scorer, is_lora, keeps_form
from triptych.recipe.reward import LengthReward, ModelReward, RewardTerm, labels, role_of
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.spec import Path
from triptych.recipe.stage import (
    CRITIC,
    POLICY,
    REFERENCE,
    TEACHER,
    HeadSpec,
    Known,
    Output,
    Reference,
    RoleSpec,
    SamplingShape,
    StageBase,
    TrainedStage,
    WorkShape,
    method_of,
)
from triptych.recipe.stopping import StopRules, stopping_faults
from triptych.recipe.training import BatchBase, Optimizer, TrainingBase, Workers

LARGEST_ERROR = 0.2
"""Largest relative error that an adaptive KL coefficient answers to (Ziegler et al. 2019, section 2.2)."""

_SCALAR = HeadSpec(1, bias=True)
_CRITIC_OPTIMIZER = ("algorithm", "critic", "optimizer")


class Synchronous(Closed):
    """Sample, then learn: every answer is of the newest weights."""

    name: Literal["sync"] = "sync"
    """Name of the schedule."""


class RlBatch(BatchBase):
    """Minibatches and epochs in which the samples of a step are learned from."""

    epochs: Count = 1
    """Passes over the samples of a step."""
    minibatches: Count = 1
    """Optimiser steps a pass."""


class RlTraining(TrainingBase):
    """Training on samples: a step samples, scores and updates."""

    steps: Count
    """Steps of the stage, each with its own samples."""
    optimizer: Optimizer = Optimizer(lr=1e-4)
    """Optimizer of the policy."""
    batch: RlBatch = RlBatch()
    """Updates of a step, and size of micro-batches."""
    workers: NoEffect[Workers] = Workers(threads=2)
    """Ray Train workers. More threads than CPUs pay off: the engines rest while the learner works."""
    checkpoint_every: NoEffect[Count] = 4
    """Steps between checkpoints."""
    evaluate_every: Count | None = None
    """Steps between measurements on held-out prompts; None: before the first and after the last only."""
    stopping: StopRules | None = None
    """Rules and budgets that end the stage before its last step."""

    def total_steps(self, rows: int) -> int:
        """Steps of the whole stage, however many prompts there are."""
        return self.steps


class Rl(TrainedStage):
    """Reinforcement learning of a policy from rewards."""

    runner = "triptych.stages.rl.stage:run"
    task = "triptych.train.tasks.rl:TASK"
    largest_batch = "triptych.stages.rl.largest_batch:of_rows"
    rows = "prompts"

    kind: Literal["rl"]
    policy: str
    """The SFT stage, or a registered adapter version, that the policy starts from and is held to."""
    algorithm: AlgorithmSettings = Ppo()
    """Algorithm: credit assignment and objectives."""
    rewards: tuple[RewardTerm, ...] = Field(min_length=1)
    """Scores of an answer, of which the weighted sum is learned from."""
    schedule: Synchronous = Synchronous()
    """Schedule of sampling and learning."""
    rollout: Rollout = Rollout()
    """Prompts of a step, and the engines that answer them."""
    train: RlTraining
    """Steps, policy's optimizer, batches, memory, workers, checkpoints and evaluations."""
    kl: Kl = Kl()
    """Penalty for leaving the reference; `kl.coef: 0`: there is none."""
    importance: Importance = Importance()
    """Correction for what engines and learner compute differently."""
    reward_clip: float = Field(10.0, gt=0)
    """Largest absolute score."""
    normalize_scores: bool = False
    """Scores to mean 0, variance 1 over all steps so far, before they are clipped."""
    missing_eos_score: float | None = None
    """Score of an answer that was cut by its length, in place of its own; None: it keeps its own, less the penalty."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Subtracted from the score of an answer that was cut by its length; 0 if left out beside `missing_eos_score`."""
    evaluation: Sampling = Sampling()
    """Settings for the sampling of held-out answers; those left out are `rollout.sampling`'s."""
    judge: Literal["vader"] | None = None
    """A score that training never sees, measured on the held-out answers."""

    @field_validator("kl")
    @classmethod
    def _kl_of_the_algorithm(cls, kl: Kl, info: ValidationInfo) -> Kl:
        """Put the penalty where the algorithm has it, as far as the recipe does not say."""
        settings, given = info.data.get("algorithm"), kl.model_fields_set
        placement = kl.placement if "placement" in given or settings is None else settings.kl_placement
        kind = "k3" if placement == "loss" and "kind" not in given else kl.kind
        coef = kl.coef if "coef" in given or settings is None else settings.kl_coef
        return kl.model_copy(update={"placement": placement, "kind": kind, "coef": coef})

    @field_validator("evaluation")
    @classmethod
    def _as_in_rollouts(cls, evaluation: Sampling, info: ValidationInfo) -> Sampling:
        """Measure what is trained, as far as the recipe does not say."""
        rollout = info.data.get("rollout")
        if rollout is None:
            return evaluation
        given = {name: getattr(evaluation, name) for name in evaluation.model_fields_set}
        return evaluation.model_copy(update=rollout.sampling.model_dump() | given)

    @model_validator(mode="after")
    def _fixed_or_less(self) -> "Rl":
        """No penalty on a fixed score, as far as the recipe does not say."""
        if self.missing_eos_score is not None and "missing_eos_penalty" not in self.model_fields_set:
            object.__setattr__(self, "missing_eos_penalty", 0.0)  # a recipe is frozen once it is made
        return self

    @property
    def needs_reference(self) -> bool:
        """True if there is a penalty for leaving the reference: nothing else asks for its log-probabilities."""
        return self.kl.coef > 0

    @property
    def reward_models(self) -> dict[int, str]:
        """Number of a reward -> the reward stage, or registered reward model, that it is."""
        return {number: one.stage for number, one in enumerate(self.rewards) if isinstance(one, ModelReward)}

    @property
    def output(self) -> Output:
        return "policy"

    @property
    def engines(self) -> Rollout | None:
        return self.rollout

    @property
    def shards_by_default(self) -> bool:
        return False

    def longest_prompt(self, split: str) -> int | None:
        return self.rollout.max_prompt_tokens

    def references(self) -> tuple[Reference, ...]:
        """Data, policy, teacher and reward models."""
        models, teacher = self.reward_models.items(), self.algorithm.teaching
        return (
            *super().references(),
            Reference(("policy",), self.policy, ("policy", "model")),
            *([Reference(("algorithm", "teacher"), teacher, ("policy",))] if teacher is not None else []),
            *(Reference(("rewards", number, "stage"), ref, ("reward_model",)) for number, ref in models),
        )

    def reports(self) -> tuple[str, ...]:
        """Reward, KL to reference and teacher, what the answers are like, the judge's score, as far as measured."""
        kls = {"kl": self.needs_reference, "teacher_kl": self.algorithm.teaching is not None}
        measured = [name for name, there in (kls | {"judge": self.judge is not None}).items() if there]
        return ("reward", "length", "truncated", "distinct2", *measured)

    def logs(self) -> tuple[str, ...]:
        """Reward of the sampled answers, and memory."""
        return ("reward", "peak_memory_bytes")

    def leaves(self, name: str, stages: Mapping[str, StageBase]) -> Known | None:
        """Knowledge of the policy before it is there; a method that comes out as another one is known afterwards."""
        parent = stages.get(self.policy)
        known = None if parent is None else parent.leaves(self.policy, stages)
        method = None if known is None else known.method
        return Known(name, self.output, method if method is not None and keeps_form(method) else None, self.kind)

    def output_method(self, stages: Mapping[str, StageBase]) -> Method:
        """Method of the adapter that the policy starts from."""
        return method_of(stages, self.policy)

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """Policy; its frozen reference, if the KL counts; critic and teacher, if there are any; reward models."""
        policy, models = method_of(stages, self.policy), list(self.reward_models.values())
        valued, critic = method_of(stages, models[0]) if models else policy, self.algorithm.value_model
        found = [RoleSpec(POLICY, policy, self.train.optimizer, ("train", "optimizer"), logits=True)]
        if self.needs_reference:
            found.append(RoleSpec(REFERENCE, policy, None))
        if critic is not None:
            found.append(RoleSpec(CRITIC, valued, critic.optimizer, _CRITIC_OPTIMIZER, _SCALAR, updates=critic.updates))
        if self.algorithm.teaching is not None:
            found.append(RoleSpec(TEACHER, method_of(stages, self.algorithm.teaching), None))
        return (*found, *(_scoring(role_of(number), ref, stages) for number, ref in enumerate(models)))

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step; a row is a sample."""
        rollout, batch = self.rollout, self.train.batch
        longest = rollout.max_prompt_tokens + rollout.sampling.max_new_tokens
        evaluated = rollout.max_prompt_tokens + self.evaluation.max_new_tokens
        sampling = "evaluation" if evaluated > longest else "rollout.sampling"
        shape = SamplingShape(
            rollout.prompts_per_step,
            rollout.samples_per_prompt,
            rollout.max_prompt_tokens,
            rollout.sampling.max_new_tokens,
            batch.epochs,
            batch.minibatches,
        )
        return WorkShape(
            longest=longest,
            context=max(longest, evaluated),
            context_field=f"rollout.max_prompt_tokens + {sampling}.max_new_tokens",
            rows_per_update=shape.samples // batch.minibatches,
            logits=True,
            dropout=False,
            sampling=shape,
        )

    def faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        """A policy that engines cannot run, amounts that do not fit a step, optimizers whose ratios mean nothing."""
        yield from self._amount_faults()
        yield from self._kl_faults()
        yield from self._group_faults()
        yield from self._reward_faults()
        yield from self._missing_eos_faults()
        for role in self.trained_roles(stages):
            if role.optimizer is not None and role.optimizer.name == "adamw_schedule_free":
                yield Fault(
                    (*role.optimizer_field, "name"),
                    "adamw_schedule_free samples at one point and takes gradients at another, and the ratios compare "
                    "the two; allowed: adamw, adamw_8bit, sgd, lion, muon",
                )
        if self.train.stopping is not None:
            yield from stopping_faults(
                self.train.stopping,
                reference=self.needs_reference,
                heldout=self.data.heldout is not None,
                evaluated=self.train.evaluate_every is not None,
                judged=self.judge is not None,
            )

    def _amount_faults(self) -> Iterator[Fault]:
        samples, minibatches = (
            self.rollout.prompts_per_step * self.rollout.samples_per_prompt,
            self.train.batch.minibatches,
        )
        if minibatches > samples:
            yield Fault(
                ("train", "batch", "minibatches"),
                f"{minibatches}, and a step has {samples} samples; allowed: up to {samples}",
            )
        critic = self.algorithm.value_model
        if critic is not None and critic.warmup_steps >= self.train.steps:
            yield Fault(
                ("algorithm", "critic", "warmup_steps"),
                f"{critic.warmup_steps}, and the stage has {self.train.steps} steps, in one of which the policy must "
                f"learn; allowed: less than {self.train.steps}",
            )

    def _kl_faults(self) -> Iterator[Fault]:
        """A penalty without a gradient, or with a coefficient that could not move or could change its sign."""
        if self.kl.placement == "loss" and self.kl.kind == "k1" and self.needs_reference:
            yield Fault(
                ("kl", "kind"),
                "k1 in the loss, where its gradient is 0 on average and holds the policy to nothing; allowed: k2 or "
                "k3, or k1 with `kl.placement: reward`",
            )
        if self.kl.target is not None and not self.needs_reference:
            yield Fault(("kl", "coef"), "0, which no target moves; allowed: more than 0, or no `kl.target`")
        samples = self.rollout.prompts_per_step * self.rollout.samples_per_prompt
        least = samples * LARGEST_ERROR
        if self.kl.target is not None and self.kl.horizon <= least:
            yield Fault(
                ("kl", "horizon"),
                f"{self.kl.horizon:g}, and a step of {samples} samples could take the coefficient to zero or below; "
                f"allowed: more than {least:g}",
            )

    def _group_faults(self) -> Iterator[Fault]:
        """Groups that have nothing to compare, or in which equal scores are no sign of equal rewards."""
        if self.algorithm.grouped and self.rollout.samples_per_prompt < 2:
            without = ", ".join(name for name, settings in SETTINGS.items() if not settings.grouped)
            yield Fault(
                ("rollout", "samples_per_prompt"),
                f"1, and {self.algorithm.name} compares the answers to one prompt with each other; allowed: at least "
                f"2, or `algorithm.name` {without}",
            )
        if self.algorithm.more_rounds is not None and self.needs_reference and self.kl.placement == "reward":
            yield Fault(
                ("algorithm", "dynamic_sampling"),
                "leaves out answers of equal scores, and with the KL in their rewards they differ; allowed: with "
                "`kl.placement: loss` or `kl.coef: 0`, or no dynamic_sampling",
            )

    def _reward_faults(self) -> Iterator[Fault]:
        named, longest = labels(self.rewards), self.rollout.sampling.max_new_tokens
        if all(reward.weight == 0 for reward in self.rewards) and self.algorithm.teaching is None:
            yield Fault(("rewards", 0, "weight"), "0, and no other reward is learned from; allowed: one other than 0")
        for number, reward in enumerate(self.rewards):
            if named[number] in named[:number]:
                yield Fault(
                    ("rewards", number, "label"),
                    f"{named[number]} is the label of an earlier reward too; allowed: each label once",
                )
            if isinstance(reward, LengthReward) and reward.unpunished >= longest:
                yield Fault(
                    ("rewards", number, "limit"),
                    f"answers of up to rollout.sampling.max_new_tokens = {longest} tokens are never punished, which "
                    f"begins above {reward.unpunished}; allowed: limit - cache below {longest}",
                )

    def _missing_eos_faults(self) -> Iterator[Fault]:
        fixed = self.missing_eos_score
        if fixed is None:
            return
        if self.missing_eos_penalty:
            yield Fault(
                ("missing_eos_penalty",),
                f"{self.missing_eos_penalty:g}, and missing_eos_score is {fixed:g}; allowed: one of them",
            )
        if abs(fixed) > self.reward_clip:
            yield Fault(
                ("missing_eos_score",),
                f"{fixed:g}, and reward_clip {self.reward_clip:g} would cut it; allowed: up to {self.reward_clip:g} in "
                "size",
            )

    def refusal(self, field: Path, known: Known) -> Fault | None:
        """Reason why engines cannot run the policy that the stage starts from, or a reward model cannot score."""
        if known.kind == "reward_model" and (reason := as_scorer(known.method)):
            return Fault(field, f"`{known.ref}` is {reason}")
        if field != ("policy",) or known.method is None:
            return None
        if reason := as_policy(known.method):
            return Fault(field, f"`{self.policy}`: {reason}")
        if self.rollout.sync == "adapter" and not is_lora(known.method):
            return Fault(
                ("rollout", "sync"),
                f"adapter, and engines run no {names_of(known.method)} beside the weights; allowed: auto, merged",
            )
        return None


def _scoring(role: str, ref: str, stages: Mapping[str, StageBase]) -> RoleSpec:
    """The role of a reward model."""
    scoring = stages.get(ref)
    members = len(scoring.roles(stages)) if scoring is not None else 1
    return RoleSpec(role, method_of(stages, ref), None, head=_SCALAR, copies=members)
