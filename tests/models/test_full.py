"""A whole model that is written stops where answers ended in training, in plain transformers too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from triptych.models.full import write_ends

PROMPT = torch.tensor([[50, 61, 72, 83]])


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model, without a word on what it stops at but in config.json."""
    found = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (found / "generation_config.json").unlink(missing_ok=True)
    return found


def generated(folder: Path) -> list[int]:
    """Up to 12 greedy tokens of plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=12, do_sample=False)
    return [int(token) for token in ids[0, PROMPT.shape[1] :]]


@pytest.mark.parametrize("settings", [None, {"eos_token_id": 2, "bos_token_id": 1, "temperature": 0.5}])
def test_transformers_stops_at_each_of_the_ends(folder: Path, settings: dict[str, object] | None) -> None:
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    free = generated(folder)
    learned = next(token for number, token in enumerate(free) if number >= 2 and token not in free[:number])
    write_ends(folder, [learned, 2])
    assert generated(folder) == free[: free.index(learned) + 1]
    written = json.loads((folder / "generation_config.json").read_text())
    assert written == {**(settings or written), "eos_token_id": [learned, 2]}
    assert "bos_token_id" in written


@pytest.mark.parametrize("known", [2, [2, 7]])
def test_a_base_that_stops_there_already_keeps_its_file(folder: Path, known: int | list[int]) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": known}))
    before = file.read_bytes()
    write_ends(folder, [2])
    assert file.read_bytes() == before
