"""A recipe with a sweep that is small enough for a test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.observe.sweeps import Event, SweepView, trial_name
from triptych.recipe import Recipe, dump_recipe, load_recipe

WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")
LR = "stages.sft.train.optimizer.lr"
RANK = "stages.sft.method.r"


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """As `triptych sweep` starts one: with the dashboard, by which the CPUs of stopped trials come free."""
    import ray

    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=True)
    yield
    ray.shutdown()


@pytest.fixture
def make_recipe(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """SFT of 6 steps on the tiny model in float32, measured every second one; fields of its sweep are given."""
    chats = [{"prompt": f"Film {i}?", "response": f"It is {WORDS[i % 8]} and {WORDS[i // 8]}."} for i in range(24)]
    for split, rows in (("train", chats), ("heldout", chats[:4])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(evaluate_every: int | None = 2, **sweep: Any) -> Recipe:
        recipe = {
            "name": "tiny",
            "model": {"base": str(tiny_model_dir), "dtype": "float32"},
            "storage": {"runs": str(tmp_path / "runs")},
            "stages": {
                "sft": {
                    "kind": "sft",
                    "method": {"name": "lora", "r": 4, "alpha": 8},
                    "data": {split: {"path": str(tmp_path / f"{split}.jsonl")} for split in ("train", "heldout")},
                    "train": {
                        "steps": 6,
                        "optimizer": {"lr": 0.002},
                        "batch": {"rows": 4, "micro_tokens": 256, "max_length": 128},
                        "evaluate_every": evaluate_every,
                    },
                }
            },
            "sweep": {
                "stage": "sft",
                "space": {LR: {"loguniform": [1e-4, 1e-2]}, RANK: {"choice": [2, 4]}},
                "objective": {"metric": "heldout_loss", "mode": "min"},
                "budget": {"trials": 4},
                "search": "random",
                "concurrency": 1,
            }
            | sweep,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return load_recipe(path)

    return make


Told = tuple[dict[str, Any], list[float], str]
"""A trial's values, its losses at steps 2, 4, ..., and how it ended."""


@pytest.fixture
def sweep_of() -> Callable[[Recipe, list[Told]], SweepView]:
    """A sweep as its folder would tell it."""

    def make(recipe: Recipe, trials: list[Told]) -> SweepView:
        events: list[Event] = []
        for number, (values, losses, status) in enumerate(trials, 1):
            events.append({"event": "begun", "trial": number, "values": values})
            for index, loss in enumerate(losses, 1):
                metrics = {"heldout_loss": loss, "step_seconds": 0.1 * number}
                report = {"event": "report", "trial": number, "run": trial_name(number), "step": 2 * index}
                events.append(report | {"metrics": metrics, "device_seconds": 1.5 * index, "tokens": 100 * index})
            events.append({"event": "ended", "trial": number, "status": status, "reason": "", "device_seconds": 0.0})
        return SweepView("tiny-sweep", "/nowhere/tiny-sweep", dump_recipe(recipe), events)

    return make
