"""What a batch takes is what the model's layout of it computes; what a base takes is there once it was read."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from triptych.forward.attention import lay_out
from triptych.forward.process_memory import resident_memory
from triptych.forward.roles import RoleModel
from triptych.methods.flops import TokenCounts
from triptych.models.base import load_causal_lm
from triptych.train.batch import language_batch, pair_batch
from triptych.train.usage import real_tokens, token_counts

PAIRS = [([5, 6, 7, 1, 2], [5, 6, 7, 3]), ([5, 6, 9], [5, 6, 9, 9, 9]), ([8], [8])]


def test_rows_by_themselves() -> None:
    batch = language_batch([([1, 2, 3], [-100, 2, 3]), ([1, 5], [-100, 5])], pad=0)
    assert real_tokens(batch) == 5
    assert token_counts(batch, shared=False) == TokenCounts(tokens=5, logits=3, attended=6 + 3)


@pytest.mark.parametrize("flip", [False, True])
def test_shared_beginnings_are_computed_once(flip: bool) -> None:
    batch = pair_batch(PAIRS, pad=0)
    if flip:
        batch = {name: tensor.flip(0) for name, tensor in batch.items()}
    layout = lay_out(batch["ids"], batch["mask"])
    expected = TokenCounts(len(layout.ids), 0, int((layout.positions + 1).sum()))
    assert token_counts(batch, shared=True) == expected
    assert expected.tokens < real_tokens(batch) == int(torch.tensor(19))


def test_a_mapped_base_is_loaded_once_it_was_read(tmp_path: Path) -> None:
    """In the precision of its file a base is mapped, and takes memory only page by page."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, num_hidden_layers=1, intermediate_size=64, tie_word_embeddings=True
    )
    made = LlamaForCausalLM(config).to(torch.bfloat16)
    made.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in made.parameters())
    before = resident_memory(torch.device("cpu"))
    model = RoleModel(load_causal_lm(tmp_path, torch.bfloat16))
    assert model.loaded_bytes - before > 0.9 * size


def test_a_model_that_is_moved_computes_where_it_lies(tiny_model_dir: Path) -> None:
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32)).to("meta")
    assert model.device.type == model.target.type == "meta"
