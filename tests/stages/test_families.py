"""A run of SFT on a model of each kind of family; then its adapter in the engine answers as in transformers + peft."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
import ray
import torch
import yaml
from peft import PeftModel
from safetensors.torch import save
from transformers import AutoModelForCausalLM

from tests.support.families import FAMILIES
from tests.support.family_engine import Trials, as_lora, judged, lively, plan
from tests.support.tiny_model import tiny_tokenizer
from triptych.engines.base import REPLACED, SyncMode
from triptych.engines.vllm import VllmEngine
from triptych.methods.merged import changed_weights
from triptych.models.adapter import load_adapter
from triptych.models.families import EQUAL, tried_families
from triptych.observe.progress import Progress
from triptych.recipe import load_recipe
from triptych.registry import Registry
from triptych.stages.run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.exhaustive]

WORDS = ("warm", "dull", "slow", "kind", "loud", "thin", "bright", "odd")
QUESTIONS = ("Film 3?", "What do you think of film 12, and of its ending?", "A film?", "Film 7, is it slow?")
six = pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.ordinary])


@pytest.fixture(scope="module")
def trials(ray_cluster: None) -> Any:
    variables = VllmEngine.environment(plan(Path(), "merged"))
    return ray.remote(Trials).options(num_cpus=0, runtime_env={"env_vars": variables}).remote()


def base_of(name: str, folder: Path) -> Path:
    """A model of the family with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    ids = {f"{what}_token_id": getattr(tokenizer, f"{what}_token_id") for what in ("bos", "eos", "pad")}
    lively(name, vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_sft(name: str, base: Path, folder: Path) -> Path:
    """The adapter's folder after a few steps."""
    rows = [{"prompt": f"Film {i}?", "response": f"The film is {WORDS[i % 8]} and {WORDS[i // 8]}."} for i in range(48)]
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {
        "steps": 8,
        "optimizer": {"lr": 0.01},
        "batch": {"rows": 8, "micro_tokens": 512, "max_length": 128},
        "checkpoint_every": 8,
    }
    # vLLM loads the experts of gpt_oss once only, and a sync that changes them is refused.
    method = {"name": "lora", "r": 4, "alpha": 8, "experts": name != "gpt_oss"}
    stage = {"kind": "sft", "method": method, "data": {"train": {"path": str(data)}}, "train": train}
    recipe = {
        "name": name,
        "model": {"base": str(base), "dtype": "float32"},
        "storage": {"runs": str(folder / "runs")},
        "stages": {"sft": stage},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(folder / "recipe.yaml"), Progress.start())
    return Registry(f"sqlite:///{folder}/runs/registry.db").fetch(f"{name}-sft@1")


def policies(name: str, base: Path, adapter: Path) -> dict[SyncMode, tuple[bytes, dict[str, Any]]]:
    """Way of weight sync -> what it sends: a LoRA, or of experts the weights that change."""
    found = load_adapter(adapter, "policy")
    if not found.is_lora:
        return {"merged": (save(changed_weights(base, found.method, found.weights)), REPLACED)}
    takes = tried_families()[name].adapter == EQUAL
    return {mode: as_lora(adapter) for mode in get_args(SyncMode) if takes or mode == "merged"}


@six
def test_the_engine_answers_with_what_a_run_trained_as_peft_does(name: str, trials: Any, tmp_path: Path) -> None:
    """32 greedy tokens in float32, the adapter merged, and beside the weights where vLLM has LoRA for the family."""
    base = base_of(name, tmp_path / "base")
    adapter = run_sft(name, base, tmp_path)
    tokenizer = tiny_tokenizer()
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]
    eager = {"attn_implementation": "eager"}  # the others leave out soft caps
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **eager).eval()
    trained = PeftModel.from_pretrained(deepcopy(plain), adapter).eval()
    for mode, policy in policies(name, base, adapter).items():
        answers = ray.get(trials.ask.remote(base, policy, mode, prompts))
        assert judged(answers, plain, trained, prompts) == EQUAL
        assert answers.base != answers.adapter
