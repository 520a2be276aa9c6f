"""A real engine with the plugin: each row of a mixed batch answers as transformers + peft do, every slot filled."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.lora_engine import EngineJob, Row, answering, read_answers
from triptych.models.base import resolve_base
from triptych.recipe.model import Model

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

NEW_TOKENS = 24
QUESTIONS = ("Name a color.", "What is the capital of France?", "Write one sentence about a film you liked.")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Three adapters for three slots: full rank everywhere; half the rank, rsLoRA, attention only; embeddings and head too.
ADAPTERS = {
    "a": LoraConfig(r=16, lora_alpha=8, target_modules=LINEAR, init_lora_weights=False),
    "b": LoraConfig(r=8, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "c": LoraConfig(
        r=16,
        lora_alpha=8,
        alpha_pattern={"embed_tokens": 0.2},
        target_modules=[*LINEAR, "embed_tokens", "lm_head"],
        init_lora_weights=False,
    ),
}


@dataclass(frozen=True)
class Answers:
    batch: list[Row]
    mixed: list[list[int]]  # vLLM, all rows in one batch
    base_alone: list[list[int]]  # vLLM, only the rows without an adapter
    expected: list[list[int]]  # transformers + peft


def save_adapters(model: Path, folder: Path) -> dict[str, str]:
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        get_peft_model(base, config).save_pretrained(str(folder / name), save_embedding_layers=False)
    return {name: str(folder / name) for name in ADAPTERS}


def continue_with_peft(model: Path, adapters: dict[str, str], batch: list[Row]) -> list[list[int]]:
    answers: dict[int, list[int]] = {}
    for name in (None, *adapters):
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        policy = policy if name is None else PeftModel.from_pretrained(policy, adapters[name])
        for row, (wanted, ids) in enumerate(batch):
            if wanted == name:
                prompt = torch.tensor([ids])
                with torch.no_grad():
                    done = policy.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        do_sample=False,
                        max_new_tokens=NEW_TOKENS,
                    )
                answers[row] = done[0, len(ids) :].tolist()
    return [answers[row] for row in range(len(batch))]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("engine")
    model = resolve_base(Model(base="smollm2-135m-instruct"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    adapters = save_adapters(model, folder)
    batch: list[Row] = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        batch += [(name, ids) for name in (None, "a", "b", "c")]
    base = [row for row in batch if row[0] is None]
    settings = {"enable_prefix_caching": False}
    job = EngineJob(str(model), adapters, [batch, base], NEW_TOKENS, settings)
    with answering(job, folder / "out.json") as engine:
        expected = continue_with_peft(model, adapters, batch)  # while the engine starts
        mixed, base_alone = read_answers(engine, folder / "out.json").tokens
    return Answers(batch, list(mixed), list(base_alone), expected)


def test_each_row_of_a_mixed_batch_answers_as_peft_does(answers: Answers) -> None:
    for (name, _), got, expected in zip(answers.batch, answers.mixed, answers.expected, strict=True):
        assert got == expected, name


def test_base_rows_answer_as_the_base_alone(answers: Answers) -> None:
    rows = [mixed for (name, _), mixed in zip(answers.batch, answers.mixed, strict=True) if name is None]
    assert rows == answers.base_alone


def test_every_adapter_changes_the_answer(answers: Answers) -> None:
    by_name: dict[str | None, list[list[int]]] = {}
    for (name, _), ids in zip(answers.batch, answers.mixed, strict=True):
        by_name.setdefault(name, []).append(ids)
    assert len({str(ids) for ids in by_name.values()}) == len(ADAPTERS) + 1
