"""What every method must do; each check gives what it found, as JSON."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from tests.support.conformance.cells import Cell, method_of, refusal
from tests.support.conformance.trial import (
    LABELS,
    ROLE,
    STEPS,
    STEPS_IN_HALF,
    base_tensors,
    batch,
    learner_of,
    objective,
    role_model,
    step,
)
from tests.support.gradient_cases import gradients, in_float64, worst_error
from triptych.forward.export import adapter_of
from triptych.forward.roles import HEAD, RoleModel
from triptych.methods import freeze
from triptych.methods.merged import merged_model
from triptych.models.adapter import load_adapter, save_adapter
from triptych.models.base import load_causal_lm
from triptych.models.full import save_model
from triptych.models.heads import ClassHead
from triptych.recipe import Optimizer
from triptych.recipe.method import MERGING, Freeze, parts_of, trains_base
from triptych.train import checkpoint
from triptych.train.batch import Batch, last_token
from triptych.train.group import Group
from triptych.train.learner import Learner
from triptych.train.tasks.forward import sequence_scores

SAVED = 2
LAYOUTS = {
    torch.float64: ((True, "full"), (True, "selective"), (False, "none"), (False, "full")),
    torch.float32: ((False, "full"),),
}
"""Packing and checkpointing, beside packed rows without."""

Found = dict[str, Any]


def trains(cell: Cell, folder: Path, place: Path, group: Group) -> Found:
    """Loss falls, only what is declared changes, training goes on from a checkpoint, what is saved answers alike."""
    learner = learner_of(cell, folder, group)
    untouched = role_model(cell, folder, torch.float32)
    before = {name: p.detach() for name, p in untouched.parameters_of(ROLE).items()}
    losses = with_checkpoint(learner, cell, place, group)
    saved = checkpoint.latest(str(place / "steps"))
    assert saved is not None
    again = learner_of(cell, folder, group)
    again.load_state(saved.tensors, saved.state)
    resumed = [step(again, cell) for _ in range(SAVED, STEPS)]
    weights = learner.weights(ROLE)
    base, after = base_tensors(untouched, folder), base_tensors(learner.model, folder)
    declared = {name.removesuffix(freeze.ROWS) for name in before} if trains_base(method_of(cell.case)) else set()
    found: Found = {
        "losses": losses,
        "resumed": max(abs(a - b) for a, b in zip(resumed, losses[SAVED:], strict=True)),
        "undeclared": [name for name in base if name not in declared and not torch.equal(base[name], after[name])],
        "unchanged": [name for name, tensor in before.items() if torch.equal(tensor, weights[name])],
    }
    answers = learner.forward(ROLE, partial(answer, cell), batch(list(range(8))))
    return found | exported(cell, folder, place, weights, answers) if group.rank == 0 else found


def with_checkpoint(learner: Learner, cell: Cell, place: Path, group: Group) -> list[float]:
    """Losses of all steps, and a checkpoint on the way."""
    losses, writer = [], checkpoint.Writer(str(place / "steps"), group)
    for number in range(STEPS):
        losses.append(step(learner, cell))
        if number + 1 == SAVED:
            state = learner.state()
            writer.save(SAVED, state.slices, state.numbers)
    writer.wait()
    group.barrier()
    return losses


def answer(cell: Cell, model: RoleModel, rows: Batch) -> Tensor:
    """What a role says: classes [B, C], or logits [all real tokens, V]."""
    if cell.task == "classification":
        return sequence_scores(model, rows)
    return model.logits(model.hidden(rows["ids"], rows["mask"]))[rows["mask"].bool()]


def exported(cell: Cell, folder: Path, place: Path, weights: dict[str, Tensor], answers: Tensor) -> Found:
    """How far what is loaded again, by us and by others, is from what was trained, relative to the largest answer."""
    method, rows = method_of(cell.case), batch(list(range(8)))
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD)}
    if trains_base(method):
        if isinstance(method, Freeze):
            own = freeze.whole(method, folder, own)
        (place / "model").mkdir()
        save_model(place / "model", folder, own, torch.float32, {})
        return {
            "plain": distance(
                plain_answer(cell, load_causal_lm(place / "model", torch.float32), weights, rows), answers
            )
        }
    kind = "classifier" if cell.task == "classification" else "policy"
    save_adapter(place / "adapter", replace(adapter_of(method, weights, kind), labels=LABELS), {})
    adapter = load_adapter(place / "adapter", kind)
    model = RoleModel(load_causal_lm(folder, torch.float32))
    model.add(ROLE, adapter.method, trainable=False, weights=adapter.weights, head=head_of(cell, weights))
    with torch.no_grad(), model.eval().use(ROLE):
        found = {"loaded": distance(answer(cell, model, rows), answers)}
    if (place / "adapter" / "adapter_config.json").is_file():
        plain = PeftModel.from_pretrained(load_causal_lm(folder, torch.float32), place / "adapter")
        found["plain"] = distance(plain_answer(cell, plain, weights, rows), answers)
    if {part.name for part in parts_of(method)} <= set(MERGING):
        merged = merged_model(folder, adapter.method, adapter.weights)
        (place / "merged").mkdir()
        save_model(place / "merged", folder, merged.weights, torch.float32, {}, merged.config)
        plain = load_causal_lm(place / "merged", torch.float32)
        found["merged"] = distance(plain_answer(cell, plain, weights, rows), answers)
    return found


def plain_answer(cell: Cell, model: Any, weights: dict[str, Tensor], rows: Batch) -> Tensor:
    """`answer`, of a model of transformers or peft that knows nothing of ours but the head."""
    with torch.no_grad():
        output = model.eval()(input_ids=rows["ids"], attention_mask=rows["mask"], output_hidden_states=True)
    length = rows["ids"].shape[1]  # virtual tokens may stand before
    if cell.task == "classification":
        return last_token(output.hidden_states[-1][:, -length:], rows["mask"]) @ weights[f"{HEAD}weight"].T
    return output.logits[:, -length:][rows["mask"].bool()]


def head_of(cell: Cell, weights: dict[str, Tensor]) -> ClassHead | None:
    if cell.task != "classification":
        return None
    classes, width = weights[f"{HEAD}weight"].shape
    head = ClassHead(width, classes)
    head.load_state_dict({"weight": weights[f"{HEAD}weight"]})
    return head


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def layouts_agree(cell: Cell, folder: Path, place: Path, group: Group) -> Found:
    """Gradients do not depend on packing and checkpointing: the worst error of each layout, and where it is."""
    errors: dict[str, tuple[float, str]] = {}
    for dtype, layouts in LAYOUTS.items():
        expected = found_gradients(cell, folder, group, dtype, True, "none")
        for packing, checkpointing in layouts:
            name = f"{str(dtype)[6:]} {'packed' if packing else 'padded'} {checkpointing}"
            if refusal(cell, checkpointing):
                continue
            try:
                found = found_gradients(cell, folder, group, dtype, packing, checkpointing)
                errors[name] = worst_error(found, expected)
            except RuntimeError as error:
                errors[name] = math.inf, str(error)
    return {"errors": errors}


def found_gradients(
    cell: Cell, folder: Path, group: Group, dtype: torch.dtype, packing: bool, checkpointing: Any
) -> dict[str, Tensor]:
    """Away from the method's start, which may hide some."""
    model = role_model(cell, folder, dtype, packing=packing, checkpointing=checkpointing)
    with torch.no_grad():
        for parameter in model.parameters_of(ROLE).values():
            parameter.add_(0.02 * torch.randn(parameter.shape).to(parameter))
    learner = Learner(in_float64(model) if dtype == torch.float64 else model, {ROLE: Optimizer()}, {ROLE: 1}, group)
    return gradients(learner, objective(cell), [batch(list(range(8)), beginning=[11, 12, 13])])


def trains_in_half(cell: Cell, folder: Path, place: Path, group: Group) -> Found:
    """Loss falls in 16 bits; what is trained is in 32."""
    learner = learner_of(cell, folder, group, getattr(torch, cell.task))
    assert all(p.dtype == torch.float32 for p in learner.model.parameters_of(ROLE).values())
    return {"losses": [step(learner, cell) for _ in range(STEPS_IN_HALF)]}


CHECKS: dict[str, Callable[[Cell, Path, Path, Group], Found]] = {
    "language": trains,
    "classification": trains,
    "gradients": layouts_agree,
    "bfloat16": trains_in_half,
    "float16": trains_in_half,
}
