"""Log-probabilities of prompts in a real engine, beside transformers + peft: adapters of the head, in mixed batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

Row = tuple[str | None, list[int]]
ADAPTERS = {
    "head": LoraConfig(r=8, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    "other head": LoraConfig(r=4, target_modules=["up_proj", "lm_head"], init_lora_weights=False),
}
NAMES = ("head", None, "other head", "head", None)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 290, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


BATCHES: dict[str, list[Row]] = {
    "other counts": [(name, prompt(9, seed)) for seed, name in enumerate(NAMES)],
    # As many prompts as each has tokens with a log-probability: the counts are equal, the rows are not.
    "equal counts": [(name, prompt(len(NAMES) + 1, seed)) for seed, name in enumerate(NAMES, 10)],
    "in chunks": [(name, prompt(100, seed)) for seed, name in enumerate(NAMES, 20)],
}


def save_adapters(model: Path, folder: Path) -> dict[str, str]:
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        get_peft_model(base, config).save_pretrained(str(folder / name), save_embedding_layers=False)
    return {name: str(folder / name) for name in ADAPTERS}


@torch.no_grad()
def by_peft(model: Path, adapter: str | None, ids: list[int]) -> list[float]:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy = policy if adapter is None else PeftModel.from_pretrained(policy, adapter)
    logprobs = policy(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found: list[float] = logprobs.gather(1, torch.tensor(ids[1:])[:, None]).flatten().tolist()
    return found


def test_every_row_of_a_batch_is_scored_under_its_own_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapters = save_adapters(tiny_model_dir, tmp_path)
    out = tmp_path / "out.json"
    job = {"model": str(tiny_model_dir), "adapters": adapters, "batches": list(BATCHES.values()), "out": str(out)}
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_PLUGINS", None)
    script = Path(__file__).with_name("score.py")
    subprocess.run([sys.executable, script], input=json.dumps(job), text=True, env=environment, check=True, timeout=240)
    for (kind, batch), scores in zip(BATCHES.items(), json.loads(out.read_text()), strict=True):
        for (name, ids), got in zip(batch, scores, strict=True):
            expected = by_peft(tiny_model_dir, adapters[name] if name else None, ids)
            assert got == pytest.approx(expected, abs=1e-3), (kind, name)
