"""Dry runs: a stage's learner and its step at the worst, full micro-batches of the longest rows. Needs no data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from triptych.forward.roles import RoleModel
from triptych.models.heads import ClassHead, ScalarHead
from triptych.models.quantize import quantize_linears
from triptych.models.sizes import read_config
from triptych.plan.memory import micro_batch
from triptych.plan.sharding import StrategyName
from triptych.plan.worker import ANSWER_SHARE, MicroBatch
from triptych.recipe import (
    Classification,
    Method,
    Model,
    QuestionAnswering,
    Recipe,
    Reward,
    Rl,
    RoleSpec,
    TokenClassification,
    TrainedStage,
    member_roles,
)
from triptych.recipe.method import Mam, Unipelt
from triptych.train.batch import Batch, language_batch, pair_batch, sample_batch
from triptych.train.group import Group
from triptych.train.labelling import SpanSelection, TokenTagging
from triptych.train.learner import Learner, Objective
from triptych.train.strategies import where_it_begins
from triptych.train.tasks import (
    LanguageModeling,
    PairwiseReward,
    PolicyUpdate,
    TextClassification,
    ValueUpdate,
)

STEPS = 1000
"""Length of the run that is pretended, for schedules."""


@dataclass(frozen=True)
class DryRun:
    """A learner, what it minimises in turn, and the batches for it."""

    learner: Learner
    objectives: Sequence[Objective]
    batch: Callable[[MicroBatch], Batch]

    def step(self, limit: MicroBatch, micro_batches: int = 1) -> None:
        """An optimiser step of each objective on so many micro-batches of this size."""
        for objective in self.objectives:
            self.learner.step(objective, [self.batch(limit) for _ in range(micro_batches)])


def random_base(model: Model, layers: int | None = None) -> PreTrainedModel:
    """The base that config.json describes, with random weights; `layers`: of so many blocks."""
    settings = read_config(model)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, model.dtype), attn_implementation="sdpa")
    base.config.use_cache = False
    if model.quantization is not None:
        quantize_linears(getattr(base, base.base_model_prefix))
    return base.eval().requires_grad_(False)


def dry_run(
    recipe: Recipe, name: str, base: PreTrainedModel, strategy: StrategyName, device: torch.device | None = None
) -> DryRun:
    """The stage's learner on `base`, of whatever tensors it is made; new methods and heads, no weights of others.

    `device`: where it is to compute, if not where the base lies.
    """
    stage, dtype = recipe.trained[name], getattr(torch, recipe.model.dtype)
    memory, specs = stage.train.memory, stage.roles(recipe.stages)
    model = RoleModel(
        where_it_begins(base, strategy, device or base.device),
        dtype,
        device=device,
        packing=recipe.model.packing,
        checkpointing=memory.checkpointing,
        loss_chunk=memory.loss_chunk,
    )
    for spec in specs:
        _add(model, spec)
    optimizers = {spec.name: spec.optimizer for spec in specs if spec.optimizer is not None}
    learner = Learner(
        model,
        optimizers,
        dict.fromkeys(optimizers, STEPS),
        Group(),
        dropout=stage.shape().dropout,
        strategy=strategy,
        offload=stage.workers.offload,
    )
    vocab = int(base.config.vocab_size)
    return DryRun(learner, _objectives(stage, list(optimizers)), lambda limit: _batch(stage, limit, vocab))


def accumulated(stage: TrainedStage) -> int:
    """Micro-batches of a step, 2 standing for more: from the second on, gradients are there already."""
    limit, sequences = micro_batch(stage), stage.shape().sequences_per_update
    return 2 if -(-sequences // stage.workers.count) * limit.length > limit.tokens else 1


def textless(method: Method) -> Method:
    """The method with a random start in place of a text's, for which a tokenizer would be needed."""
    if isinstance(method, tuple):
        return tuple(textless(part) for part in method)  # type: ignore[misc]
    if isinstance(method, Mam | Unipelt):
        return method.model_copy(update={"prefix": textless(method.prefix)})
    if getattr(method, "init", None) == "text":
        return method.model_copy(update={"init": "random", "init_text": None})
    return method


