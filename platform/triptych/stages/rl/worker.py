"""State of a rank of the RL stage: the roles, the pool, the prompts; how it starts, saves and goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from ray.train.torch import get_device
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from triptych.algorithms.base import Algorithm, Scored
from triptych.algorithms.table import algorithm_of
from triptych.data.encode import PromptExample
from triptych.data.end_tokens import answer_texts, end_tokens
from triptych.data.replies import ReplyTokens
from triptych.engines.base import SampleRequest
from triptych.environments.table import ENVIRONMENTS
from triptych.errors import RunError
from triptych.forward.roles import BASE
from triptych.methods.merged import WeightChanges
from triptych.models.adapter import Adapter, Normalization
from triptych.objectives.kl import AdaptiveKL
from triptych.objectives.running import RunningMoments
from triptych.recipe import CRITIC, POLICY, REFERENCE, TEACHER, Method, Optimizer, Rl, Sampling
from triptych.recipe.environment import Replying
from triptych.recipe.reward import ModelReward, RewardTerm
from triptych.recipe.spec import Path, dotted
from triptych.recipe.stage import MEASURING
from triptych.rollout.pool import RolloutPool
from triptych.rollout.requests import request, requests
from triptych.rollout.trajectory import Trajectory
from triptych.stages.context import StageContext
from triptych.stages.models import role_model, tokenizer_of
from triptych.stages.recorder import Recorder
from triptych.stages.rl.episodes import Player
from triptych.stages.rl.flat_groups import FlatGroups
from triptych.stages.rl.prompts import read_prompts
from triptych.stages.rl.roles import add_roles, add_scoring_roles
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.stopping import Stopping, stopping_of
from triptych.stages.rl.terms import Terms
from triptych.stages.role_models import RoleModels
from triptych.stages.stored_adapter import StoredAdapter
from triptych.stages.whole_model import WholeModel
from triptych.train import checkpoint
from triptych.train.learner import Objective
from triptych.train.learners import RoleLearner, learner_of
from triptych.train.tasks.forward import (
    response_logprobs,
    response_logprobs_and_entropy,
    response_values,
)
from triptych.train.tasks.rl import objectives


@dataclass
class RlWorker:
    """Roles, engines and prompts of one rank of the learner."""

    ctx: StageContext[Rl]
    learner: RoleLearner
    pool: RolloutPool
    prompts: list[PromptExample]
    heldout: Mapping[str, Sequence[PromptExample]]
    """Held-out prompts by the splits of `Rl.heldout_sets`."""
    policy: Adapter | WholeModel
    """What the policy starts from."""
    reward_roles: Sequence[tuple[str, ...]]
    """Roles of the members of each reward model, in the order of the recipe."""
    writer: checkpoint.Writer
    kl: AdaptiveKL | None
    pad: int
    changes: WeightChanges | None = None
    version: int = 0
    """Of the weights that were last sent to the engines."""
    stopping: Stopping = field(default_factory=Stopping)
    flat: FlatGroups = field(default_factory=FlatGroups)
    teacher_pool: RolloutPool | None = None
    """Engines of a teacher that is a model of its own."""
    running: RunningMoments | None = None
    """Moments of the scores of all steps; None: scores are not normalised."""
    measuring_roles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Roles of the members of each of `Rl.measuring_models`."""
    constants: dict[str, Normalization] = field(default_factory=dict)
    """Reward models that are normalised by the policy -> mean and deviation of their scores of its first answers."""

    @property
    def stage(self) -> Rl:
        return self.ctx.stage

    @property
    def algorithm(self) -> Algorithm:
        return algorithm_of(self.stage)

    def updates(self, step: int) -> list[Objective]:
        """Optimiser steps on each minibatch of step `step`: of the policy, then of the critic, if there is one."""
        found, critic = objectives(self.stage, (POLICY, CRITIC), self.kl_coef), self.stage.algorithm.value_model
        if critic is None:
            return found
        policy, value = found
        return [policy] * self.learns(step) + [value] * critic.updates

    def learns(self, step: int) -> bool:
        """True if the policy learns in step `step`, counted from 1."""
        critic = self.stage.algorithm.value_model
        return critic is None or step > critic.warmup_steps

    @property
    def sampled_first(self) -> str | None:
        """The role that engines sample before their first sync; None: no role is it."""
        if isinstance(self.policy, WholeModel):
            return REFERENCE if self.stage.needs_reference else None
        return BASE

    @property
    def kl_coef(self) -> float:
        return self.stage.kl.coef if self.kl is None else self.kl.coef

    def requests(self, prompts: Sequence[PromptExample], label: str, copies: int | None = None) -> list[SampleRequest]:
        """Each prompt `copies` times, by default as often as in rollouts."""
        each = copies or self.stage.rollout.samples_per_prompt
        return requests([prompt.input_ids for prompt in prompts], each, label, self.ctx.recipe.seed)

    def sample(
        self, prompts: Sequence[PromptExample], label: str, sampling: Sampling, copies: int | None = None
    ) -> Samples:
        """Answers of the pool to `requests`, in their order, on every rank.

        Raises:
            RunError: the pool's answers did not arrive.
        """
        asked = self.requests(prompts, label, copies) if self.learner.group.rank == 0 else []
        each = copies or self.stage.rollout.samples_per_prompt
        rows = [prompt for prompt in prompts for _ in range(each)]
        records = self._played(asked, rows, sampling) if self.learner.group.rank == 0 else None
        received = self.learner.group.broadcast(records)
        if received is None:
            raise RunError("rank 0 broadcast no samples")
        groups = [number for number in range(len(prompts)) for _ in range(each)]
        micro_tokens = self.stage.train.batch.micro_tokens
        return Samples(received, prompts, groups, self.pad, micro_tokens, sampling.temperature)

    def _played(
        self, asked: list[SampleRequest], rows: Sequence[PromptExample], sampling: Sampling
    ) -> list[Trajectory]:
        """A trajectory of each request, in their order; `rows`: of each one's prompt."""
        if self.player is None:
            return list(map(Trajectory.of, self.pool.generate(asked, sampling)))
        fields = [dict(row.fields) for row in rows]
        return self.player.play(asked, fields, lambda turn: self.pool.generate(turn, sampling))

    @cached_property
    def player(self) -> Player | None:
        """The stage's environment; None where the policy answers in a single turn. UserError: it cannot be had."""
        settings, seed = self.stage.environment, self.ctx.recipe.seed
        if not isinstance(settings, Replying):
            return None
        replies = ReplyTokens(self._tokenizer, settings.role)
        make, field = ENVIRONMENTS[settings.name](settings), f"stages.{self.ctx.name}.environment"
        return Player(
            settings, make, replies, lambda ids: self.texts([ids])[0], lambda i, lease: request(i, lease, seed), field
        )

    @cached_property
    def terms(self) -> Terms:
        """The rewards that are learned from."""
        models = zip(self.stage.reward_models, self.reward_roles, strict=True)
        return self._terms(self.stage.terms("train"), dict(models))

    @cached_property
    def heldout_terms(self) -> dict[str, Terms]:
        """The rewards of each held-out set."""
        found = {}
        for split, one in self.stage.heldout_sets.items():
            found[split] = self.terms if one.rewards is None else self._terms(self.stage.terms(split))
        return found

    @cached_property
    def watch(self) -> Terms | None:
        """The reward that training never sees; None: there is none."""
        return None if self.stage.watch is None else self._terms({("watch",): self.stage.watch})

    def _terms(self, rewards: Mapping[Path, RewardTerm], roles: Mapping[int, Sequence[str]] | None = None) -> Terms:
        """`roles`: of the reward models by their numbers; None: those of whichever role has the model."""
        settings, fields = list(rewards.values()), [dotted(field) for field in rewards]
        if roles is None:
            known = dict(zip(self.stage.reward_models.values(), self.reward_roles, strict=True)) | self.measuring_roles
            roles = {number: known[one.stage] for number, one in enumerate(settings) if isinstance(one, ModelReward)}
        return Terms(self.ctx.name, settings, fields, roles)

    def check_rewards(self) -> None:
        """UserError where a reward, the watch or the environment cannot be had. The rank that asks them calls it."""
        self.player  # noqa: B018 - it is made here, and kept
        for terms in self.all_terms:
            terms.scorers  # noqa: B018 - it is made here, and kept

    @property
    def all_terms(self) -> list[Terms]:
        """The rewards at every place of the stage."""
        return [self.terms, *self.heldout_terms.values(), *([self.watch] if self.watch else [])]

    def logprobs(self, samples: Samples, role: str) -> Tensor:
        """Log-probabilities [N, R] at the temperature of the samples."""
        return samples.forward(self.learner, role, partial(response_logprobs, temperature=samples.temperature))

    def logprobs_and_entropy(self, samples: Samples, role: str) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [N, R] at the temperature of the samples."""
        compute = partial(response_logprobs_and_entropy, temperature=samples.temperature)
        both = samples.forward(self.learner, role, compute)
        return both[..., 0], both[..., 1]

    def teacher_logprobs(self, samples: Samples) -> Tensor | None:
        """Log-probabilities [N, R] by the teacher, a frozen role or engines of its own; None without one."""
        if self.teacher_pool is not None:
            return samples.judged(self.teacher_pool, self.learner.group)
        return self.logprobs(samples, TEACHER) if self.stage.algorithm.taught else None

    def forward_passes(self, samples: Samples, scores: Tensor) -> Scored:
        """The scored answers with the forward passes that the algorithm needs."""
        old, entropy = self.logprobs_and_entropy(samples, POLICY)
        needs_values = self.algorithm.value_loss is not None
        return Scored(
            scores=scores,
            groups=torch.tensor(samples.groups),
            mask=samples.mask,
            truncated=samples.truncated,
            rollout=samples.rollout_logprobs,
            old=old,
            entropy=entropy,
            reference=self.logprobs(samples, REFERENCE) if self.stage.needs_reference else None,
            values=samples.forward(self.learner, CRITIC, response_values) if needs_values else None,
            teacher=self.teacher_logprobs(samples),
        )

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Token ids as text, without their end, special tokens, and white space at either end."""
        return answer_texts(self._tokenizer, self._ends, sequences)

    def weight_changes(self, method: Method) -> WeightChanges:
        """What the policy's method, as it is exported, changes of the base; kept, since every sync asks for it."""
        if self.changes is None or self.changes.method != method:
            self.changes = WeightChanges(self.ctx.base_dir, method, self.ctx.recipe.model.quantization)
        return self.changes

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(end_tokens(self.ctx.base_dir, self._tokenizer))

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return tokenizer_of(self.ctx)


