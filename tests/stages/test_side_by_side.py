"""Stages that train side by side leave what each would leave alone, and any of them goes on alone."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triptych import storage
from triptych.forward.roles import RoleModel
from triptych.observe.log import read_metrics
from triptych.observe.progress import Progress
from triptych.stages.context import StageContext
from triptych.stages.models import role_model
from triptych.stages.supervised import classification, sft
from triptych.stages.supervised.training import Learn, prepare
from triptych.train import checkpoint
from triptych.train.stepping import LockstepTrainings, run_training

WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")
Make = Callable[[dict[str, Any]], StageContext[Any]]


class Silent(Progress):
    """Nobody is told."""

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Trial:
    ctx: StageContext[Any]
    learn: Learn

    def elsewhere(self, run: str) -> "Trial":
        """The same trial in another folder, its rows prepared."""
        ctx = replace(self.ctx, run=str(Path(self.ctx.run).parent / run))
        prepare(ctx)
        return Trial(ctx, self.learn)

    def model(self) -> RoleModel:
        return role_model(self.ctx, self.ctx.stage.train.memory, torch.device("cpu"))


@pytest.fixture
def trials(make_context: Make, tmp_path: Path) -> dict[str, Trial]:
    """Two policies and a classifier: other ranks, targets, rates, seeds, rows of a step; the second stops early."""
    chats = [{"prompt": f"Film {i}?", "response": f"The film is {WORDS[i % 8]}."} for i in range(24)]
    texts = [{"text": f"Film {i} is {WORDS[i % 8]}.", "label": ("good", "bad")[i % 2]} for i in range(24)]
    data = {}
    for name, rows in (("sft", chats), ("classification", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data[name] = {split: {"path": str(tmp_path / f"{name}.jsonl")} for split in ("train", "heldout")}

    def make(kind: str, seed: int, lr: float, method: dict[str, Any], **fields: Any) -> Trial:
        train = {"steps": 12, "checkpoint_every": 4, "evaluate_every": 3, "optimizer": {"lr": lr}} | fields
        labels = {"labels": ["good", "bad"]} if kind == "classification" else {}
        method = {"name": "lora", "alpha": 8} | method
        ctx = make_context({"kind": kind, "method": method, "data": data[kind], "train": train} | labels)
        recipe = ctx.recipe.model_copy(update={"seed": seed})
        learn: dict[str, Learn] = {"sft": sft.learn, "classification": classification.learn}
        return Trial(replace(ctx, recipe=recipe, progress=Silent(None)), learn[kind])

    stop = {"early_stopping": {"patience": 1, "min_delta": 10.0}}
    return {
        "one": make("sft", 1, 0.01, {"r": 4}, batch={"rows": 8, "micro_tokens": 256, "max_length": 96}),
        "two": make("sft", 2, 0.001, {"r": 2, "targets": ["q_proj"]}, batch={"rows": 4, "max_length": 96}, **stop),
        "three": make("classification", 3, 0.02, {"r": 8}, batch={"rows": 6, "max_length": 64}),
    }


def together(trials: dict[str, Trial], until: int | None = None) -> dict[str, Exception | None]:
    """Train on one model to the end, or stop all behind so many steps."""
    model, side = next(iter(trials.values())).model(), LockstepTrainings()
    for name, trial in trials.items():
        torch.manual_seed(trial.ctx.recipe.seed)
        side.start(name, trial.learn(trial.ctx, model, name))
    step = 0
    while (running := [name for name in trials if name not in side.ended]) and step != until:
        side.step(running, pass_tokens=4096)
        step += 1
    for name in running:
        side.stop(name)
        model.remove(name)
    return side.ended


def assert_same_results(one: Trial, other: Trial) -> None:
    found, expected = (Path(trial.ctx.artifact) for trial in (one, other))
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (found / name).exists() == (expected / name).exists()
        if (expected / name).exists():
            tensors, wanted = load_file(found / name), load_file(expected / name)
            assert tensors.keys() == wanted.keys()
            assert max((tensors[key] - wanted[key]).abs().max() for key in wanted) < 1e-4
    assert (found / "adapter_config.json").read_text() == (expected / "adapter_config.json").read_text()
    assert (found / "triptych.json").read_text() == (expected / "triptych.json").read_text()
    mine, theirs = read_metrics(one.ctx.folder), read_metrics(other.ctx.folder)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for key in ("loss", "heldout_loss", "grad_norm", "learning_rate", "tokens"):
        assert [row.get(key, -1) for row in mine] == [pytest.approx(row.get(key, -1), rel=1e-4) for row in theirs], key


@pytest.mark.slow
def test_each_leaves_what_it_leaves_alone(trials: dict[str, Trial]) -> None:
    alone = {name: trial.elsewhere(f"alone-{name}") for name, trial in trials.items()}
    for trial in alone.values():
        run_training(trial.learn(trial.ctx, trial.model()))
    beside = {name: trial.elsewhere(f"beside-{name}") for name, trial in trials.items()}
    assert together(beside) == dict.fromkeys(("two", "one", "three"))
    for name in trials:
        assert_same_results(beside[name], alone[name])
    assert len(read_metrics(beside["two"].ctx.folder)) == 6  # its first evaluation was its best: one more, and out
    last = read_metrics(beside["one"].ctx.folder)[-2]
    assert last["seconds_beside"] > 0
    assert sum(value for key, value in last.items() if key.startswith("seconds_")) == pytest.approx(
        last["step_seconds"], rel=1e-3
    )


@pytest.mark.slow
def test_each_goes_on_alone_and_joins_others_again(trials: dict[str, Trial]) -> None:
    alone = trials["one"].elsewhere("alone")
    run_training(alone.learn(alone.ctx, alone.model()))
    beside = {name: trial.elsewhere(f"beside-{name}") for name, trial in trials.items()}
    assert together(beside, until=5) == {}
    last, straight = checkpoint.latest(beside["one"].ctx.checkpoints), checkpoint.latest(alone.ctx.checkpoints)
    assert last is not None
    assert straight is not None
    assert last.step == 4
    assert last.tensors.keys() == straight.tensors.keys()
    again = trials["one"].elsewhere("beside-one")
    run_training(again.learn(again.ctx, again.model()))
    assert_same_results(again, alone)
    assert together({name: beside[name] for name in ("two", "three")}) == dict.fromkeys(("two", "three"))


@pytest.mark.slow
def test_a_failure_is_its_own_alone(trials: dict[str, Trial]) -> None:
    alone = trials["one"].elsewhere("alone")
    run_training(alone.learn(alone.ctx, alone.model()))
    beside = {name: trials[name].elsewhere(f"beside-{name}") for name in ("one", "three")}
    storage.remove(storage.join(beside["three"].ctx.folder, "data"))
    ended = together(beside)
    assert isinstance(ended["three"], Exception)
    assert ended["one"] is None
    assert_same_results(beside["one"], alone)
