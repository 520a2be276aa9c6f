"""Which of a method's parameters weight decay may shrink, over all methods."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import LlamaConfig, LlamaForCausalLM

from triptych.forward.roles import RoleModel
from triptych.methods import METHODS
from triptych.recipe.method import Method
from triptych.train.optimizer import is_vector

SETTINGS: dict[str, dict[str, Any]] = {
    "vblora": {"vector_length": 8},
    "c3a": {"block_size": 8},
    "freeze": {"train": ["norm"]},
    **{name: {"init": "random"} for name in ("prefix_tuning", "p_tuning_v2", "gated_prefix")},
}
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    attention_bias=True,
)


@pytest.mark.parametrize("name", METHODS)
def test_what_starts_as_a_factor_does_not_decay(name: str) -> None:
    """A parameter that starts as one number other than zero multiplies something: towards zero it switches it off."""
    method: Method = TypeAdapter(Method).validate_python({"name": name, **SETTINGS.get(name, {})})
    model = RoleModel(LlamaForCausalLM(CONFIG))
    model.add("policy", method, trainable=True)
    for path, parameter in model.parameters_of("policy").items():
        first = parameter.flatten()[0]
        if torch.equal(parameter, first.expand_as(parameter)) and first != 0:
            assert is_vector(path, parameter.shape), path
        if path.endswith(("lora_A.weight", "lora_B.weight", "lora_A", "lora_B")):
            assert not is_vector(path, parameter.shape), path
        if path.endswith(("bias", "lora_E", "magnitude_vector")):
            assert is_vector(path, parameter.shape), path