def start(config: dict[str, Any]) -> RlWorker:
    """The roles of the stage on their models, and what surrounds them."""
    ctx: StageContext[Rl] = config["ctx"]
    stage, stopping = ctx.stage, stopping_of(ctx)
    # Taken out of what this process was given, whose copies would stay beside those on the models.
    initial: StoredAdapter | WholeModel = config.pop("policy")
    rewarding: list[StoredAdapter | WholeModel] = config.pop("rewards")
    measuring: list[StoredAdapter | WholeModel] = config.pop("measuring")
    teaching: StoredAdapter | None = config.pop("teacher")
    policy, *rewards = map(_read, (initial, *rewarding))
    models = RoleModels(lambda folder: role_model(ctx, stage.train.memory, get_device(), folder=folder))
    reward_roles = add_roles(
        models,
        policy,
        *rewards,
        reference=stage.needs_reference,
        critic=stage.algorithm.value_model is not None,
        teacher=None if teaching is None else teaching.adapter,
    )
    measured_by = add_scoring_roles(models, MEASURING, list(map(_read, measuring)))
    measuring_roles = dict(zip(stage.measuring_models, measured_by, strict=True))
    kl = stage.kl
    workers = stage.train.workers
    learner = learner_of(
        models.each,
        optimizers_of(stage),
        optimizer_steps(stage),
        strategy=workers.strategy,
        offload=workers.offload,
        max_bad_steps=stage.train.max_bad_steps,
    )
    worker = RlWorker(
        ctx=ctx,
        learner=learner,
        writer=checkpoint.Writer(ctx.checkpoints, learner.group),
        pool=config["pool"],
        teacher_pool=config["teacher_pool"],
        prompts=read_prompts(ctx, "train"),
        heldout={split: read_prompts(ctx, split) for split in stage.heldout_sets},
        policy=policy,
        reward_roles=reward_roles,
        kl=None if kl.target is None else AdaptiveKL(kl.coef, kl.target, kl.horizon),
        pad=tokenizer_of(ctx).pad_token_id,
        stopping=stopping,
        running=RunningMoments() if stage.normalize_scores else None,
        measuring_roles=measuring_roles,
    )
    if learner.group.rank == 0:
        worker.check_rewards()  # before anything is sampled
    return worker


