"""Dry runs: a stage's learner and its largest step, full micro-batches of the longest rows. Needs no data."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from triptych.forward.roles import RoleModel
from triptych.models.heads import ClassHead, ScalarHead
from triptych.models.quantize import quantize_linears
from triptych.models.sizes import read_config
from triptych.recipe import (
    Method,
    Model,
    Recipe,
    RoleSpec,
    TrainedStage,
    member_roles,
)
from triptych.recipe.method import Mam, Unipelt, trains_base
from triptych.recipe.training import StrategyName
from triptych.recipe.work_shape import MicroBatch
from triptych.train.batch import Batch
from triptych.train.learner import Objective
from triptych.train.learners import RoleLearner, learner_of
from triptych.train.strategies import initial_placement
from triptych.train.tasks.task import Limits, Task

STEPS = 1000
"""Steps of the pretended run, for learning-rate schedules."""


@dataclass(frozen=True)
class DryRun:
    """A stage's learner, its objectives in their order, and a function that makes batches for them."""

    learner: RoleLearner
    objectives: Sequence[Objective]
    batch: Callable[[MicroBatch], Batch]

    def step(self, limit: MicroBatch, micro_batches: int = 1) -> None:
        """Take an optimiser step of each objective on `micro_batches` micro-batches of this size."""
        for objective in self.objectives:
            self.learner.step(objective, [self.batch(limit) for _ in range(micro_batches)])


def random_base(model: Model, layers: int | None = None) -> PreTrainedModel:
    """The base that config.json describes, with random weights; `layers`: its number of blocks, if not all."""
    settings = read_config(model)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, model.dtype))
    base.config.use_cache = False
    if model.quantization is not None:
        quantize_linears(getattr(base, base.base_model_prefix))
    return base.eval().requires_grad_(False)


def dry_run(
    recipe: Recipe, name: str, base: PreTrainedModel, strategy: StrategyName, device: torch.device | None = None
) -> DryRun:
    """A dry run of the stage `name` on `base`, whose tensors may be fake; methods and heads are newly initialised.

    `device`: device of the computation; None: the base's.
    """
    stage, dtype = recipe.trained[name], getattr(torch, recipe.model.dtype)
    memory, specs = stage.train.memory, stage.roles(recipe.stages)
    models = dict.fromkeys(spec.model for spec in specs)
    bases = [base, *(copy.deepcopy(base) for _ in range(len(models) - 1))]

    def on_model(loaded: PreTrainedModel) -> RoleModel:
        return RoleModel(
            initial_placement(loaded, strategy, device or base.device),
            dtype,
            device=device,
            packing=recipe.model.packing,
            checkpointing=memory.checkpointing,
            loss_chunk=memory.loss_chunk,
        )

    made = dict(zip(models, map(on_model, bases), strict=True))
    for spec in specs:
        add_role(made[spec.model], spec)
    optimizers = {spec.name: spec.optimizer for spec in specs if spec.optimizer is not None}
    learner = learner_of(
        list(made.values()),
        optimizers,
        dict.fromkeys(optimizers, STEPS),
        dropout=stage.shape().dropout,
        strategy=strategy,
        offload=stage.workers.offload,
    )
    task: Task = resolve_name(stage.task)
    vocab = int(base.config.vocab_size)

    def batch(limit: MicroBatch) -> Batch:
        return task.full_batch(stage, Limits(limit.tokens, limit.length, vocab, limit.learned[1]))

    return DryRun(learner, task.objectives(stage, list(optimizers)), batch)


def accumulated(stage: TrainedStage, limit: MicroBatch) -> int:
    """Number of micro-batches to try in a step: 1, or 2 for any more, as gradients exist from the second on."""
    sequences = -(-stage.shape().sequences_per_update // stage.workers.count)
    usual = limit.length if limit.usual is None or stage.shape().sampling else limit.usual
    return 2 if sequences * usual > limit.tokens else 1


def textless(method: Method) -> Method:
    """The method with random initialisation in place of a text's, which would need a tokenizer."""
    if isinstance(method, tuple):
        return tuple(textless(part) for part in method)  # type: ignore[misc]
    if isinstance(method, Mam | Unipelt):
        return method.model_copy(update={"prefix": textless(method.prefix)})
    if getattr(method, "init", None) == "text":
        return method.model_copy(update={"init": "random", "init_text": None})
    return method


def add_role(model: RoleModel, spec: RoleSpec) -> None:
    """Put a role, or each member of an ensemble, on a model; methods and heads are newly initialised."""
    for role in member_roles(spec.name, spec.copies):
        if trains_base(spec.method) and not spec.trained:
            model.add_plain(role, _head(model, spec))
            continue
        model.add(role, textless(spec.method), trainable=spec.trained, head=_head(model, spec))


def _head(model: RoleModel, spec: RoleSpec) -> ScalarHead | ClassHead | None:
    if spec.head is None:
        return None
    return ScalarHead(model.hidden_size) if spec.head.bias else ClassHead(model.hidden_size, spec.head.outputs)
