"""Adapter files: the rules of peft and of vLLM that are read without importing either."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from peft.utils.other import get_pattern_key

from triptych.models.peft_files import largest_rank, of_module
from triptych.recipe.serve import LORA_RANKS, LoraRank


@pytest.mark.parametrize("module", ["model.layers.1.self_attn.q_proj", "layers.1.q_proj", "q_proj", "model.q_proj2"])
@pytest.mark.parametrize("keys", [["q_proj"], [r"layers\.1\..*", "q_proj"], ["q_proj", r"layers\.1\..*"], ["proj"], []])
def test_patterns_are_chosen_as_peft_chooses_them(module: str, keys: list[str]) -> None:
    patterns = {key: number for number, key in enumerate(keys, start=2)}
    assert of_module(patterns, module, 1) == patterns.get(get_pattern_key(keys, module), 1)


def test_a_module_without_patterns_has_the_default() -> None:
    assert of_module(None, "q_proj", 8) == 8


def test_the_largest_rank_is_of_any_module() -> None:
    assert largest_rank({"r": 4}) == largest_rank({"r": 4, "rank_pattern": None}) == 4
    assert largest_rank({"r": 4, "rank_pattern": {"q_proj": 16, "v_proj": 2}}) == 16


def test_ranks_are_those_of_the_installed_vllm() -> None:
    """Read from its source: importing vLLM takes longer than all other tests of this folder."""
    vllm = find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    tree = ast.parse((Path(vllm.origin).parent / "config" / "lora.py").read_text())
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert ast.unparse(assigned["MaxLoRARanks"]) == f"Literal{list(LORA_RANKS)}"
    assert get_args(LoraRank) == LORA_RANKS