def _add(model: RoleModel, spec: RoleSpec) -> None:
    for role in member_roles(spec.name, spec.copies):
        model.add(role, textless(spec.method), trainable=spec.trained, head=_head(model, spec))


def _head(model: RoleModel, spec: RoleSpec) -> ScalarHead | ClassHead | None:
    if spec.head is None:
        return None
    return ScalarHead(model.hidden_size) if spec.head.bias else ClassHead(model.hidden_size, spec.head.outputs)


def _objectives(stage: TrainedStage, roles: list[str]) -> Sequence[Objective]:
    if isinstance(stage, Rl):
        temperature = stage.rollout.sampling.temperature
        policy, critic = roles
        return [
            PolicyUpdate(policy, stage.algorithm.clip, temperature),
            ValueUpdate(critic, stage.algorithm.value_clip),
        ]
    if isinstance(stage, Reward):
        return [PairwiseReward(role, stage.centering) for role in roles]
    (role,) = roles
    if isinstance(stage, QuestionAnswering):
        return [SpanSelection(role, stage.max_answer_tokens)]
    if isinstance(stage, TokenClassification):
        return [TokenTagging(role, stage.labels, stage.mark_entities)]
    if isinstance(stage, Classification):
        return [TextClassification(role, stage.labels)]
    return [LanguageModeling(role)]


def _batch(stage: TrainedStage, limit: MicroBatch, vocab: int) -> Batch:
    """Rows of random tokens that fill a micro-batch, of equal length but for the last."""
    rows, rest = divmod(limit.tokens, limit.length)
    if stage.kind == "reward":
        rows += rows % 2
        half = [_row(limit.length, vocab) for _ in range(rows)]
        return pair_batch(list(zip(half[::2], half[1::2], strict=True)), 0)
    lengths = [limit.length] * rows + ([rest] if rest > 1 else [])
    texts = [_row(length, vocab) for length in lengths]
    if isinstance(stage, Rl):
        return _samples(stage, texts)
    unlearned = [round(length * (1 - ANSWER_SHARE[1])) for length in lengths]
    labels = [[-100] * count + text[count:] for count, text in zip(unlearned, texts, strict=True)]
    batch = language_batch(list(zip(texts, labels, strict=True)), 0)
    if stage.kind == "sft":
        return batch
    of_rows = _of_rows(stage, batch.pop("labels"), unlearned)
    return batch | of_rows


def _of_rows(stage: TrainedStage, labels: Tensor, unlearned: Sequence[int]) -> Batch:
    """What a head's objective reads beside the tokens; words and answers stand where chats are learned."""
    first = torch.zeros(len(labels), dtype=torch.long)
    if isinstance(stage, TokenClassification):
        return {"tags": labels.clamp(max=0)}
    if isinstance(stage, QuestionAnswering):
        return {"context_start": torch.tensor(unlearned), "start": first, "end": first}
    return {"label": first}


def _samples(stage: Rl, texts: Sequence[list[int]]) -> Batch:
    """Prompts and answers of the longest lengths, and what the objectives read of each answer's token."""
    prompt = stage.rollout.max_prompt_tokens
    cut = [min(prompt, len(text) - 1) for text in texts]
    batch = sample_batch(
        [text[:at] for text, at in zip(texts, cut, strict=True)],
        [text[at:] for text, at in zip(texts, cut, strict=True)],
        0,
    )
    width = int(batch["length"].max())
    names = ("old_logprobs", "advantages", "weights", "old_values", "returns")
    return batch | {name: torch.zeros(len(texts), width) for name in names}


def _row(length: int, vocab: int) -> list[int]:
    return [int(token) for token in torch.randint(1, vocab, (length,))]
