"""The stage kind of reinforcement learning."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, model_validator

from triptych.recipe.algorithm import Importance, Kl, Ppo
from triptych.recipe.base import Closed, Count, NoEffect
from triptych.recipe.errors import Fault
from triptych.recipe.method import Method, names_of
from triptych.recipe.refusals import as_policy, is_lora, keeps_form
from triptych.recipe.reward import LengthReward, ModelReward, RewardTerm, labels, role_of
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.spec import Path
from triptych.recipe.stage import (
    CRITIC,
    POLICY,
    REFERENCE,
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
    algorithm: Ppo = Ppo()
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
    """Penalty for leaving the reference."""
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
    """Settings for the sampling of held-out answers."""
    judge: Literal["vader"] | None = None
    """A score that training never sees, measured on the held-out answers."""

    @model_validator(mode="after")
    def _fixed_or_less(self) -> "Rl":
        """No penalty on a fixed score, as far as the recipe does not say."""
        if self.missing_eos_score is not None and "missing_eos_penalty" not in self.model_fields_set:
            object.__setattr__(self, "missing_eos_penalty", 0.0)  # a recipe is frozen once it is made
        return self

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
        """Data, policy and reward models."""
        models = self.reward_models.items()
        return (
            *super().references(),
            Reference(("policy",), self.policy, ("policy", "model")),
            *(Reference(("rewards", number, "stage"), ref, ("reward_model",)) for number, ref in models),
        )

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
        """Policy and its frozen reference; reward models; critic, a trainable copy of the first, or of the policy."""
        policy, models = method_of(stages, self.policy), list(self.reward_models.values())
        critic = method_of(stages, models[0]) if models else policy
        return (
            RoleSpec(POLICY, policy, self.train.optimizer, ("train", "optimizer"), logits=True),
            RoleSpec(REFERENCE, policy, None),
            RoleSpec(CRITIC, critic, self.algorithm.critic.optimizer, _CRITIC_OPTIMIZER, _SCALAR),
            *(_scoring(role_of(number), ref, stages) for number, ref in enumerate(models)),
        )

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
        yield from self._reward_faults()
        yield from self._missing_eos_faults()
        for role in self.trained_roles(stages):
            if role.optimizer is not None and role.optimizer.name == "adamw_schedule_free":
                yield Fault(
                    (*role.optimizer_field, "name"),
                    "adamw_schedule_free samples at one point and takes gradients at another, and PPO's ratios compare "
                    "the two; allowed: adamw, adamw_8bit, sgd, lion, muon",
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
        least = samples * LARGEST_ERROR
        if self.kl.target is not None and self.kl.horizon <= least:
            yield Fault(
                ("kl", "horizon"),
                f"{self.kl.horizon:g}, and a step of {samples} samples could take the coefficient to zero or below; "
                f"allowed: more than {least:g}",
            )

    def _reward_faults(self) -> Iterator[Fault]:
        named, longest = labels(self.rewards), self.rollout.sampling.max_new_tokens
        if all(reward.weight == 0 for reward in self.rewards):
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
        """Reason why engines cannot run the policy that the stage starts from."""
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
