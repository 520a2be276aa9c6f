"""Evaluations on the tiny model, measured in this process, beside adapters that were never trained."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.plain_model import disturb
from triptych.artifact_kinds import ArtifactKind
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.models.adapter import Normalization, save_adapter
from triptych.models.base import load_causal_lm
from triptych.models.full import save_model
from triptych.models.heads import ClassHead, ScalarHead
from triptych.observe.progress import Progress
from triptych.recipe.matrix import Lora
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext
from triptych.stages.evaluation.answers import Answers
from triptych.stages.evaluation.models import judge, measured_models
from triptych.stages.evaluation.worker import measure, read_scores

Make = Callable[[dict[str, Any]], StageContext[Any]]


class Silent(Progress):
    """Nobody hears of it."""

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        pass


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes rows to a file; the source of it."""

    def write(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": str(path)}

    return write


@pytest.fixture
def evaluate(make_context: Make) -> Callable[..., StageContext[Any]]:
    """The context of a stage with these models and sets."""

    def make(models: Sequence[str], sets: Mapping[str, Any], **fields: Any) -> StageContext[Any]:
        stage = {"kind": "evaluation", "models": list(models), "sets": dict(sets), **fields}
        return replace(make_context(stage), progress=Silent(None))

    return make


def measured_here(ctx: StageContext[Any]) -> None:
    """What the stage's workers do, in this process."""
    models = measured_models(ctx)
    judges = [judge(ctx, one.measure.judged_by) for one in ctx.stage.sets.values() if one.measure.judged_by]
    measure(ctx, models, judges, Answers(ctx, None, merged=True), torch.device("cpu"))


def numbers(ctx: StageContext[Any], name: str, ref: str) -> Mapping[str, list[Any]]:
    return read_scores(ctx, name, ref)


def register(
    ctx: StageContext[Any], name: str, folder: Path, kind: ArtifactKind = "policy", labels: Sequence[str] = ()
) -> tuple[AdapterVersion, RoleModel]:
    """Register a LoRA with random weights, of a kind; the model with it as role `role`, too."""
    method = Lora(r=4, alpha=8, dropout=0.0)
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32), packing=False)
    model.lm.set_attn_implementation("eager")
    torch.manual_seed(len(name))
    scalar = ScalarHead(model.hidden_size) if kind == "reward_model" else None
    head = ClassHead(model.hidden_size, len(labels)) if labels else scalar
    model.add("role", method, trainable=True, head=head)
    for part in model.attached["role"].values():
        disturb(part, seed=len(name))
    weights = {key: value.detach().clone() for key, value in model.parameters_of("role").items()}
    scale = Normalization(0.5, 2.0) if kind == "reward_model" else None
    adapter = replace(adapter_of(method, weights, kind), labels=tuple(labels), normalization=scale)
    save_adapter(folder / name, adapter, ctx.about() | {"stage_kind": "classification" if labels else "sft"})
    version = ctx.registry().register(
        name, folder / name, kind=kind, base="tiny", base_fingerprint=ctx.base_fingerprint, lineage={}, metrics={}
    )
    return version, model


def likeliest(model: Any, prompt: list[int], most: int, ends: list[int]) -> list[int]:
    """The likeliest tokens behind a prompt, one after another, up to an end."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] not in ends):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def register_whole(ctx: Any, name: str, folder: Path) -> Any:
    """Register the base with other weights in one layer as a whole model; the model."""
    model = load_causal_lm(ctx.base_dir, torch.float32)
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.down_proj").weight.mul_(-1.0)
    (folder / name).mkdir()
    weights = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_model(folder / name, ctx.base_dir, weights, torch.float32, ctx.about())
    about = {"base": "tiny", "base_fingerprint": ctx.base_fingerprint, "lineage": {}, "metrics": {}}
    ctx.registry().register(name, folder / name, kind="model", **about)
    return model
