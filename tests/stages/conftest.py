"""A whole recipe small enough for a test: the tiny model, a few rows, every kind of stage."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.models.base import fingerprint
from triptych.observe.progress import Progress
from triptych.recipe import load_recipe
from triptych.stages.context import StageContext

WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe_file(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """SFT and reward of 60 short steps, PPO of 4 steps with two engines; fp32."""
    return _recipe(tiny_model_dir, tmp_path)


@pytest.fixture(scope="module")
def module_recipe_file(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for the tests of a file together."""
    return _recipe(_tiny_model, tmp_path_factory.mktemp("recipe"))


def _recipe(model: Path, folder: Path) -> Path:
    chats = [
        {"prompt": f"Film {i}?", "response": f"The film is {WORDS[i % 8]} and {WORDS[i // 8]}."} for i in range(48)
    ]
    pairs = [
        {"prompt": f"Film {i}?", "chosen": f"It is {WORDS[i % 4 * 2]}.", "rejected": f"It is {WORDS[i % 4 * 2 + 1]}."}
        for i in range(40)
    ]
    prompts = [{"prompt": f"What about film {i}?"} for i in range(6)]
    method = {"name": "lora", "r": 4, "alpha": 8, "dropout": 0.1}
    train = {
        "steps": 60,
        "optimizer": {"lr": 0.002},
        "batch": {"rows": 8, "micro_tokens": 256, "max_length": 128},
        "checkpoint_every": 5,
    }
    recipe = {
        "name": "tiny",
        "model": {"base": str(model), "dtype": "float32"},
        "storage": {"runs": str(folder / "runs")},
        "stages": {
            "sft": {
                "kind": "sft",
                "method": method,
                "data": {
                    "train": {"path": _write(folder / "sft.jsonl", chats)},
                    "heldout": {"path": _write(folder / "sft.heldout.jsonl", chats[:8])},
                },
                "train": train,
            },
            "reward": {
                "kind": "reward",
                "method": method,
                "data": {
                    "train": {"path": _write(folder / "pairs.jsonl", pairs)},
                    "heldout": {"path": _write(folder / "pairs.heldout.jsonl", pairs[:8])},
                },
                "train": train,
            },
            "ppo": {
                "kind": "rl",
                "policy": "sft",
                "algorithm": {"name": "ppo", "critic": {"optimizer": {"lr": 0.001}}},
                "rewards": [{"name": "model", "stage": "reward"}],
                "kl": {"target": 3.0, "horizon": 100},
                "data": {
                    "train": {"path": _write(folder / "prompts.jsonl", prompts)},
                    "heldout": {"path": _write(folder / "prompts.heldout.jsonl", prompts[:3])},
                },
                "train": {
                    "steps": 4,
                    "optimizer": {"lr": 0.001},
                    "batch": {"minibatches": 2, "micro_tokens": 512},
                    "checkpoint_every": 1,
                },
                "rollout": {
                    "prompts_per_step": 4,
                    "samples_per_prompt": 4,
                    "max_prompt_tokens": 96,
                    "kv_cache_gb": 0.1,
                    "sampling": {"max_new_tokens": 12},
                },
                "evaluation": {"max_new_tokens": 12},
            },
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def make_context(tiny_model_dir: Path, tmp_path: Path) -> Callable[[dict[str, Any]], StageContext[Any]]:
    """A stage `only`, given by its fields, on the tiny model in fp32; nobody hears of its progress."""

    def make(stage: dict[str, Any]) -> StageContext[Any]:
        recipe = {"name": "tiny", "model": {"base": str(tiny_model_dir), "dtype": "float32"}, "stages": {"only": stage}}
        path = tmp_path / "only.yaml"
        path.write_text(yaml.safe_dump(recipe))
        loaded = load_recipe(path)
        return StageContext(
            recipe=loaded,
            name="only",
            stage=loaded.stages["only"],
            run=str(tmp_path / "runs" / "tiny"),
            base_dir=tiny_model_dir,
            base_fingerprint=fingerprint(tiny_model_dir),
            registry_url=f"sqlite:///{tmp_path}/registry.db",
            artifacts=str(tmp_path / "artifacts"),
            progress=Progress(None),
        )

    return make


@pytest.fixture
def one_process() -> Iterator[None]:
    """Stands for a cluster: the workers' part of a supervised stage runs in this process."""
    from tests.support.one_process import one_process

    with one_process():
        yield
