"""The stage kind of reinforcement learning."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from triptych.recipe.algorithm import AlgorithmSettings, Importance, Kl, Ppo
from triptych.recipe.data import Origin, Source
from triptych.recipe.environment import EnvironmentSettings, SingleTurn
from triptych.recipe.errors import Fault
from triptych.recipe.evaluation import BASE
from triptych.recipe.heldout import UNNAMED, HeldoutSet, SetName
from triptych.recipe.method import Full, Method, names_of, trains_base
from triptych.recipe.refusals import as_policy, is_lora, keeps_form
from triptych.recipe.reward import ModelReward, RewardTerm, role_of
from triptych.recipe.rl_faults import rl_faults
from triptych.recipe.rl_training import RlTraining, Synchronous
from triptych.recipe.rollout import EngineModel, Rollout, Sampling
from triptych.recipe.spec import Path
from triptych.recipe.stage import (
    CRITIC,
    MEASURING,
    POLICY,
    REFERENCE,
    TEACHER,
    HeadSpec,
    Known,
    Output,
    Reference,
    RoleSpec,
    StageBase,
    TrainedStage,
    method_of,
)
from triptych.recipe.whole_policy import Whole, of_adapter, whole_faults
from triptych.recipe.work_shape import SamplingShape, WorkShape

_SCALAR = HeadSpec(1, bias=True)
_CRITIC_OPTIMIZER = ("algorithm", "critic", "optimizer")


class Rl(TrainedStage):
    """Reinforcement learning of a policy from rewards."""

    runner = "triptych.stages.rl.stage:run"
    task = "triptych.train.tasks.rl:TASK"
    largest_batch = "triptych.stages.rl.largest_batch:of_rows"
    rows = "prompts"

    kind: Literal["rl"]
    policy: str
    """The stage, or the registered version, that the policy starts from and is held to; `base`: the base itself."""
    method: Whole | None = Field(None, discriminator="name")
    """Weights that a policy which is a whole model trains. None: those that its stage trained, or else all (`full`); an
    adapter goes on by its own method."""
    algorithm: AlgorithmSettings = Ppo()
    """Algorithm: credit assignment and objectives."""
    rewards: tuple[RewardTerm, ...] = Field(min_length=1)
    """Scores of an answer, of which the weighted sum is learned from."""
    schedule: Synchronous = Synchronous()
    """Schedule of sampling and learning."""
    environment: EnvironmentSettings = SingleTurn()
    """Who replies to the policy's turns; none, where it answers in a single one."""
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
    evaluations: dict[SetName, HeldoutSet] = {}
    """Further sets of held-out prompts by name, each with metrics of its own, `heldout_<name>_*`."""
    judge: Literal["vader"] | None = None
    """A score that training never sees, measured on the held-out answers as `heldout_judge`; `watch` is any other."""
    watch: RewardTerm | None = None
    """A reward that training never sees, measured on the held-out answers as `heldout_watch`."""
    _whole_rewards: Mapping[str, Method] = PrivateAttr(default_factory=dict)
    """Registered reward models that are known to be whole models, and what was trained of them."""

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
        return evaluation if rollout is None else rollout.sampling.changed(evaluation)

    @field_validator("evaluations")
    @classmethod
    def _sets_as_in_rollouts(cls, sets: dict[str, HeldoutSet], info: ValidationInfo) -> dict[str, HeldoutSet]:
        """Measure what is trained, as far as the recipe does not say."""
        rollout: Rollout | None = info.data.get("rollout")
        if rollout is None:
            return sets
        return {name: one.as_sampled(rollout) for name, one in sets.items()}

    @model_validator(mode="after")
    def _fixed_or_less(self) -> "Rl":
        """No penalty on a fixed score, as far as the recipe does not say."""
        if self.missing_eos_score is not None and "missing_eos_penalty" not in self.model_fields_set:
            object.__setattr__(self, "missing_eos_penalty", 0.0)  # a recipe is frozen once it is made
        return self

    @property
    def answer_tokens(self) -> int:
        """Tokens behind a prompt in the longest rollout."""
        return self.environment.longest(self.rollout.sampling.max_new_tokens)

    @property
    def needs_reference(self) -> bool:
        """True if there is a penalty for leaving the reference: nothing else asks for its log-probabilities."""
        return self.kl.coef > 0

    @property
    def reward_models(self) -> dict[int, str]:
        """Number of a reward -> the reward stage, or registered reward model, that it is."""
        return {number: one.stage for number, one in enumerate(self.rewards) if isinstance(one, ModelReward)}

    @property
    def heldout_sets(self) -> dict[str, HeldoutSet]:
        """Sets of held-out prompts by their splits, whose names their metrics begin with; the one without a name first.

        Each says how many answers a prompt gets.
        """
        own, rollout = self.data.heldout, self.rollout
        first = {} if own is None else {UNNAMED: HeldoutSet(data=own, sampling=self.evaluation)}
        named = first | {f"{UNNAMED}_{name}": one for name, one in self.evaluations.items()}
        return {split: one.as_sampled(rollout) for split, one in named.items()}

    @property
    def watched(self) -> Literal["judge", "watch"] | None:
        """The score that training never sees, by its metric in each held-out set; None: there is none."""
        if self.watch is not None:
            return "watch"
        return None if self.judge is None else "judge"

    def terms(self, split: str) -> dict[Path, RewardTerm]:
        """Rewards whose weighted sum is the score of a split's answers, by their fields below the stage."""
        own = self.heldout_sets[split].rewards if split in self.heldout_sets else None
        field: Path = ("rewards",) if own is None else ("evaluations", split.removeprefix(f"{UNNAMED}_"), "rewards")
        return {(*field, number): term for number, term in enumerate(own or self.rewards)}

    @property
    def measuring_models(self) -> tuple[str, ...]:
        """Reward stages, or registered reward models, that score held-out answers alone, each once."""
        watched = () if self.watch is None else (self.watch,)
        terms = (*watched, *(term for one in self.evaluations.values() for term in one.rewards or ()))
        found = dict.fromkeys(one.stage for one in terms if isinstance(one, ModelReward))
        return tuple(ref for ref in found if ref not in self.reward_models.values())

    @property
    def whole(self) -> Whole | None:
        """Method of a policy that is a whole model; None: it is an adapter, as far as is known."""
        return self.method or (Full() if self.policy == BASE else None)

    @property
    def own_method(self) -> Method | None:
        return self.whole

    @property
    def inherited(self) -> tuple[str, ...]:
        """The method, where it is that of a whole model, or may be once the registered version is known."""
        return ("method",) if not self._names_method and (self.method or "@" in self.policy) else ()

    @property
    def asks_versions(self) -> bool:
        """True also where a reward is a registered one, which may be a whole model."""
        return bool(self.inherited) or any("@" in ref for ref in (*self.reward_models.values(), *self.measuring_models))

    def inheriting(self, known: Known) -> "Rl":
        """The stage with the method of the whole model that its policy starts from, where it names none of its own.

        Of a registered reward model that is a whole model, its method is known from then on.
        """
        if known.kind == "reward_model" and "@" in known.ref and known.method is not None and trains_base(known.method):
            found = self.model_copy()
            found._whole_rewards = {**self._whole_rewards, known.ref: known.method}
            return found
        if self._names_method or known.ref != self.policy or known.kind != "model":
            return self
        found = self.model_copy(update={"method": known.method or Full()})
        found.model_fields_set.discard("method")  # it still is not the recipe's
        return found

    @property
    def _names_method(self) -> bool:
        return self.method is not None and "method" in self.model_fields_set

    @property
    def output(self) -> Output:
        return "policy" if self.whole is None else "model"

    @property
    def engines(self) -> Rollout | None:
        return self.rollout

    @property
    def engine_models(self) -> tuple[EngineModel, ...]:
        """A teacher of its own."""
        one, shape = self.algorithm.teaching_model, self.shape()
        if one is None:
            return ()
        place = ("algorithm", "teacher")
        return (EngineModel(TEACHER, place, one.model, one.engines, shape.context, shape.context_field),)

    @property
    def shards_by_default(self) -> bool:
        return False

    def splits(self) -> dict[str, Source]:
        """Prompts that are learned from, and those of each held-out set."""
        return {"train": self.data.train} | {split: one.data for split, one in self.heldout_sets.items()}

    def split_field(self, split: str) -> Path:
        named = split.removeprefix(f"{UNNAMED}_")
        return super().split_field(split) if named == split else ("evaluations", named, "data")

    def with_sources(self, change: Callable[[Origin], dict[str, Any]]) -> "Rl":
        changed = super().with_sources(change)
        sets = {
            name: one.model_copy(update={"data": one.data.changed(change)}) for name, one in self.evaluations.items()
        }
        return changed.model_copy(update={"evaluations": sets})

    def longest_prompt(self, split: str) -> int | None:
        return self.rollout.max_prompt_tokens

    def references(self) -> tuple[Reference, ...]:
        """Data, policy, teacher and reward models, those that measure alone too."""
        models, teacher = self.reward_models.items(), self.algorithm.teaching
        return (
            *super().references(),
            *([Reference(("policy",), self.policy, ("policy", "model"))] if self.policy != BASE else []),
            *([Reference(("algorithm", "teacher"), teacher, ("policy",))] if teacher is not None else []),
            *(Reference(("rewards", number, "stage"), ref, ("reward_model",)) for number, ref in models),
            *(Reference((*field, "stage"), one.stage, ("reward_model",)) for field, one in self._measuring_terms()),
        )

    def _measuring_terms(self) -> Iterator[tuple[Path, ModelReward]]:
        """Each reward model that measures held-out answers, with its field."""
        if isinstance(self.watch, ModelReward):
            yield ("watch",), self.watch
        for name, one in self.evaluations.items():
            for number, term in enumerate(one.rewards or ()):
                if isinstance(term, ModelReward):
                    yield ("evaluations", name, "rewards", number), term

    def reports(self) -> tuple[str, ...]:
        """Of each held-out set: reward, pass@k, KLs, what answers are like, what training never sees; as measured."""
        optional = {
            "kl": self.needs_reference,
            "teacher_kl": self.algorithm.taught,
            "judge": self.judge is not None,
            "watch": self.watch is not None,
        }
        every = ("reward", "length", "truncated", "distinct2", *(name for name, there in optional.items() if there))
        return tuple(
            f"{split}_{name}".removeprefix(f"{UNNAMED}_")
            for split, one in self.heldout_sets.items()
            for name in (*every, *(f"pass_at_{k}" for k in one.pass_at))
        )

    def logs(self) -> tuple[str, ...]:
        """Reward of the sampled answers, and memory."""
        return ("reward", "peak_memory_bytes")

    def leaves(self, name: str, stages: Mapping[str, StageBase]) -> Known | None:
        """Knowledge of the policy before it is there; a method that comes out as another one is known afterwards."""
        if self.whole is not None:
            return Known(name, self.output, self.whole, self.kind)
        parent = stages.get(self.policy)
        known = None if parent is None else parent.leaves(self.policy, stages)
        method = None if known is None else known.method
        return Known(name, self.output, method if method is not None and keeps_form(method) else None, self.kind)

    def output_method(self, stages: Mapping[str, StageBase]) -> Method:
        """Method of the adapter that the policy starts from."""
        return method_of(stages, self.policy)

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """Policy; its frozen reference, if the KL counts; critic and teacher, if there are any; reward models.

        Those that score held-out answers alone come last.
        """
        policy, models = self.whole or method_of(stages, self.policy), list(self.reward_models.values())
        valued, critic = self._scoring_method(stages, models[0]) if models else policy, self.algorithm.value_model
        optimizer = ("train", "optimizer")
        found = [RoleSpec(POLICY, policy, self.train.optimizer, optimizer, logits=True, learning=self._learning)]
        if self.needs_reference:
            found.append(RoleSpec(REFERENCE, policy, None, copied=self.policy != BASE))
        if critic is not None:
            found.append(RoleSpec(CRITIC, valued, critic.optimizer, _CRITIC_OPTIMIZER, _SCALAR, updates=critic.updates))
        if self.algorithm.teaching is not None:
            found.append(RoleSpec(TEACHER, method_of(stages, self.algorithm.teaching), None))
        found += [self._scoring(role_of(number), ref, stages) for number, ref in enumerate(models)]
        measuring = enumerate(self.measuring_models)
        return (*found, *(self._scoring(role_of(number, MEASURING), ref, stages) for number, ref in measuring))

    @property
    def _learning(self) -> float:
        """Share of the steps in which the policy learns: all but those in which the critic alone does."""
        critic = self.algorithm.value_model
        return 1.0 if critic is None else max(0.0, 1 - critic.warmup_steps / self.train.steps)

    @property
    def _more(self) -> str | None:
        """What the answers themselves decide of a step's amounts."""
        rounds = self.algorithm.more_rounds
        if not rounds:
            return None
        return (
            f"algorithm.dynamic_sampling takes up to {rounds} more rounds of sampling and scoring, as many as answers "
            "of equal scores ask for; one round is counted"
        )

    def _scoring(self, role: str, ref: str, stages: Mapping[str, StageBase]) -> RoleSpec:
        """The role of a reward model."""
        scoring = stages.get(ref)
        members = len(scoring.roles(stages)) if scoring is not None else 1
        return RoleSpec(role, self._scoring_method(stages, ref), None, head=_SCALAR, copies=members)

    def _scoring_method(self, stages: Mapping[str, StageBase], ref: str) -> Method:
        return self._whole_rewards.get(ref) or method_of(stages, ref)

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step; a row is a sample."""
        rollout, batch = self.rollout, self.train.batch
        longest = rollout.max_prompt_tokens + self.answer_tokens
        written = {"rollout.sampling": rollout.sampling, "evaluation": self.evaluation}
        written |= {f"evaluations.{name}.sampling": one.sampling for name, one in self.evaluations.items()}
        sampling = max(written, key=lambda field: written[field].max_new_tokens)  # the first of equals
        shape = SamplingShape(
            rollout.prompts_per_step,
            rollout.samples_per_prompt,
            rollout.max_prompt_tokens,
            rollout.sampling.max_new_tokens * self.environment.turns,
            batch.epochs,
            batch.minibatches,
            self._more,
        )
        return WorkShape(
            longest=longest,
            context=rollout.max_prompt_tokens + self.environment.longest(written[sampling].max_new_tokens),
            context_field=f"rollout.max_prompt_tokens + {self._answer_field(sampling)}",
            rows_per_update=shape.samples // batch.minibatches,
            logits=True,
            dropout=False,
            sampling=shape,
        )

    def _answer_field(self, sampling: str) -> str:
        """The fields that the length of a longest answer follows from."""
        turns, own = self.environment.turns, f"{sampling}.max_new_tokens"
        return own if turns == 1 else f"{turns} x {own} + {turns - 1} x environment.max_reply_tokens"

    def faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        """Combinations of its own fields that cannot work: see `rl_faults`."""
        return rl_faults(self, stages)

    def refusal(self, field: Path, known: Known) -> Fault | None:
        """Reason why engines cannot run the policy that the stage starts from."""
        if field != ("policy",) or known.method is None:
            return None
        if known.kind == "model":
            return None if self.whole else next(whole_faults(self.inheriting(known), stages=()), None)
        if fault := of_adapter(self):
            return fault
        if reason := as_policy(known.method):
            return Fault(field, f"`{self.policy}`: {reason}")
        if self.rollout.sync == "adapter" and not is_lora(known.method):
            return Fault(
                ("rollout", "sync"),
                f"adapter, and engines run no {names_of(known.method)} beside the weights; allowed: auto, merged",
            )
        return None
