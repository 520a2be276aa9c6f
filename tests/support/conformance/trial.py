"""One role that trains by a case's method, on a tiny model: what the checks of the conformance table work with."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tests.support.conformance.cells import Cell, method_of, rate_of
from tests.support.gradient_cases import PAD, rows
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.models.heads import ClassHead
from triptych.recipe import Optimizer
from triptych.train.batch import Batch, language_batch
from triptych.train.group import Group
from triptych.train.learner import Learner, Objective
from triptych.train.tasks.classification import TextClassification
from triptych.train.tasks.language import LanguageModeling

STEPS = 4
STEPS_IN_HALF = 10
"""In 16 bits: the first may only find out by what a loss can be multiplied."""
ROLE = "role"
LABELS = ("one", "two", "three")
SHARES: dict[int, list[list[list[int]]]] = {
    1: [[[0, 1, 2, 3, 4], [5, 6, 7]]],
    2: [[[0, 1, 2], [3, 4]], [[5, 6, 7], []]],  # unequal, and one empty micro-batch
}
"""Ranks -> micro-batches of each: rows."""


@cache
def base(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Read once; copy it before anything is attached."""
    return load_causal_lm(folder, dtype)


def role_model(cell: Cell, folder: Path, dtype: torch.dtype, **settings: Any) -> RoleModel:
    """The same at every call."""
    torch.manual_seed(0)
    model = RoleModel(copy.deepcopy(base(folder, dtype)), dtype, **settings)
    head = ClassHead(model.hidden_size, len(LABELS)) if cell.task == "classification" else None
    model.add(ROLE, method_of(cell.case), trainable=True, head=head)
    return model


def learner_of(
    cell: Cell,
    folder: Path,
    group: Group,
    dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> Learner:
    """Of a new role."""
    optimizer = Optimizer(lr=rate_of(cell.case))
    model = role_model(cell, folder, dtype).to(device)
    return Learner(model, {ROLE: optimizer}, {ROLE: STEPS}, group, strategy=cell.strategy, max_bad_steps=STEPS_IN_HALF)


def objective(cell: Cell) -> Objective:
    return TextClassification(ROLE, LABELS) if cell.task == "classification" else LanguageModeling(ROLE)


def batch(indexes: list[int], beginning: Sequence[int] = ()) -> Batch:
    """Some of eight rows, with what both objectives need; all of them may begin alike."""
    chosen = [([*beginning, *prompt], answer) for prompt, answer in (rows()[index] for index in indexes)]
    made = language_batch([(prompt + answer, [-100] * len(prompt) + answer) for prompt, answer in chosen], PAD)
    return made | {"label": torch.tensor([index % len(LABELS) for index in indexes])}


def step(learner: Learner, cell: Cell) -> float:
    """The loss of all eight rows before an update."""
    shares = SHARES[learner.group.size][learner.group.rank]
    return learner.step(objective(cell), [batch(share) if share else None for share in shares]).metrics["loss"]


def base_tensors(model: RoleModel, folder: Path) -> dict[str, Tensor]:
    """The base's own parameters, whole, by the names that they have without a method. Collective."""
    own = {name for name, _ in base(folder, torch.float32).named_parameters()}
    named = {name.replace(".base_layer", ""): p for name, p in model.lm.named_parameters()}
    parameters = {name: named[name] for name in sorted(own)}
    with gathered(list(parameters.values())):
        return {name: whole(parameter).clone() for name, parameter in parameters.items()}


def gathered(parameters: list[nn.Parameter]) -> Any:
    """A context in which parameters that ZeRO-3 has sharded are whole. Collective."""
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def whole(parameter: nn.Parameter) -> Tensor:
    """All of a parameter that FSDP may have sharded. Collective."""
    detached = parameter.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached
