"""Reinforcement learning: from prompts, a policy and rewards to a registered policy.

Roles on one base: the policy starts as a trainable copy of the SFT adapter and the reference, where the KL counts, is a
frozen one; reward models are frozen, and the critic, where the algorithm has one, starts as a trainable copy of the
first, head included. A policy that is a whole model stands on a model of its own, its reference on another, and so does
each reward model that is one. Every rank runs the same code; rank 0 talks to the pool and broadcasts what it said.
"""

from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from triptych import storage
from triptych.data import encode_prompts, load_rows
from triptych.data.checked import ChatCheck
from triptych.data.end_tokens import end_tokens
from triptych.data.table import Table
from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.models.adapter import Adapter
from triptych.models.peft_files import largest_rank
from triptych.recipe import POLICY, TEACHER, Full, Rl, Source
from triptych.recipe.evaluation import BASE
from triptych.recipe.refusals import NO_EXPERTS, as_policy, is_lora, on_quantized
from triptych.recipe.spec import dotted
from triptych.recipe.stage import Known
from triptych.recipe.whole_policy import of_adapter, whole_faults
from triptych.registry import AdapterVersion
from triptych.rollout.pool import RolloutPool
from triptych.stages.adapter_probes import probes_of
from triptych.stages.artifact import (
    check_gate,
    check_same_base,
    commit_adapter,
    commit_role,
    data_parents,
    finish,
    measured,
    parent,
    registered,
    sources,
)
from triptych.stages.context import StageContext, begin
from triptych.stages.engine_models import fingerprints, start_engine_model
from triptych.stages.models import tokenizer_of
from triptych.stages.reward_models import reward_model
from triptych.stages.rl.largest_batch import largest_batch
from triptych.stages.rl.loop import fit
from triptych.stages.rl.prompts import check_columns, prompt_table
from triptych.stages.rl.stopping import read_ending
from triptych.stages.rl.worker import start
from triptych.stages.stored_adapter import StoredAdapter
from triptych.stages.whole_model import WholeModel
from triptych.train.on_ray import launch


def run(ctx: StageContext[Rl]) -> AdapterVersion:
    """Prompts -> rollouts and updates -> registered policy. Goes on from where an earlier call stopped."""
    rewarding = [_reward_model(ctx, ref) for ref in ctx.stage.reward_models.values()]
    measuring = [_reward_model(ctx, ref) for ref in ctx.stage.measuring_models]
    policy, ctx = _policy(ctx)
    stage = ctx.stage
    teaching = stage.algorithm.teaching
    teacher = None if teaching is None else parent(ctx, teaching, "policy")
    tables = {split: _encode(ctx, split, source) for split, source in sources(ctx).items()}
    used = [one for one in (policy, *rewarding, *measuring, teacher) if one is not None]
    parents = {one.version.ref: one.version.sha256 for one in used if one.version is not None}
    inputs = begin(ctx, tables, parents | data_parents(ctx), fingerprints(ctx))
    ctx.tell_of_data(largest_batch(ctx.recipe, stage, tables["train"].columns["prompt_ids"]))
    if storage.read_manifest(ctx.artifact) is None:
        with ExitStack() as pools:
            started = policy.adapter if isinstance(policy, StoredAdapter) else policy
            pool = pools.enter_context(closing(start_pool(ctx, started)))
            others = {
                one.name: pools.enter_context(closing(start_engine_model(ctx, one))) for one in stage.engine_models
            }
            config = {"ctx": ctx, "pool": pool, "policy": policy, "rewards": rewarding, "teacher": teacher}
            config |= {"teacher_pool": others.get(TEACHER), "measuring": measuring}
            launch(ctx.name, _train, config, stage.train.workers, storage.join(ctx.folder, "ray"))
    return finish(ctx, inputs, measured(ctx), more=read_ending(ctx))