def _read(stored: StoredAdapter | WholeModel) -> Adapter | WholeModel:
    return stored.adapter if isinstance(stored, StoredAdapter) else stored


def optimizers_of(stage: Rl) -> dict[str, Optimizer]:
    """Role that is trained -> settings of its optimizer."""
    critic = stage.algorithm.value_model
    return {POLICY: stage.train.optimizer} | ({} if critic is None else {CRITIC: critic.optimizer})


def optimizer_steps(stage: Rl) -> dict[str, int]:
    """Role that is trained -> its optimiser steps over the whole stage."""
    each, critic = stage.train.batch.epochs * stage.train.batch.minibatches, stage.algorithm.value_model
    if critic is None:
        return {POLICY: stage.train.steps * each}
    learning = stage.train.steps - critic.warmup_steps
    return {POLICY: learning * each, CRITIC: stage.train.steps * each * critic.updates}


def resume(worker: RlWorker) -> int:
    """Load the last checkpoint; steps done, 0 without one."""
    last = checkpoint.latest(worker.ctx.checkpoints)
    if last is None:
        return 0
    worker.learner.load_state(last.tensors, last.state["learner"])
    if worker.kl is not None:
        worker.kl.load_state_dict(last.state["kl"])
    if "stopping" in last.state:  # versions before had no rules
        worker.stopping.load_state(last.state["stopping"])
    if worker.running is not None:
        worker.running.load_state_dict(last.state["running"])
    worker.constants = {ref: Normalization(*one) for ref, one in last.state.get("constants", {}).items()}
    return last.step


def save(worker: RlWorker, recorder: Recorder, step: int) -> None:
    """Write everything that `resume` needs."""
    recorder.flush(step)
    state = worker.learner.state()
    numbers = {
        "learner": state.numbers,
        "kl": None if worker.kl is None else worker.kl.state_dict(),
        "running": None if worker.running is None else worker.running.state_dict(),
        "stopping": worker.stopping.state(),
        "constants": {ref: [one.mean, one.std] for ref, one in worker.constants.items()},
    }
    worker.writer.save(step, state.slices, numbers, best=worker.stopping.best_step)
