"""Answers of the models to prompts: each model's weights go to the engines, and it is checked that they run them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from triptych import storage
from triptych.data.end_tokens import answer_texts, end_tokens
from triptych.engines.base import Logprobs, RolloutRecord, resolve_mode
from triptych.methods.merged import changed_weights
from triptych.models.adapter import peft_json
from triptych.models.adapter_effect import LARGEST_GAP
from triptych.models.full import in_buckets
from triptych.models.peft_files import largest_rank
from triptych.models.weights import read_weights
from triptych.recipe import Evaluation
from triptych.rollout.pool import RolloutPool
from triptych.rollout.requests import requests
from triptych.rollout.sync_check import check_sync
from triptych.stages.context import StageContext
from triptych.stages.evaluation.base import RowColumns
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.models import tokenizer_of
from triptych.stages.rl.sync import PROBES
from triptych.train.batch import sample_batch
from triptych.train.tasks.forward import response_logprobs

_FILE = "answers.parquet"


@dataclass
class Answers:
    """The engines of a stage, and the weights that they run."""

    ctx: StageContext[Evaluation]
    pool: RolloutPool | None
    """None: there is nothing to answer."""
    merged: bool
    """True if engines get whole weights, not adapters beside them."""
    runs: str | None = None
    """The model whose weights the engines run; None: the base's, as at their start."""
    before: Logprobs | None = None
    """Log-probabilities of the probes by the model that the engines ran before."""
    probes: list[list[int]] = field(default_factory=list)

    def make(self, passes: Passes, model: MeasuredModel, name: str, rows: RowColumns) -> None:
        """Commit the model's answers to a set, unless they are there. Every rank calls it; rank 0 asks the engines."""
        if passes.learner.group.rank == 0 and self.pool is not None and not has_answers(self.ctx, name, model.ref):
            self._sync(self.pool, passes, model, rows["prompt_ids"])
            settings, seed = self.ctx.stage.rollout, self.ctx.recipe.seed
            asked = requests(rows["prompt_ids"], settings.samples_per_prompt, name, seed)
            records = self.pool.generate(asked, settings.sampling)
            commit_answers(self.ctx, name, model.ref, self._columns(records))
        passes.learner.group.barrier()

    def _sync(self, pool: RolloutPool, passes: Passes, model: MeasuredModel, prompts: Sequence[list[int]]) -> None:
        """Give the engines the model's weights, if they run others.

        Raises:
            RunError: an engine runs other weights.
        """
        if self.runs == model.ref:
            return
        self.probes = self.probes or [list(ids) for ids in prompts[:PROBES]]
        halves = [len(ids) // 2 for ids in self.probes]
        asked = [ids[:half] for ids, half in zip(self.probes, halves, strict=True)]
        said = [ids[half:] for ids, half in zip(self.probes, halves, strict=True)]
        compute = partial(response_logprobs, temperature=1.0)
        own = passes.learner.forward(passes.role, compute, sample_batch(asked, said, passes.pad)).float().tolist()
        now = [row[: len(answer)] for row, answer in zip(own, said, strict=True)]
        if model.version is not None or self.merged:
            send_weights(self.ctx, pool, model, self.ctx.stage.models.index(model.ref), merged=self.merged)
        check_sync(pool.logprobs(self.probes, halves), now, self.before, LARGEST_GAP[self.ctx.recipe.model.dtype])
        self.runs, self.before = model.ref, now

    def _columns(self, records: Sequence[RolloutRecord]) -> dict[str, list[Any]]:
        """Answers of each row: lists with as many as there are samples of a prompt."""
        copies = self.ctx.stage.rollout.samples_per_prompt
        tokenizer = tokenizer_of(self.ctx)
        texts = answer_texts(
            tokenizer, end_tokens(self.ctx.base_dir, tokenizer), [record.response_ids for record in records]
        )
        flat: dict[str, list[Any]] = {
            "answer": texts,
            "answer_ids": [list(record.response_ids) for record in records],
            "cut": [float(record.finish_reason == "length") for record in records],
        }
        return {key: [values[at : at + copies] for at in range(0, len(values), copies)] for key, values in flat.items()}


def commit_answers(ctx: StageContext[Evaluation], name: str, ref: str, columns: RowColumns) -> None:
    """Commit a model's answers to a set: the columns of `read_answers`."""
    with storage.committed(_url(ctx, name, ref)) as folder:
        pq.write_table(pa.table(dict(columns)), folder / _FILE)


def has_answers(ctx: StageContext[Evaluation], name: str, ref: str) -> bool:
    """True if a model's answers to a set are there."""
    return storage.read_manifest(_url(ctx, name, ref)) is not None


def read_answers(ctx: StageContext[Evaluation], name: str, ref: str) -> Mapping[str, list[Any]]:
    """A model's answers to a set: `answer`, `answer_ids` and `cut`, a list of each row."""
    columns: dict[str, list[Any]] = pq.read_table(storage.local_copy(_url(ctx, name, ref)) / _FILE).to_pydict()
    return columns


def run_merged(ctx: StageContext[Evaluation], models: Sequence[MeasuredModel]) -> bool:
    """True if engines get every model as whole weights: some is no plain LoRA, or LoRAs are merged anyway."""
    plain = all(model.folder is None and (model.adapter is None or model.adapter.is_lora) for model in models)
    return not plain or resolve_mode(ctx.stage.rollout, ctx.recipe.model.dtype, str(ctx.base_dir)) == "merged"


def start_pool(ctx: StageContext[Evaluation], models: Sequence[MeasuredModel]) -> RolloutPool:
    """The engines, for all models in turn."""
    merged = run_merged(ctx, models)
    adapters = [model.adapter for model in models if model.adapter is not None and model.adapter.is_lora]
    settings = ctx.stage.rollout
    return RolloutPool.start(
        model_dir=str(ctx.base_dir),
        dtype=ctx.recipe.model.dtype,
        rollout=settings.model_copy(update={"sync": "merged" if merged else "adapter"}),
        lora_r=max((largest_rank(adapter.configs["lora"].to_dict()) for adapter in adapters), default=1),
        max_model_len=settings.max_prompt_tokens + settings.sampling.max_new_tokens,
        stop_token_ids=end_tokens(ctx.base_dir, tokenizer_of(ctx)),
        base=ctx.recipe.model,
    )


def send_weights(
    ctx: StageContext[Evaluation], pool: RolloutPool, model: MeasuredModel, version: int, *, merged: bool
) -> None:
    """Give the engines a model as a LoRA, or as the weights of the base that differ."""
    adapter = model.adapter
    if adapter is not None and adapter.is_lora:
        tensors = {name: value.contiguous() for name, value in adapter.weights.items()}
        pool.sync(save(tensors), peft_json(adapter.configs["lora"]), version)
        return
    if not merged:
        raise ValueError(f"{model.ref}: engines that run adapters get LoRAs alone")
    changed: dict[str, torch.Tensor] = {}
    if adapter is not None:
        changed = changed_weights(ctx.base_dir, adapter.method, adapter.weights, ctx.recipe.model.quantization)
    elif model.folder is not None:
        changed = read_weights(model.folder)
    pool.replace(in_buckets(changed.items(), getattr(torch, ctx.recipe.model.dtype)), version)


def _url(ctx: StageContext[Evaluation], name: str, ref: str) -> str:
    return storage.join(ctx.folder, "answers", name, ref)
