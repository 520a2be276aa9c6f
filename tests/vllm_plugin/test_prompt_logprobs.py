"""Log-probabilities of prompts in a real engine, beside transformers + peft: adapters of the head, in mixed batches."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.support.lora_engine import EngineJob, Row, ask

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

CHUNK = 64
"""Tokens of a prompt that are computed at once."""
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
    settings = {"max_num_batched_tokens": CHUNK}
    job = EngineJob(str(tiny_model_dir), adapters, list(BATCHES.values()), 2, settings)
    found = ask(job, tmp_path / "out.json")
    for (kind, batch), scores in zip(BATCHES.items(), found.scores, strict=True):
        for (name, ids), got in zip(batch, scores, strict=True):
            expected = by_peft(tiny_model_dir, adapters[name] if name else None, ids)
            assert got == pytest.approx(expected, abs=1e-3), (kind, name)