def _policy(ctx: StageContext[Rl]) -> tuple[StoredAdapter | WholeModel, StageContext[Rl]]:
    """What the policy starts from, and the stage with the method of a whole model. UserError: engines cannot run it."""
    stage, where = ctx.stage, f"stages.{ctx.name}"
    version = None if stage.policy == BASE else registered(ctx, stage.policy)
    if version is None or version.kind == "model":
        return _whole_policy(ctx, version)
    initial = parent(ctx, stage.policy, "policy")
    policy = initial.adapter
    if fault := of_adapter(stage):
        raise UserError(f"{where}.{dotted(fault.path)}: {fault.message}")
    if reason := as_policy(policy.method):
        raise UserError(f"{where}.policy: {initial.version.ref}: {reason}")
    if stage.rollout.sync == "adapter" and is_lora(policy.method) and not policy.is_lora:
        raise UserError(f"{where}.rollout.sync: {initial.version.ref}: {NO_EXPERTS}")
    return initial, ctx


def _whole_policy(ctx: StageContext[Rl], version: AdapterVersion | None) -> tuple[WholeModel, StageContext[Rl]]:
    """`_policy` of a whole model, or of the base where there is no version."""
    stage = ctx.stage
    if version is not None:
        check_same_base(version, ctx.base_fingerprint, ctx.recipe.model.base)
        storage.verify(version.url)
        stage = stage.inheriting(Known(stage.policy, version.kind, Full()))
    whole = WholeModel(version, stage.whole or Full())
    if fault := next(whole_faults(stage, ()), None):
        raise UserError(f"stages.{ctx.name}.{dotted(fault.path)}: {fault.message}")
    if (rounded := ctx.recipe.model.quantization) and (reason := on_quantized(whole.method, rounded)):
        raise UserError(f"stages.{ctx.name}.policy: {reason}")
    return whole, replace(ctx, stage=stage.model_copy(update={"method": whole.method}))


def _reward_model(ctx: StageContext[Rl], ref: str) -> StoredAdapter | WholeModel:
    """The reward model that `ref` names. RunError: it falls short of its stage's gate."""
    found = reward_model(ctx, ref)
    if (gate := ctx.recipe.stages.get(ref)) and found.version is not None:
        check_gate(ref, gate, found.version.metrics)  # it may have been raised since
    return found


def start_pool(ctx: StageContext[Rl], policy: Adapter | WholeModel) -> RolloutPool:
    """The engines, for policies of this one's method and rank; they run merged weights where vLLM has no such LoRA.

    For a whole model they start with its own folder, which each node finds by its URL.
    """
    stage = ctx.stage
    native = isinstance(policy, Adapter) and policy.is_lora
    own = policy.version if isinstance(policy, WholeModel) else None
    return RolloutPool.start(
        model_dir=str(ctx.base_dir) if own is None else own.url,
        dtype=ctx.recipe.model.dtype,
        rollout=stage.rollout if native else stage.rollout.model_copy(update={"sync": "merged"}),
        lora_r=largest_rank(policy.configs["lora"].to_dict()) if isinstance(policy, Adapter) and native else 1,
        max_model_len=stage.shape().context,
        stop_token_ids=end_tokens(ctx.base_dir, tokenizer_of(ctx)),
        base=ctx.recipe.model if own is None else None,
    )


def _train(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    ctx: StageContext[Rl] = config["ctx"]
    worker = start(config)
    metrics = fit(worker)
    policy = worker.policy
    if isinstance(policy, WholeModel):
        commit_role(ctx, worker.learner, POLICY, metrics, folder=policy.folder)
        return
    probes, weights = probes_of(ctx, worker.learner, POLICY), worker.learner.weights(POLICY)
    if worker.learner.group.rank == 0:
        commit_adapter(ctx, adapter_of(policy.method, weights, ctx.stage.output), metrics, probes)


def _encode(ctx: StageContext[Rl], split: str, source: Source) -> Table:
    """Load and encode a source's prompts. UserError: rewards read columns that they lack."""
    tokenizer = tokenizer_of(ctx)
    rows = load_rows(source, "prompts", ChatCheck(tokenizer, source.control_tokens))
    prompts = encode_prompts(
        rows.items, tokenizer, ctx.stage.rollout.max_prompt_tokens, source.max_bad_rows - len(rows.bad)
    )
    check_columns(ctx, split, prompts)
    return prompt_table(prompts, rows.digest)
